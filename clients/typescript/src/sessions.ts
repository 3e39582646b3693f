/**
 * The machine that speaks `mainstay.v1` if the server does. For a server that does not, a {@link Machine} goes on in its
 * place, from the first connection on: a promise made in one mode cannot be kept in the other.
 *
 * A replacement may be opened beside the attached connection: after GOAWAY, and when a probe stays unanswered.
 */

import { Machine, type MachineConfig, type Mode, type MachineEvent, NO_ANSWER, type Transmit } from "./machine.js";
import type { ClientSession, SessionEvent } from "./session.js";
import { type Data, decode, type Delay, type ProtocolError, type Received, toHex, Type, viewOf, type Welcome } from "./wire.js";

/** Offered before sessions: a server that chooses the first offer without looking, or has to choose one, then speaks plain WebSocket. */
const PLAIN = "plain";
const SESSION = "mainstay.v1";

export class SessionMachine extends Machine {
  override mode: Mode | undefined = undefined;
  declare clientSession: ClientSession;
  /** The session's public name. */
  name = "";
  protected override offers = true;
  /** A connection that opened without an offer. It waits while the client offers sessions once more: the server may only have been away. */
  private trial = 0;
  private receivedOnTrial: Received[] = [];
  /** How the trial was closed, if the server had sent everything before. */
  declare private trialLoss: [code: number, reason: string] | undefined;
  /** When HELLO was sent; when the session was detached, and for how long the server keeps it then. */
  declare private helloAt: number;
  private leftAt = 0;
  private windowMs = 0;
  /** The last number written before the last probe; and the last number that a PONG has shown to have arrived. */
  private asked = 0;
  private proven = 0;
  /** When to open a replacement, unless a message comes. */
  private replaceAt = Infinity;
  private probes = 0;
  /** Where the server wants the next connection; the attempt takes it. */
  declare endpoint: string | undefined;
  /** The server's advice for the next attempt. */
  private advice: Delay = { earliestMs: 0, latestMs: 0 };

  constructor(now: number, config: MachineConfig, random: () => number, session: ClientSession) {
    super(now, config, random);
    this.clientSession = session;
    this.outputs = session.outputs;
  }

  override handleOpened(id: number, protocol: string): void {
    const [name, application = ""] = protocol.split("+") as [string, string?];
    const isSession = name === SESSION;
    this.protocol = isSession ? application : name === PLAIN ? "" : protocol;
    if (this.mayBePlain && !this.offers) {
      this.trial = id;
      this.receivedOnTrial = [];
      this.trialLoss = undefined;
      this.offers = true;
      this.dial();
    } else if (isSession) this.clientSession.handleOpened((this.helloAt = this.nowMs), id);
    else if (!this.mayBePlain) this.handleLost(id, 1006, "the server speaks another protocol now");
    else this.becomePlain(id);
  }

  override handleLost(id: number, code: number, reason: string): void {
    if (!id) return;
    if (id === this.trial) return this.trialLost(code, reason);
    const neverSpoke = this.mayBePlain && !this.isSuspended && code === 1006 && id === this.dialled && this.clientSession.opening?.id !== id;
    if (id === this.current) this.leftAt = this.nowMs;
    this.clientSession.handleLost(id, code, reason);
    this.followSession();
    // After a session, a plain server is the least likely reason, so an attempt without an offer is the last resort.
    if (neverSpoke && (!this.mode || !this.offers || this.attempts > 4)) {
      // Browsers fail a connection whose server answers an offer with no subprotocol.
      this.offers = !this.offers;
      this.forget(id);
      if (this.trial) return this.becomePlain(this.trial);
      // At once, so that no server that starts in between gets an attempt without an offer.
      if (!this.offers && reason !== NO_ANSWER) return this.dial();
    }
    super.handleLost(id, code, reason);
  }

  /** The trial is over. A server that restarts shows nothing about what it speaks; any other may have sent everything that it had to send. */
  private trialLost(code: number, reason: string): void {
    this.forget(this.trial);
    if (code === 1006 ? !this.receivedOnTrial.length : [1001, 1012, 1013].includes(code)) this.trial = 0;
    else this.trialLoss = [code, reason];
  }

