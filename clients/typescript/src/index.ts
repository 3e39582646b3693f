/**
 * WebSocket connections that stay: reconnect, heartbeat, and sessions that lose, repeat and reorder nothing.
 *
 * @example
 * import { MainstaySocket } from "@mainstay/client";
 *
 * const socket = new MainstaySocket("wss://example.com/chat");
 * socket.onmessage = ({ data }) => console.log(data);
 * socket.send("hello");
 */

import { driverOf } from "./driver.js";
import { On } from "./host.js";
import type { Fresh, Options, Sendable, Sent } from "./options.js";
import { SessionDriver } from "./session-driver.js";
import { BaseSocket } from "./socket.js";
import { complete, missing } from "./surface.js";
import type { Bytes } from "./wire.js";

export { QueueFullError } from "./driver.js";
export type { Mode, Status } from "./machine.js";
export { MessageTooLargeError } from "./flow.js";
export type { Fate } from "./session.js";
export type { BaseOptions, Fresh, Options, Outcome, Sendable, Sent, SessionStore, WebSocketLike } from "./options.js";
export type { SocketEvents } from "./socket.js";
export { ProtocolError } from "./wire.js";

/**
 * A `WebSocket` that stays. Towards a server that speaks `mainstay.v1` every message arrives exactly once and in order, over as
 * many connections as it takes, and a `gap` event reports where that is not possible. Towards any other server it reconnects, and
 * reports every re-attach as a `gap` of unknown size.
 *
 * @example
 * const socket = new MainstaySocket("wss://example.com/orders", [], { credentials: () => fetchToken() });
 * socket.on("open", () => socket.send("subscribe"));
 * socket.on("status", ({ status }) => show(status));
 * socket.on("gap", ({ fate }) => console.warn("lost", fate));
 * for await (const message of socket) await handle(message);
 */
export class MainstaySocket extends BaseSocket {
  /** The name in source, which minifiers do not change. */
  static override readonly name: string = "MainstaySocket";

  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], options: Options = {}) {
    super((target) => new SessionDriver(target, url, protocols, options, randomBytes));
  }

  /** The session's public name; it is no secret. Empty before the first attach and towards plain peers. */
  get sessionId(): string {
    return driverOf<SessionDriver>(this).machine.name ?? "";
  }

  /** Counts, for people to look at. Numbers are those of the current session. */
  get stats() {
    const { machine, counts, session } = driverOf<SessionDriver>(this);
    const { outbox, inbox, replayed, repeated } = session.flow;
    // In quotes, as `build.mjs` shortens the name elsewhere.
    return {
      ...counts,
      epoch: machine.epoch,
      sent: outbox.last,
      "acknowledged": outbox.acknowledged,
      received: inbox.delivered,
      acknowledgedToPeer: inbox.acked,
      replayed,
      repeatedAndDropped: repeated,
    };
  }

  /**
   * Accepts a message and keeps it until the peer has acknowledged it. A value that is neither text, bytes nor a Blob is
   * converted to text. After `close`, or if there is no room ({@link Options.whenFull}), the message is `not-delivered`.
   * @throws {@link MessageTooLargeError} if it is larger than the server accepts, as it announced. TypeError without an argument.
   *
   * @example
   * const outcome = await socket.send("one coffee").delivered;
   * if (outcome !== "delivered") console.warn(outcome);
   */
  send(payload: Sendable): Sent {
    if (!arguments.length) throw missing();
    return driverOf<SessionDriver>(this).send(payload);
  }

  /**
   * Sends a message that is not numbered, kept or sent again. It is dropped while the socket is detached.
   * @throws {@link MessageTooLargeError}
   */
  sendVolatile(message: string | ArrayBuffer | ArrayBufferView): void {
    driverOf<SessionDriver>(this).sendVolatile(message);
  }

  /** Presents new credentials: on the live connection, or with the next attempt. See the event `authenticated`. */
  authenticate(credentials: string | Bytes): void {
    driverOf<SessionDriver>(this).authenticate(credentials);
  }

  /**
   * The messages, one at a time: a message is acknowledged when the next is asked for. Ends with the socket. Listeners of
   * `message` receive each message too, and are as slow as the slowest iterator.
   */
  [Symbol.asyncIterator](): AsyncGenerator<any, void, void> {
    return driverOf<SessionDriver>(this).messages();
  }

  /** Closes in order and waits for the end. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    if (this.readyState < 3) await new Promise<void>((resolve) => this.on("close", () => resolve()));
  }
}

complete(MainstaySocket, BaseSocket);

/** Random bytes, unguessable if the platform has cryptographic randomness. */
function randomBytes(length: number): Bytes {
  const bytes = new Uint8Array(length);
  return On.Browser ? crypto.getRandomValues(bytes) : globalThis.crypto?.getRandomValues(bytes) ?? bytes.map(() => Math.random() * 256);
}
