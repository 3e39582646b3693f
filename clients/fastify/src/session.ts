/** The application's handle on one session. */

import { EventEmitter } from "node:events";
import { type Data, MessageTooLargeError } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { Driver } from "./driver.js";

/** What is known of a session's client, by its newest connection. */
export interface Peer {
  /** As `request.ip`. */
  address: string;
  /** The application's subprotocol, if one was agreed on. */
  subprotocol: string | undefined;
  /** Who it is: what `authenticate` returned; "" is nobody in particular. */
  principal: string;
}

/** How a session ended. */
export interface Closed {
  /**
   * `ended`: on purpose, by either end. `expired`: the client did not come back in time. `lost`: the connection of a
   * plain client broke. `evicted`: this server went away.
   */
  why: "ended" | "expired" | "lost" | "evicted";
  /** The code of the end; 1006 if none was said. */
  code: number;
  reason: string;
}

/** How a connection was lost. */
export interface Loss {
  /**
   * 4408: the heartbeat's verdict on a client that fell silent. 1006: the connection broke. Else the code with which the
   * client closed it.
   */
  code: number;
  reason: string;
}

/** The events of a session, with their arguments. */
export interface SessionEvents {
  /** A message, in order; binary ones are Buffers. Calling the listeners counts as received: the client may forget it. */
  message: [data: string | Buffer];
  /** A message from outside the stream. */
  volatile: [data: string | Buffer];
  /** The client's policy dropped messages of its own, which will never come. */
  gap: [gap: { first: number; count: number }];
  /** The client is back; nothing is lost. Not for the first connection: that is when the handler is called. */
  attached: [epoch: number];
  /** The connection is gone; the session waits for its client. */
  detached: [loss: Loss];
  /** Nothing follows. */
  closed: [closed: Closed];
  /** A listener of this session threw, or its promise was rejected. It is logged, and the session goes on. */
  error: [error: unknown];
}

/** What may be sent. Bytes are copied. */
export type Sendable = string | ArrayBuffer | ArrayBufferView;

/** What moves a session. */
export let driverOf: (session: Session) => Driver;

/**
 * One session. It outlives connections: while the client is away, messages to it are kept, and the handler with its
 * listeners stays. The session of a plain client is one connection.
 *
 * Take messages either with `on("message")` or with `for await`. Until one of the two is there they wait, and hold the
 * client back.
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
    (this as EventEmitter).on("newListener", Session.#wake);
  }

  /** A listener that is set now gets what waited. */
  static #wake(this: Session): void {
    queueMicrotask(() => this.#driver.step());
  }

  /** Puts this session into a room, until it leaves or is over. */
  join(room: string): void {
    this.#driver.host.rooms.join(this, room);
  }

  leave(room: string): void {
    this.#driver.host.rooms.leave(this, room);
  }

  /** The rooms that it is in. */
  get rooms(): ReadonlySet<string> {
    return this.#driver.host.rooms.of(this);
  }

  /** The public name, 16 hexadecimal digits, for logs; opens nothing. Empty for a plain client. */
  get id(): string {
    return this.#driver.id;
  }

  /** Counts the connections, from 1. */
  get epoch(): number {
    return this.#driver.machine.epoch;
  }

  /** What the client speaks: `session` survives reconnects, `plain` is one connection. */
  get mode(): "session" | "plain" {
    return this.#driver.mode;
  }

  get state(): "attached" | "parked" | "over" {
    const { machine } = this.#driver;
    return machine.over ? "over" : machine.connection === undefined ? "parked" : "attached";
  }

  get peer(): Peer {
    return this.#driver.peer;
  }

  /** The upgrade request of the newest connection. */
  get request(): FastifyRequest {
    return this.#driver.request;
  }

  /** Smoothed round-trip time of the connection's heartbeats, in milliseconds. Undefined before the first and while parked. */
  get rtt(): number | undefined {
    return this.#driver.machine.rtt;
  }

  /**
   * Sends a message. Settles when it is accepted, which waits while as much is kept as may be: who does not await makes
   * the queue unbounded. From then on it is kept until the client has acknowledged it, or a plain one's socket takes it.
   * False: the session is over, and the message was not accepted. Never rejects.
   * @throws MessageTooLargeError at once, if the client said that it takes no message of this size.
   */
  send(data: Sendable): Promise<boolean> {
    return this.#driver.send(this.#fitting(data));
  }

  /** Sends a message now, or returns false: there is no room, or the session is over. @throws MessageTooLargeError */
  trySend(data: Sendable): boolean {
    return this.#driver.trySend(this.#fitting(data));
  }

  /**
   * Sends a message that is not kept: lost if the client is away, never sent again. The newest 64 that wait stay.
   * @throws MessageTooLargeError
   */
  sendVolatile(data: Sendable): void {
    this.#driver.sendVolatile(this.#fitting(data));
  }

  /**
   * Ends the session in order: what was accepted is delivered first, for as long as the resume window. The client does
   * not come back.
   * @throws RangeError: the code may not be sent, or the reason is longer than 123 bytes.
   */
  close(code = 1000, reason = ""): void {
    const isCode = (code >= 1000 && code <= 1014 && ![1004, 1005, 1006].includes(code)) || (code >= 3000 && code <= 4999);
    if (!isCode) throw new RangeError(`close code ${code}: 1000 to 1014 without 1004 to 1006, or 3000 to 4999`);
    if (Buffer.byteLength(reason) > 123) throw new RangeError("close reason: at most 123 bytes");
    this.#driver.close(code, reason);
  }

  /** A larger message than the client takes would end every connection that it is written on. */
  #fitting(data: Sendable): Data {
    const { limit } = this.#driver.machine;
    const message = dataOf(data);
    const size = limit < Infinity ? Buffer.byteLength(message) : 0;
    if (size > limit) throw new MessageTooLargeError(size, limit);
    return message;
  }

  /** The messages, one at a time, until the session is over. Leaving the loop loses none. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string | Buffer, void, void> {
    for (let data; (data = await this.#driver.next()) !== undefined; ) yield data;
  }

  /** A listener that was an async function failed. */
  [Symbol.for("nodejs.rejection")](error: unknown, event: string): void {
    this.#driver.report(error, event);
  }
}

/** The application may write over its bytes while a copy waits to be acknowledged. */
export function dataOf(data: Sendable): Data {
  if (typeof data === "string") return data;
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice() as Uint8Array<ArrayBuffer>;
  if (data instanceof ArrayBuffer) return new Uint8Array(data.slice(0));
  throw new TypeError("a message is a string, an ArrayBuffer or a view of one");
}
