/**
 * The server's end of a plain WebSocket: one connection, and nothing is resumed. It has the heartbeat and the limits of a
 * session, and the same methods, so one driver and one handler serve both kinds of client.
 *
 * Most messages bypass its queues: a message that arrives while none waits goes straight to the application, and a message
 * that is sent while none waits goes straight to the connection. A queue exists only while it holds messages.
 *
 * Pure: time and randomness are arguments. Source: `docs/PROTOCOL.md` "Plain peers".
 */

import { type Bytes, type Data, type Delivery, type Frame, Type } from "@mainstay/client/protocol";
import { Heartbeat, type HeartbeatAction } from "./heartbeat.js";
import { ByteQueue, sizeOf } from "./queue.js";
import { ABORT_TIMEOUT_MS, CLOSE_TIMEOUT_MS, type Closed, type Output, type SessionConfig, type Traffic } from "./server-session.js";

/** The session of a plain client. */
export class PlainSession {
  readonly epoch = 1;
  /** A plain client announces no largest message. */
  readonly limit = Infinity;
  connection: number | undefined;
  /** Set once the session has ended. */
  closed: Closed | undefined;
  /** Messages accepted for the client. */
  accepted = 0;
  private heartbeat: Heartbeat;
  private ping: number | undefined;
  private inbox: ByteQueue | undefined;
  private outbox: ByteQueue | undefined;
  private delivered = 0;
  /** The Close that follows the accepted messages. */
  private closing: { code: number; reason: string; until: number; isWritten: boolean } | undefined;
  private config: SessionConfig;

  constructor(now: number, config: SessionConfig, connection: number, random: () => number) {
    this.config = config;
    this.connection = connection;
    this.heartbeat = new Heartbeat(now, config.heartbeatMs, random);
  }

  /** Handles a message of the client. `length`: its bytes. */
  handleFrame(now: number, _connection: number, frame: Frame, length?: number): void {
    this.heartbeat.handleBytes(now);
    if (frame?.type === Type.Data && this.isOpen) (this.inbox ??= new ByteQueue()).push(frame.data, length);
  }

  /**
   * Counts a message that the driver delivers to the application at once. Returns false if the message has to wait behind
   * others: pass it to {@link handleFrame}.
   */
  bypassInbox(now: number): boolean {
    if (this.inbox || !this.isOpen) return false;
    this.heartbeat.handleBytes(now);
    this.delivered++;
    return true;
  }

  /** Whether the driver may write a message to the connection at once. Otherwise pass it to {@link send}. */
  get bypassesOutbox(): boolean {
    return !this.outbox && this.ping === undefined && this.isOpen;
  }

  /** Whether the driver has nothing to do. */
  get isQuiet(): boolean {
    return !this.inbox && !this.hasOutput && this.isOpen;
  }

  /** Whether something waits for the connection. */
  get hasOutput(): boolean {
    return this.ping !== undefined || !!this.outbox || !!this.closing;
  }

  /** Whether something waits for the application. */
  get hasInput(): boolean {
    return !!this.inbox;
  }

  /** Whether the driver should read more: the inbox has room. */
  get wantsInput(): boolean {
    return !this.inbox || this.inbox.hasRoom(this.config.accept, 0);
  }

  /** Whether a probe is unanswered: {@link handleFlushed} and {@link handleWriteProgress} matter then. */
  get isProbing(): boolean {
    return this.heartbeat.isProbing;
  }

  /** Records that bytes arrived, or that the driver left them unread because of {@link wantsInput}. */
  handleBytes(now: number): void {
    if (this.wantsInput) this.heartbeat.handleBytes(now);
    else this.heartbeat.handleUnread(now);
  }

  /** Handles an RFC 6455 Pong, or a Ping with the nonce -1. */
  handlePong(now: number, _connection: number, nonce: number): void {
    this.heartbeat.handlePong(now, nonce);
  }

  /** Records that everything written so far has left the process. */
  handleFlushed(now: number): void {
    // A probe that was not written yet has not left.
    if (this.ping === undefined) this.heartbeat.handleFlushed(now);
  }

  /** Records that some written bytes left the process. */
  handleWriteProgress(now: number): void {
    this.heartbeat.handleWriteProgress(now);
  }

