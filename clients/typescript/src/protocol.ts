/** The machines of `mainstay.v1`, for implementations of another end: pure, no IO. `@mainstay/fastify` is built on them. */

export { closeAction } from "./close.js";
export * from "./flow.js";
export * from "./session.js";
export * from "./wire.js";
