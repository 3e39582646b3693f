/** The socket without sessions, at less than half the size: reconnect and heartbeat towards servers that speak plain WebSocket. */

import { type BaseOptions, BaseSocket, type Fresh } from "./client.js";
import { Machine } from "./machine.js";
import { complete, dataOf, isBlob, missing } from "./surface.js";

export { type BaseOptions, type Fresh, QueueFullError, type SocketEvents, type WebSocketLike } from "./client.js";
export type { Mode, Status } from "./machine.js";

export interface Options extends BaseOptions {
  /** What `send` does when as much is kept as may be: it throws a {@link QueueFullError}, or an `error` event has it. @default "error" */
  whenFull?: "error" | "throw";
}

/** A `WebSocket` that stays. Every re-attach is reported as a `gap` of unknown size. */
export class MainstaySocket extends BaseSocket {
  /** As written, whatever minifiers make of it. */
  static override readonly name: string = "MainstaySocket";

  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], options: Options = {}) {
    super(url, protocols, options, (now) => new Machine(now, options, Math.random));
  }

  /**
   * Accepts a message, to be sent now or when there is a connection. What is neither text, bytes nor a Blob is made text.
   * @throws TypeError without an argument
   */
  send(payload: string | ArrayBufferLike | ArrayBufferView | Blob): void {
    if (!arguments.length) throw missing();
    if (this.readyState > 1) return;
    const { machine, queued } = this;
    const blob = isBlob(payload) ? payload : undefined;
    const data = blob ? undefined : dataOf(payload);
    if (data === undefined || (queued.length && !machine.beginning)) {
      // What is sent after it waits behind it.
      machine.beginning = 0;
      const message = { data, blob };
      if (machine.unsent.length + queued.length >= (this.chosen.keep?.messages ?? 1024)) this.noRoom(payload);
      else if (queued.push(message) && blob) void this.readBlob(message);
    } else if (!machine.send(data)) this.noRoom(payload);
    this.proceed();
  }

  /** @internal */
  protected override pump(): void {
    const { machine, queued } = this;
    while (!machine.beginning && queued[0]?.data !== undefined && machine.send(queued[0].data)) queued.shift();
  }
}

complete(MainstaySocket, BaseSocket);
