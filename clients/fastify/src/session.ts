/** The application's handle on one session. */

import { EventEmitter } from "node:events";
import { type Data, MessageTooLargeError } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { Driver } from "./driver.js";

/** Facts about a session's client, from its newest connection. */
export interface PeerInfo {
  /** The client's address, as `request.ip`. */
  address: string;
  /** The application's subprotocol, if the two ends agreed on one. */
  subprotocol: string | undefined;
  /** The client's principal: the return value of `authenticate`; "" for an anonymous client. */
  principal: string;
}

/** How a session ended. */
export interface End {
  /**
   * - `"ended"`: the client or this application ended it.
   * - `"expired"`: the client did not come back within the resume window.
   * - `"lost"`: the connection of a plain client broke.
   * - `"evicted"`: the server closes, or needed the session's place.
   */
  cause: "ended" | "expired" | "lost" | "evicted";
  /** The close code; 1006 if neither end sent one. */
  code: number;
  /** The reason that went with the code; otherwise why the server ended the session. */
  reason: string;
}

/** How a session lost its connection. */
export interface Loss {
  /** 4408: the heartbeat found the client dead. 1006: the connection broke. Otherwise the close code of the client. */
  code: number;
  /** The client's reason, or what the heartbeat found. */
  reason: string;
}

/** The events of a session, with their arguments. */
export interface SessionEvents {
  /**
   * A message, in order. Text is a string, binary data a Buffer. The message is acknowledged once the listeners were called,
   * and the client then forgets it.
   */
  message: [data: string | Buffer];
  /** A message outside the stream, from the client's `sendVolatile`. */
  volatile: [data: string | Buffer];
  /** The client dropped `count` of its own messages, from number `first` on. They never arrive. */
  gap: [gap: { first: number; count: number }];
  /** The client is back on a new connection, and nothing is lost. The first connection has no event: it calls the handler. */
  attached: [epoch: number];
  /** The connection is lost, and the session waits for its client. */
  detached: [loss: Loss];
  /** The session ended. It is the last event. */
  closed: [end: End];
  /** A listener of this session threw, or its promise was rejected. The plugin logs the error, and the session goes on. */
  error: [error: unknown];
}

/** The data of a message. Bytes are copied, so the application may change them afterwards. */
export type Sendable = string | ArrayBuffer | ArrayBufferView;

/** Returns the driver of a session. */
export let driverOf: (session: Session) => Driver;

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
  #driver: Driver;

  /** @internal */
  constructor(driver: Driver) {
    super({ captureRejections: true });
    this.#driver = driver;
    (this as EventEmitter).on("newListener", Session.#deliverLater);
  }

  /** Delivers the messages that wait to a listener that is added now. */
  static #deliverLater(this: Session): void {
    queueMicrotask(() => this.#driver.step());
  }

  /** Adds this session to a room, until it leaves the room or ends. */
  join(room: string): void {
    this.#driver.server.rooms.join(this, room);
  }

  /** Removes this session from a room. */
  leave(room: string): void {
    this.#driver.server.rooms.leave(this, room);
  }

  /** The rooms of this session. */
  get rooms(): ReadonlySet<string> {
    return this.#driver.server.rooms.of(this);
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
