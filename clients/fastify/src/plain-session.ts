/**
 * The server's end towards a client that speaks plain WebSocket: one connection, nothing resumed. It has the heartbeat
 * and the bounds of a session and the same shape, so that one driver and one handler serve both kinds of client.
 *
 * Pure: time and randomness are arguments. Source: `docs/PROTOCOL.md` "Plain peers".
 */

import { bytesOf, type Bytes, type Data, type Delivery, type Frame, Type } from "@mainstay/client/protocol";
import { type Action, Heartbeat } from "./heartbeat.js";
import { CLOSE_TIMEOUT, type Output, type Over, type SessionConfig } from "./server-session.js";

export class PlainSession {
  readonly epoch = 1;
  /** It says nothing of the messages that it takes. */
  readonly limit = Infinity;
  connection: number | undefined;
  over: Over | undefined;
  private heartbeat: Heartbeat;
  private ping: number | undefined;
  private inbox = new Queue();
  private outbox = new Queue();
  private handed = 0;
  private sent = 0;
  /** What was accepted leaves first, if the client takes it; then the Close. */
  private closing: { code: number; reason: string; until: number; isSaid: boolean } | undefined;
  private config: SessionConfig;

  constructor(now: number, config: SessionConfig, connection: number, random: () => number) {
    this.config = config;
    this.connection = connection;
    this.heartbeat = new Heartbeat(now, config.heartbeat, random);
  }

  receive(now: number, _connection: number, frame: Frame): void {
    this.heartbeat.bytes(now);
    if (frame?.[0] === Type.Data && this.isOpen) this.inbox.push(frame[1]);
  }

  /** Whether more should be read now: the application is not too far behind. */
  get wantsInput(): boolean {
    return this.inbox.holds(this.config.accept, 0);
  }

  /** Any bytes arrived, or were left unread because {@link wantsInput} says so. */
  bytes(now: number): void {
    if (this.wantsInput) this.heartbeat.bytes(now);
    else this.heartbeat.unread(now);
  }

  pong(now: number, _connection: number, nonce: number): void {
    this.heartbeat.pong(now, nonce);
  }

  flushed(now: number): void {
    // A probe that was not even given out has not left.
    if (this.ping === undefined) this.heartbeat.flushed(now);
  }

  progress(now: number): void {
    this.heartbeat.progress(now);
  }

  /** The connection is gone, and the session with it. */
  lost(_now: number, _connection: number, code: number, reason: string): void {
    const { closing } = this;
    this.connection = undefined;
    if (this.over) return;
    if (closing) this.over = { why: "ended", code: closing.code, reason: closing.reason, byUs: true };
    else this.over = { why: code === 1006 || code === 4408 ? "lost" : "ended", code, reason, byUs: false };
    this.outbox = new Queue();
  }

  send(data: Data): boolean {
    if (!this.isOpen || !this.outbox.holds(this.config.keep, bytesOf(data).length)) return false;
    this.outbox.push(data);
    this.sent++;
    return true;
  }

  /** Nothing is numbered here: a message that is dropped if the client does not keep up. */
  sendVolatile(data: Data): void {
    this.send(data);
  }

  handOver(): Delivery | undefined {
    const data = this.inbox.shift();
    return data === undefined ? undefined : { data, first: ++this.handed, count: 1 };
  }

  handOverVolatile(): undefined {}

  takeAuth(): { connection: number; credentials: Bytes } | undefined {
    return undefined;
  }

  verdict(): void {}

  /** Ends in order: what was accepted is written first. What has not left within 10 s is dropped with the connection. */
  close(now: number, code: number, reason: string): void {
    if (this.isOpen) this.closing = { code, reason, until: now + CLOSE_TIMEOUT, isSaid: false };
  }

  goAway(): void {}

  evict(reason: string): void {
    this.over ??= { why: "evicted", code: 1006, reason, byUs: true };
  }

  transmit(): Output | undefined {
    const { closing, ping } = this;
    if (closing?.isSaid) return;
    if (ping !== undefined) {
      this.ping = undefined;
      return { ping };
    }
    const data = this.outbox.shift();
    if (data !== undefined || !closing) return data;
    closing.isSaid = true;
    return { code: closing.code, reason: closing.reason };
  }

  timeout(now: number): Action | undefined {
    if (this.connection === undefined) return;
    if (this.closing && this.closing.until <= now) return { is: "dead", evidence: "stalled" };
    const action = this.heartbeat.timeout(now);
    if (action?.is === "probe") this.ping = action.nonce;
    return action;
  }

  get dueAt(): number {
    return this.connection === undefined ? Infinity : Math.min(this.heartbeat.dueAt, this.closing?.until ?? Infinity);
  }

  get isOpen(): boolean {
    return !this.over && !this.closing;
  }

  /** Messages handed to the application, and accepted for the client. */
  get traffic(): [received: number, sent: number] {
    return [this.handed, this.sent];
  }

  /** Payload bytes that wait, either way. */
  get queueBytes(): number {
    return this.inbox.bytes + this.outbox.bytes;
  }

  get rtt(): number | undefined {
    return this.heartbeat.rtt;
  }
}

/** Messages that wait, and their bytes. */
class Queue {
  bytes = 0;
  private items: Data[] = [];

  push(data: Data): void {
    this.items.push(data);
    this.bytes += bytesOf(data).length;
  }

  shift(): Data | undefined {
    const data = this.items.shift();
    if (data !== undefined) this.bytes -= bytesOf(data).length;
    return data;
  }

  /** Whether one more of this length stays within the bound. One always does. */
  holds([messages, bytes]: readonly [number, number], length: number): boolean {
    return !this.items.length || (this.items.length < messages && this.bytes + length <= bytes);
  }
}