  /** Handles the end of the connection, which ends the session. */
  handleLost(_now: number, _connection: number, code: number, reason: string): void {
    const { closing } = this;
    this.connection = undefined;
    if (this.closed) return;
    if (closing) this.closed = { cause: "ended", code: closing.code, reason: closing.reason, byUs: true };
    else this.closed = { cause: code === 1006 || code === 4408 ? "lost" : "ended", code, reason, byUs: false };
    this.outbox = undefined;
  }

  /** Accepts a message for the client. Returns false if there is no room, or the session is ending. */
  send(data: Data): boolean {
    const length = sizeOf(data);
    if (!this.isOpen || (this.outbox && !this.outbox.hasRoom(this.config.keep, length))) return false;
    (this.outbox ??= new ByteQueue()).push(data, length);
    this.accepted++;
    return true;
  }

  /**
   * Sends an ordinary message, which is dropped if there is no room: a plain client's messages have no numbers.
   */
  sendVolatile(data: Data): void {
    this.send(data);
  }

  /** Returns the next message for the application; undefined if none waits. */
  deliver(): Delivery | undefined {
    const data = this.inbox?.shift();
    if (!this.inbox?.length) this.inbox = undefined;
    return data === undefined ? undefined : { data, first: ++this.delivered, count: 1 };
  }

  deliverVolatile(): undefined {}

  pollAuth(): { connection: number; credentials: Bytes } | undefined {
    return undefined;
  }

  handleAuthResult(): void {}

  /**
   * Ends the session in order: accepted messages are written first, and nothing more is delivered. Messages that have not
   * left within 10 s are dropped with the connection.
   */
  close(now: number, code: number, reason: string): void {
    if (!this.isOpen) return;
    this.closing = { code, reason, until: now + CLOSE_TIMEOUT_MS, isWritten: false };
    this.inbox = undefined;
  }

  /** Ends the session now: messages that were not written yet are dropped, and the Close is written at once. */
  abort(now: number, code: number, reason: string): void {
    this.close(now, code, reason);
    this.outbox = undefined;
    if (this.closing) this.closing.until = Math.min(this.closing.until, now + ABORT_TIMEOUT_MS);
  }

  /** Whether messages are delivered: the session is open, or its client ended it and messages received before wait. */
  get delivers(): boolean {
    return !this.closing;
  }

  goAway(): void {}

  /** Ends the session at once, without a Close. */
  evict(reason: string): void {
    this.closed ??= { cause: "evicted", code: 1006, reason, byUs: true };
  }

  /** Returns the next thing to write to the connection; undefined if there is none. */
  pollTransmit(): Output | undefined {
    const { closing, ping } = this;
    if (closing?.isWritten) return;
    if (ping !== undefined) {
      this.ping = undefined;
      return { kind: "ping", nonce: ping };
    }
    const data = this.outbox?.shift();
    if (!this.outbox?.length) this.outbox = undefined;
    if (data !== undefined || !closing) return data;
    closing.isWritten = true;
    return { kind: "close", code: closing.code, reason: closing.reason };
  }

  /** Does what is due. Call it at {@link pollTimeout}, until it returns undefined or `dead`. */
  handleTimeout(now: number): HeartbeatAction | undefined {
    if (this.connection === undefined) return;
    if (this.closing && this.closing.until <= now) return { kind: "dead", evidence: "stalled" };
    const action = this.heartbeat.handleTimeout(now);
    if (action?.kind === "probe") this.ping = action.nonce;
    return action;
  }

  /** Returns when to call {@link handleTimeout}. */
  pollTimeout(): number {
    return this.connection === undefined ? Infinity : Math.min(this.heartbeat.pollTimeout(), this.closing?.until ?? Infinity);
  }

  /** Whether the session accepts messages, in both directions. */
  get isOpen(): boolean {
    return !this.closed && !this.closing;
  }

  get traffic(): Traffic {
    return { delivered: this.delivered, accepted: this.accepted };
  }

  /** Payload bytes that wait, in both directions. */
  get queueBytes(): number {
    return (this.inbox?.bytes ?? 0) + (this.outbox?.bytes ?? 0);
  }

  /** The smoothed round-trip time of the heartbeat; undefined before the first answer. */
  get rtt(): number | undefined {
    return this.heartbeat.rtt;
  }
}