  /** Whether the server may turn out to be a plain one: it never attached a session, or it has forgotten the session by now. */
  private get mayBePlain(): boolean {
    return !this.mode || (!this.current && this.nowMs - this.leftAt > this.windowMs);
  }

  override handleMessage(id: number, data: Received): void {
    if (id === this.trial) return void this.receivedOnTrial.push(data);
    if (id === this.current) this.noteAlive();
    try {
      const message = viewOf(data);
      const frame = decode(message);
      if (frame?.type === Type.Pong && id === this.current && frame.nonce === this.probes) {
        this.noteAnswer();
        this.proven = this.asked;
      }
      if (frame?.type === Type.Data || frame?.type === Type.Ack || frame?.type === Type.Pong) this.noteProgress(message.length);
      this.clientSession.handleFrame(id, frame);
      this.followSession();
    } catch (error) {
      const { message, isFatal } = error as ProtocolError;
      this.followSession();
      this.events.push({ type: "error", error });
      if (isFatal) {
        this.clientSession.abandon(message);
        return this.followSession();
      }
      this.forget(id, 4400, message);
      this.handleLost(id, 4400, message);
    }
  }

  override suspend(reason?: string): void {
    this.forget(this.trial);
    this.trial = 0;
    super.suspend(reason);
  }

  override send(data: Data): number {
    return this.clientSession.send(data, !!this.beginning);
  }

  override endNow(code: number, reason: string, wasClean?: boolean, fate = this.clientSession.fate()): void {
    this.forget(this.trial);
    super.endNow(code, reason, wasClean, fate);
  }

  override pollEvent(): MachineEvent | undefined {
    // The last message that the application read may have ended the session.
    this.followSession();
    return super.pollEvent();
  }

  protected override nextMessage(): Transmit | undefined {
    const { clientSession: session } = this;
    if (session.current && !this.beginning) session.begin();
    if (this.closeWith && !this.waiting) session.close(this.closeWith.code, this.closeWith.reason);
    const next = session.pollTransmit(this.nowMs);
    this.updateOwed();
    return next;
  }

  /**
   * Counts from when a message is written that is neither acknowledged nor proven to have arrived. A PONG proves it for all messages
   * written before its PING, so a server whose application lags behind is probed once. While another connection is being opened this
   * one is not written, and no answer is due.
   */
  private updateOwed(): void {
    const { flow, opening } = this.clientSession;
    const { acknowledged, written } = flow.outbox;
    this.owedAt = Math.max(acknowledged, this.proven) < written && !opening ? Math.min(this.owedAt, this.nowMs) : Infinity;
  }

  override probe(): void {
    super.probe();
    this.replaceAt = Math.min(this.replaceAt, this.nowMs + 1000);
  }

  protected override writeProbe(): unknown {
    this.asked = this.clientSession.flow.outbox.written;
    this.clientSession.ping(++this.probes);
    return true;
  }

  protected override abandon(id: number): void {
    super.abandon(id);
    this.clientSession.handleLost(id);
    this.followSession();
  }

  protected override noteAlive(): void {
    super.noteAlive();
    this.replaceAt = Infinity;
  }

  override handleTimeout(): void {
    if (this.replaceAt <= this.nowMs) {
      this.replaceAt = Infinity;
      if (this.current && this.dialAt === Infinity) this.dial();
    }
    super.handleTimeout();
  }

  override pollTimeout(): number {
    return Math.min(super.pollTimeout(), this.clientSession.pollTimeout(), this.current ? this.replaceAt : Infinity);
  }

  protected override get keeps(): number {
    return this.clientSession.flow.outbox.last + this.epoch + this.waiting;
  }

  override get bufferedAmount(): number {
    return this.clientSession.flow.outbox.bytes;
  }

