/** The socket without sessions, at a third of the size: reconnect and heartbeat towards servers that speak plain WebSocket. */

import { ask, type BaseOptions, BaseSocket, dataOf, type Fresh, QueueFullError } from "./client.js";
import { type Io, Machine } from "./machine.js";

export { type BaseOptions, type Fresh, QueueFullError, type SocketEvents, type WebSocketLike } from "./client.js";
export type { Mode, Status } from "./machine.js";

/** A `WebSocket` that stays. Every re-attach is reported as a `gap` of unknown size. */
export class MainstaySocket extends BaseSocket {
  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], options: BaseOptions = {}) {
    const makeMachine = (now: number, io: Io) => new Machine(now, options, Math.random, io);
    super(url, options, makeMachine, () => ask(protocols));
  }

  /** Accepts a message, to be sent now or when there is a connection. @throws {@link QueueFullError} */
  send(message: string | ArrayBufferLike | ArrayBufferView): void {
    if (this.readyState > 1) return;
    if (!this.machine.send(dataOf(message))) throw new QueueFullError("the queue is full");
    this.proceed();
  }
}
