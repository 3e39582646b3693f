/** The machines of `mainstay.v1`, for who builds another end of it: pure, no IO. `@mainstay/fastify` stands on them. */

export { closeAction } from "./close.js";
export * from "./flow.js";
export * from "./session.js";
export * from "./wire.js";