  /** This server speaks no sessions: a {@link Machine} goes on from here. */
  private becomePlain(id: number): void {
    // Messages that were sent before it was known what the peer speaks.
    const { fate, unsent } = this.clientSession.takeUnsent();
    if (fate.unknown || this.epoch) this.events.push({ type: "gap", fate });
    const machine = Object.assign(new Machine(this.nowMs, this.behaviour, this.chance), this, { mode: "plain", offers: false, epoch: 0, name: "", unsent });
    this.successor = machine;
    machine.handleOpened(id, this.protocol);
    if (id !== this.trial) return;
    for (const data of this.receivedOnTrial) machine.handleMessage(id, data);
    if (this.trialLoss) machine.handleLost(id, ...this.trialLoss);
  }

  /** Advice takes precedence, up to 10 minutes, and its range is widened to 1 s or a tenth of its length. */
  protected override backoff(isAlone: boolean, retryMs?: number): number {
    const own = super.backoff(isAlone, retryMs);
    const { earliestMs, latestMs } = this.advice;
    this.advice = { earliestMs: 0, latestMs: 0 };
    if (!latestMs || retryMs! >= 0) return own;
    const from = Math.min(Math.max(earliestMs, 1), 540_000);
    const to = Math.min(Math.max(latestMs, from * 1.1, from + 1000), 600_000);
    return from + (to - from) * this.chance();
  }

  // ---- what happens to the session ------------------------------------------------------------------

  /** Handles the events of the session, or passes them on. */
  private followSession(): void {
    for (let event; (event = this.clientSession.pollEvent()); ) this.handleSession(event);
  }

  private handleSession(event: SessionEvent): void {
    if (event.type === "attached") this.handleAttached(event.id, event.welcome);
    else if (event.type === "refused") this.handleRefused(event.code, event.delay);
    else if (event.type === "goAway") {
      this.endpoint = event.endpoint ?? this.endpoint;
      this.handleGoAway(event.delay, event.closeInMs);
    }
    else if (event.type === "ended") this.endNow(event.code, event.reason, event.wasClean, event.fate);
    else this.events.push(event);
  }

  private handleAttached(id: number, { id: sessionId, epoch, resumed, resumeWindowMs, heartbeatIntervalMs, resumeAt }: Welcome): void {
    const announced = Math.min(Math.max(heartbeatIntervalMs, 100), 3_600_000);
    // The first attach of this socket opens it too, also when it resumes the session of a page that was reloaded.
    const isOpening = !resumed || !this.epoch;
    this.forget(this.trial);
    this.forget(this.current);
    this.trial = 0;
    this.mode = "session";
    this.windowMs = resumeWindowMs;
    this.endpoint = resumeAt;
    this.asked = this.proven = 0;
    // The server may have judged credentials in this time: it counts up to a second, so that no limit becomes long.
    this.rtt ??= Math.min(this.nowMs - this.helloAt, 1000);
    this.epoch = epoch;
    this.name = toHex(sessionId);
    this.attach(id, 2 * announced + 5000, Math.max(announced / 4, 250), Infinity);
    if (isOpening) this.beginning = id;
    this.events.push({ type: "session", mode: "session", resumed, epoch, id: this.name });
    if (isOpening && !this.closeWith) this.events.push({ type: "open" });
  }

  private handleRefused(code: number, delay: Delay): void {
    this.advice = delay;
    super.handleLost(this.dialled, code, `refused with ${code}`);
  }

  private handleGoAway({ earliestMs, latestMs }: Delay, closeInMs: number): void {
    // A replacement that is there before the server closes costs no interruption.
    this.advice = { earliestMs, latestMs: earliestMs < closeInMs ? Math.min(latestMs, closeInMs) : latestMs };
    if (this.dialAt === Infinity) this.dialAt = this.nowMs + this.backoff(false);
  }
}

/** The subprotocols to ask for, with an offer of sessions, if the application asks for these. */
export const offerFor = (names: string[]): string[] =>
  names.length ? [...names, ...names.map((name) => `${SESSION}+${name}`)] : [PLAIN, SESSION];
