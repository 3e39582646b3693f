/** The socket without sessions, at half the size: reconnect and heartbeat towards servers that speak plain WebSocket. */

import { type BaseOptions, BaseSocket, type Fresh } from "./client.js";
import { Machine } from "./machine.js";

export { type BaseOptions, type Fresh, QueueFullError, type SocketEvents, type WebSocketLike } from "./client.js";
export type { Mode, Status } from "./machine.js";

/** A `WebSocket` that stays. Every re-attach is reported as a `gap` of unknown size. */
export class MainstaySocket extends BaseSocket {
  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], options: BaseOptions = {}) {
    super(url, protocols, options, (now, io) => new Machine(now, options, Math.random, io));
  }
}
