/** WebSocket sessions that stay, for Fastify: see the README. */

export { MessageTooLargeError } from "@mainstay/client/protocol";
export type { Mainstay, Presence } from "./mainstay.js";
export type { Stats } from "./metrics.js";
export type { Authenticate, Bound, MainstayOptions, MainstayRouteOptions } from "./options.js";
export { mainstay } from "./plugin.js";
export type { Audience, SendOptions, Sent } from "./rooms.js";
export type { Closed, Loss, Peer, Sendable, Session, SessionEvents } from "./session.js";
export type { SessionHandler } from "./types.js";
