/** The application's handle on one session. */

import { EventEmitter } from "node:events";
import { type Data, MessageTooLargeError } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { Driver } from "./driver.js";
import type { PeerInfo, SessionEvents } from "./events.js";
import type { Rooms } from "./rooms.js";

/** The data of a message. Bytes are copied, so the application may change them afterwards. */
export type Sendable = string | ArrayBuffer | ArrayBufferView;

/** Returns the driver of a session. */
export let driverOf: (session: Session) => Driver<Session>;

/**
 * One session. It outlives connections: while the client is away, the server keeps the messages for it, and the handler with
 * its listeners stays. The session of a plain client has one connection only.
 *
 * Receive messages either with `on("message")` or with `for await`. Until the application does one of the two, messages
 * wait, and the client stops sending once `accept` is full.
 *
 * @example
 * app.get("/echo", { websocket: true }, async (session) => {
 *   for await (const data of session) await session.send(data);
 * });
 */
export class Session extends EventEmitter<SessionEvents> {
  static {
    driverOf = (session) => session.#driver;
  }
  #driver: Driver<Session>;
  #rooms: Rooms<Session>;

  /** @internal */
  constructor(driver: Driver<Session>, rooms: Rooms<Session>) {
    super({ captureRejections: true });
    this.#driver = driver;
    this.#rooms = rooms;
    (this as EventEmitter).on("newListener", Session.#deliverLater);
  }

  /** Delivers the messages that wait to a listener that is added now. */
  static #deliverLater(this: Session): void {
    queueMicrotask(() => this.#driver.step());
  }

  /** Adds this session to a room, until it leaves the room or ends. */
  join(room: string): void {
    this.#rooms.join(this, room);
  }

  /** Removes this session from a room. */
  leave(room: string): void {
    this.#rooms.leave(this, room);
  }

  /** The rooms of this session. */
  get rooms(): ReadonlySet<string> {
    return this.#rooms.of(this);
  }

  /** The public name of the session for logs: 16 hexadecimal digits. It is no secret. "" for a plain client. */
  get id(): string {
    return this.#driver.id;
  }

  /** Counts the connections of this session, from 1. */
  get epoch(): number {
    return this.#driver.machine.epoch;
  }

  /** `"session"`: the client speaks `mainstay.v1`, and the session survives reconnects. `"plain"`: it has one connection. */
  get mode(): "session" | "plain" {
    return this.#driver.mode;
  }

  /** `"attached"`: the client is connected. `"parked"`: the session waits for its client. `"closed"`: the session ended. */
  get state(): "attached" | "parked" | "closed" {
    const { machine } = this.#driver;
    return machine.closed ? "closed" : machine.connection === undefined ? "parked" : "attached";
  }

  /** Facts about the client, from its newest connection. */
  get peer(): PeerInfo {
    return this.#driver.peer;
  }

  /** The upgrade request of the newest connection. */
  get request(): FastifyRequest {
    return this.#driver.request;
  }

  /** The smoothed round-trip time of the heartbeat in milliseconds. Undefined before the first answer and while parked. */
  get rtt(): number | undefined {
    return this.#driver.machine.rtt;
  }

  /**
   * Sends a message. The promise settles with true once the session accepted the message, which waits while `keep` is full.
   * An accepted message is kept until the client acknowledges it or, for a plain client, until the socket accepts it. The
   * promise settles with false if the session ended before. It never rejects.
   *
   * An application that does not await the promise has no limit on the number of waiting messages.
   * @throws MessageTooLargeError at once, if the message is larger than the client accepts.
   */
  send(data: Sendable): Promise<boolean> {
    return this.#driver.send(this.#fitting(data));
  }

  /**
   * Sends a message if it can be accepted at once. Returns false if `keep` is full or the session ended.
   * @throws MessageTooLargeError if the message is larger than the client accepts.
   */
  trySend(data: Sendable): boolean {
    return this.#driver.trySend(this.#fitting(data));
  }

  /**
   * Sends a message outside the stream: it is not kept, not repeated, and lost if the client is away. If the client is slow,
   * the newest 64 messages wait for it and older ones are dropped.
   * @throws MessageTooLargeError if the message is larger than the client accepts.
   */
  sendVolatile(data: Sendable): void {
    this.#driver.sendVolatile(this.#fitting(data));
  }

  /**
   * Ends the session in order: the server first delivers the messages that it accepted, for at most the resume window, and
   * then ends the session with `code` and `reason`. The application receives no further message, and the client does not
   * come back.
   * @throws RangeError if `code` may not be sent, or `reason` is longer than 123 bytes.
   */
  close(code = 1000, reason = ""): void {
    this.#driver.close(...endOf(code, reason));
  }

  /**
   * Ends the session now, with `code` and `reason`: messages that were not written yet are dropped, the application receives
   * no further message, and the client does not come back. The connection of a client that does not answer within a second is
   * dropped.
   * @throws RangeError if `code` may not be sent, or `reason` is longer than 123 bytes.
   */
  abort(code = 1000, reason = ""): void {
    this.#driver.abort(...endOf(code, reason));
  }

  /**
   * Returns the message, unless it is larger than the client accepts: such a message would end every connection of the client.
   */
  #fitting(data: Sendable): Data {
    const { limit } = this.#driver.machine;
    const message = dataOf(data);
    const size = limit < Infinity ? Buffer.byteLength(message) : 0;
    if (size > limit) throw new MessageTooLargeError(size, limit);
    return message;
  }

  /** Yields the messages, one at a time, until the session ends. Leaving the loop loses no message. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string | Buffer, void, void> {
    for (let data; (data = await this.#driver.next()) !== undefined; ) yield data;
  }

  /** Reports the error of a listener that is an async function. */
  [Symbol.for("nodejs.rejection")](error: unknown, event: string): void {
    this.#driver.report(error, event);
  }
}

function endOf(code: number, reason: string): [code: number, reason: string] {
  const isCode = (code >= 1000 && code <= 1014 && ![1004, 1005, 1006].includes(code)) || (code >= 3000 && code <= 4999);
  if (!isCode) throw new RangeError(`close code ${code}: use 1000 to 1014 without 1004 to 1006, or 3000 to 4999`);
  if (Buffer.byteLength(reason) > 123) throw new RangeError("close reason: at most 123 bytes");
  return [code, reason];
}

/** Copies the data of a message: the application may overwrite its bytes while the server keeps them. */
export function dataOf(data: Sendable): Data {
  if (typeof data === "string") return data;
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice() as Uint8Array<ArrayBuffer>;
  if (data instanceof ArrayBuffer) return new Uint8Array(data.slice(0));
  throw new TypeError("a message is a string, an ArrayBuffer or a view of one");
}
