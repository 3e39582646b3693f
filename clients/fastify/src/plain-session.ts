/**
 * The server's end towards a client that speaks plain WebSocket: one connection, nothing resumed. It has the heartbeat
 * and the bounds of a session and the same shape, so that one driver and one handler serve both kinds of client.
 *
 * Most messages pass it by: one that comes while none waits goes to the application, and one that is sent while none
 * waits goes to the connection. Queues are there only while something is in them.
 *
 * Pure: time and randomness are arguments. Source: `docs/PROTOCOL.md` "Plain peers".
 */

import { type Bytes, type Data, type Delivery, type Frame, Type } from "@mainstay/client/protocol";
import { type Action, Heartbeat } from "./heartbeat.js";
import { Queue, sizeOf } from "./queue.js";
import { CLOSE_TIMEOUT, type Output, type Over, type SessionConfig } from "./server-session.js";

export class PlainSession {
  readonly epoch = 1;
  /** It says nothing of the messages that it takes. */
  readonly limit = Infinity;
  connection: number | undefined;
  over: Over | undefined;
  /** Messages accepted for the client. */
  sent = 0;
  private heartbeat: Heartbeat;
  private ping: number | undefined;
  private inbox: Queue | undefined;
  private outbox: Queue | undefined;
  private handed = 0;
  /** What was accepted leaves first, if the client takes it; then the Close. */
  private closing: { code: number; reason: string; until: number; isSaid: boolean } | undefined;
  private config: SessionConfig;

  constructor(now: number, config: SessionConfig, connection: number, random: () => number) {
    this.config = config;
    this.connection = connection;
    this.heartbeat = new Heartbeat(now, config.heartbeat, random);
  }

  /** `length`: the bytes of the message. */
  receive(now: number, _connection: number, frame: Frame, length?: number): void {
    this.heartbeat.bytes(now);
    if (frame?.type === Type.Data && this.isOpen) (this.inbox ??= new Queue()).push(frame.data, length);
  }

  /** A message came that goes to the application at once. False: it has to wait behind others; {@link receive} takes it. */
  passIn(now: number): boolean {
    if (this.inbox || !this.isOpen) return false;
    this.heartbeat.bytes(now);
    this.handed++;
    return true;
  }

  /** Whether a message that is sent now may go to the connection at once. Otherwise {@link send} takes it. */
  get passesOut(): boolean {
    return !this.outbox && this.ping === undefined && this.isOpen;
  }

  /** Nothing is to be done before something happens. */
  get isQuiet(): boolean {
    return !this.inbox && !this.hasOutput && this.isOpen;
  }

  /** Something waits for the connection. */
  get hasOutput(): boolean {
    return this.ping !== undefined || !!this.outbox || !!this.closing;
  }

  /** Something waits for the application. */
  get hasInput(): boolean {
    return !!this.inbox;
  }

  /** Whether more should be read now: the application is not too far behind. */
  get wantsInput(): boolean {
    return !this.inbox || this.inbox.holds(this.config.accept, 0);
  }

  /** A probe is not answered: {@link flushed} and {@link progress} matter. */
  get isProbing(): boolean {
    return this.heartbeat.isProbing;
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
    this.outbox = undefined;
  }

  send(data: Data): boolean {
    const length = sizeOf(data);
    if (!this.isOpen || (this.outbox && !this.outbox.holds(this.config.keep, length))) return false;
    (this.outbox ??= new Queue()).push(data, length);
    this.sent++;
    return true;
  }

  /** Nothing is numbered here: a message that is dropped if the client does not keep up. */
  sendVolatile(data: Data): void {
    this.send(data);
  }

  handOver(): Delivery | undefined {
    const data = this.inbox?.shift();
    if (!this.inbox?.length) this.inbox = undefined;
    return data === undefined ? undefined : { data, first: ++this.handed, count: 1 };
  }

  handOverVolatile(): undefined {}

  takeAuth(): { connection: number; credentials: Bytes } | undefined {
    return undefined;
  }

  verdict(): void {}

  /**
   * Ends in order: what was accepted is written first, and nothing more is handed over. What has not left within 10 s is
   * dropped with the connection.
   */
  close(now: number, code: number, reason: string): void {
    if (!this.isOpen) return;
    this.closing = { code, reason, until: now + CLOSE_TIMEOUT, isSaid: false };
    this.inbox = undefined;
  }

  /** The session is open, or its client ended it and what came before waits. */
  get handsOver(): boolean {
    return !this.closing;
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
    const data = this.outbox?.shift();
    if (!this.outbox?.length) this.outbox = undefined;
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
    return (this.inbox?.bytes ?? 0) + (this.outbox?.bytes ?? 0);
  }

  get rtt(): number | undefined {
    return this.heartbeat.rtt;
  }
}
