/**
 * WebSocket sessions that survive reconnects, for Fastify.
 *
 * @example
 * import { mainstay } from "@mainstay/fastify";
 *
 * await app.register(mainstay, { heartbeatMs: 25_000 });
 * app.get("/echo", { websocket: true }, async (session) => {
 *   for await (const data of session) await session.send(data);
 * });
 */

export { MessageTooLargeError } from "@mainstay/client/protocol";
export type { Audience, SendOptions, Sent } from "./audience.js";
export type { End, Loss, PeerInfo, SessionEvents } from "./events.js";
export type { Mainstay } from "./mainstay.js";
export type { Stats } from "./metrics.js";
export type { Authenticate, MainstayOptions, MainstayRouteOptions, QueueLimit } from "./options.js";
export type { Origins } from "./origin.js";
export { mainstay } from "./plugin.js";
export type { SessionListeners } from "./server.js";
export type { Sendable, Session } from "./session.js";
export type { SessionHandler } from "./types.js";
