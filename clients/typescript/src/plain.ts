/**
 * The socket without sessions, at less than half the size: reconnect and heartbeat towards servers that speak plain WebSocket.
 *
 * @example
 * import { MainstaySocket } from "@mainstay/client/plain";
 *
 * new MainstaySocket("wss://example.com/feed", [], {
 *   ping: { message: "ping", matches: (data) => data === "pong", intervalMs: 25_000 },
 * });
 */

import { Driver, driverOf } from "./driver.js";
import { Machine } from "./machine.js";
import type { BaseOptions, Fresh } from "./options.js";
import { BaseSocket } from "./socket.js";
import { complete, dataOf, isBlob, missing } from "./surface.js";

export { QueueFullError } from "./driver.js";
export type { Mode, Status } from "./machine.js";
export type { BaseOptions, Fresh, WebSocketLike } from "./options.js";
export type { SocketEvents } from "./socket.js";

/** The options of {@link MainstaySocket}. Times are in milliseconds. */
export interface Options extends BaseOptions {
  /**
   * What happens to a message for which there is no room in `keep`: `send` throws a {@link QueueFullError}, or an `error` event
   * has it. @default "error"
   */
  whenFull?: "error" | "throw";
}

/** A `WebSocket` that stays. It reports every re-attach as a `gap` of unknown size. */
export class MainstaySocket extends BaseSocket {
  /** The name in source, which minifiers do not change. */
  static override readonly name: string = "MainstaySocket";

  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], options: Options = {}) {
    super((target) => new PlainDriver(target, url, protocols, options, new Machine(Date.now(), options, Math.random)));
  }

  /**
   * Accepts a message, to be sent now or when there is a connection. A value that is neither text, bytes nor a Blob is converted
   * to text.
   * @throws TypeError without an argument
   */
  send(payload: string | ArrayBufferLike | ArrayBufferView | Blob): void {
    if (!arguments.length) throw missing();
    driverOf(this).send(payload);
  }
}

class PlainDriver extends Driver {
  send(payload: unknown): void {
    if (this.readyState > 1) return;
    const { machine, queued } = this;
    const blob = isBlob(payload) ? payload : undefined;
    const data = blob ? undefined : dataOf(payload);
    if (data === undefined || (queued.length && !machine.beginning)) {
      // Messages sent later wait behind it.
      machine.beginning = 0;
      const message = { data, blob };
      if (machine.unsent.length + queued.length >= (this.options.keep?.messages ?? 1024)) this.noRoom(payload);
      else if (queued.push(message) && blob) void this.readBlob(message);
    } else if (!machine.send(data)) this.noRoom(payload);
    this.proceed();
  }

  protected override feed(): void {
    const { machine, queued } = this;
    while (!machine.beginning && queued[0]?.data !== undefined && machine.send(queued[0].data)) queued.shift();
  }
}

complete(MainstaySocket, BaseSocket);
