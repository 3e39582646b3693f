/** WebSocket sessions that stay, for Fastify: see the README. */

export { MessageTooLargeError } from "@mainstay/client/protocol";
export type { Authenticate, Bound, MainstayOptions } from "./options.js";
export { mainstay } from "./plugin.js";
export type { Closed, Peer, Sendable, Session, SessionEvents } from "./session.js";
export type { SessionHandler } from "./types.js";
