/**
 * A client's life: dialling, attached, probing, waiting, ended. It decides when to dial and how long to wait;
 * `driver.ts` opens connections when it is asked to, moves messages, and reports what happened.
 *
 * This machine speaks to plain peers: it reconnects, watches for silence, and reports every re-attach as fresh.
 * `sessions.ts` adds `mainstay.v1`. At most two connections live at a time: the attached one, and one being opened,
 * which follows it, or with sessions replaces it (after GOAWAY, or when a probe stays unanswered).
 *
 * Pure: time is what the driver set `nowMs` to, and randomness an argument. The driver polls for what is to be done
 * ({@link Machine.pollTransmit}), what happened ({@link Machine.pollEvent}) and when to call again. Milliseconds throughout.
 * Source: `docs/PROTOCOL.md` "Attaching", "Heartbeat", "Closing"; `docs/DEFAULTS.md`.
 */

import { concernsOne, isFinal } from "./close.js";
import type { Fate, SessionTransmit } from "./session.js";
import { sizeOf } from "./text.js";
import type { Data, Received, Window } from "./wire.js";

/** What the peer turned out to speak. */
export type Mode = "session" | "plain";

/** What a client is doing. Messages flow while it is `attached`; nothing follows `ended`. */
export type Status = "connecting" | "attached" | "waiting" | "suspended" | "closing" | "ended";

/** Something that the driver does to a connection. */
export type Transmit =
  | SessionTransmit
  /** Open a connection, with an offer of sessions or without, and report with `handleOpened` or `handleLost`. */
  | { kind: "dial"; id: number; offers: boolean }
  /** Begin the closing handshake of the connection, and report its end with `handleLost`. */
  | { kind: "close"; id: number; code: number; reason: string };

/** What happened, for the application: the events of the socket, but for its status. */
export type MachineEvent =
  | { type: "open" }
  | { type: "message"; data: Received }
  | { type: "session"; mode: Mode; resumed: boolean; epoch: number; id: string }
  | { type: "gap"; fate?: Fate }
  | { type: "volatile"; data: Data }
  | { type: "authenticated"; accepted: boolean }
  | { type: "error"; error: unknown; behind?: number }
  | { type: "close"; code: number; reason: string; wasClean: boolean; fate: Fate | undefined };

/** How a client behaves. */
export interface MachineConfig {
  /** The time from dialling to the attach. @default 10000 */
  connectTimeoutMs?: number | undefined;
  /** Towards plain peers: a connection that is silent for so long is given up. @default never; with `ping`, two intervals and 5 s */
  silenceLimitMs?: number | undefined;
  /** Towards plain peers: an application's own ping. A message that `matches` is its answer, and is not delivered. */
  ping?: { message: Data; matches: (data: unknown) => boolean; intervalMs: number } | undefined;
  /** The client ends when a plain peer closes with 1000 or 3000-4999, instead of reconnecting. @default false */
  closeWithPeer?: boolean | undefined;
  /** Called after every lost connection and failed attempt: `false` ends the client with that code. @default the codes of PROTOCOL.md */
  shouldReconnectOnClose?: ((event: { code: number; reason: string }) => boolean) | undefined;
  /** The number of attempts in a row that may fail after the first; then the client ends with the code of the last. @default Infinity */
  maxRetries?: number | undefined;
  /**
   * The client ends with a `close` event instead of reporting a gap: for libraries that recover by themselves. Towards plain
   * peers it ends when the first connection is lost, with its code; when a session is lost, the code is 1006. @default false
   */
  closeOnGap?: boolean | undefined;
  /**
   * The bound of messages kept until they are acknowledged, or until a plain connection is there; towards plain peers only
   * their number counts. @default { messages: 1024, bytes: 4194304 }
   */
  keep?: Partial<Window> | undefined;
}

/** The reason of an attempt that was given up. */
export const NO_ANSWER = "no answer in time";

export class Machine {
  declare nowMs: number;
  mode: Mode | undefined = "plain";
  /** The application's subprotocol, if one was agreed on. */
  protocol = "";
  /** The number of attaches so far. */
  epoch = 0;
  /** Smoothed round-trip time; grows faster than it falls, so that one slow answer is enough to expect another. */
  declare rtt: number | undefined;
  declare isEnded: boolean | undefined;
  /** The last loss, or the end, until the driver has reported it. */
  declare loss: { code: number; reason: string; nextAttemptInMs?: number } | undefined;
  /** The driver sets it before every call, as `nowMs`: some of the bytes that were written have not left yet. */
  declare isBusy: unknown;
  /** The driver sets it before every call: the number of messages that wait there to be accepted, and go out before a close. */
  declare waiting: number;
  /** Set once the peer turned out to speak no sessions: the machine that the driver polls from then on, in place of this one. */
  declare successor: Machine | undefined;
  /** The connection in use, and the one that is being opened; 0, or nothing at first: none. */
  declare current: number;
  declare dialled: number;
  /** The connection whose `open` is being handled: messages sent meanwhile go before those that waited. */
  declare beginning: number | undefined;
  /** Messages that were accepted and never written to a connection. */
  unsent: Data[] = [];
  declare protected behaviour: MachineConfig;
  declare protected chance: () => number;
  /** Whether the next attempt offers sessions. */
  protected offers = false;
  protected outputs: Transmit[] = [];
  protected events: MachineEvent[] = [];
  declare protected closeWith: { code: number; reason: string } | undefined;
  /** When a close that is not complete is given up. */
  private closeBy = Infinity;
  /** The closing handshake of the current connection has begun. */
  declare private isLeaving: boolean | undefined;
  /** When to dial; while dialling, when to give up. */
  declare protected dialAt: number;
  /**
   * Factor of the limits. It doubles each time a connection is given up as silent, until the peer makes progress: a slow answer, or
   * a message that takes longer than the limit to arrive, looks like silence. The limit of a probe, which is short, is multiplied by
   * its square.
   */
  protected patience = 1;
  declare protected isSuspended: boolean | undefined;
  private lastId = 0;
  protected attempts = 0;
  /** When the current connection was attached. */
  declare private attemptsBefore: number;
  /** A replacement for the current connection has failed. */
  declare private hasFailed: boolean | undefined;
  /** From when on the current attempt is abandoned if the application or the page asks for a connection; and the same of the next attempt, as a duration. */
  declare private stuckAt: number;
  private stuckMs = 2000;
  declare private attachedAt: number;
  /** The current connection has brought a message or an acknowledgement. */
  declare private hasWorked: boolean | undefined;
  // The limits of the current connection: how long it may be silent, when it last was not, and the deadline of an open probe.
  declare private patienceMs: number;
  declare private slack: number;
  declare private aliveAt: number;
  declare private deadlineAt: number;
  /** Since when a message is written that the peer has not answered. */
  protected owedAt = Infinity;
  /** The length of the largest message that was received. */
  private largest = 0;
  /** The messages that had arrived when the connection seemed silent have been read. */
  declare private hasRead: boolean | undefined;
  /** When to probe next, and the interval of regular probes. */
  declare private probeAt: number;
  declare private pace: number;
  declare private probeSentAt: number;

  /** Dials at once. `random` returns numbers that are uniform in [0, 1). */
  constructor(now: number, config: MachineConfig, random: () => number) {
    this.nowMs = this.dialAt = now;
    this.behaviour = config;
    this.chance = random;
  }

  // ---- connections -------------------------------------------------------------------------------

  /** A dialled connection is open, and speaks this subprotocol. */
  handleOpened(id: number, protocol: string): void {
    this.protocol = protocol;
    const interval = this.behaviour.ping?.intervalMs ?? Infinity;
    const limit = this.behaviour.silenceLimitMs ?? 2 * interval + 5000;
    this.attach(id, limit, limit / 8, interval);
    this.beginning = id;
    if (this.epoch++) this.events.push({ type: "gap" });
    this.events.push({ type: "session", mode: "plain", resumed: false, epoch: this.epoch, id: "" });
    if (!this.closeWith) this.events.push({ type: "open" });
  }

  /** A connection is gone, could not be opened, or is given up. */
  handleLost(id: number, code: number, reason: string): void {
    this.forget(id);
    const { closeWithPeer, closeOnGap } = this.behaviour;
    const wasAttached = id === this.current;
    if (!id || (!wasAttached && id !== this.dialled)) return;
    if (wasAttached) {
      this.current = this.beginning = 0;
      // The code of the peer, or of the loss of its connection.
      if (this.isLeaving) return this.endNow(code === 4408 ? 1006 : code, reason);
      const lived = this.nowMs - this.attachedAt;
      // Replacements were delayed because this connection lived: their failures delay nothing now.
      this.attempts = lived >= (this.hasWorked ? 2000 : 10_000) ? 0 : this.attemptsBefore;
      this.abandonStuck();
      if (this.hasFailed && !this.dialled) this.dialAt = Infinity;
    } else {
      this.stopDialling();
      this.hasFailed = true;
    }
    const isMeant = code === 1000 || (code > 2999 && code !== 4408);
    const isOver = (closeOnGap && wasAttached) || (closeWithPeer && isMeant);
    if (!this.current && (isFinal(code) || (!this.isSuspended && ((isOver && this.mode === "plain") || !this.mayReconnect(code, reason))))) {
      // 4408 is the decision of this end, and would look like the peer's.
      return this.endNow(closeOnGap && code === 4408 ? 1006 : code, reason);
    }
    if (this.isEnded) return;
    // A replacement may be on its way already.
    if (this.dialAt === Infinity && !this.isSuspended) this.dialAt = this.nowMs + this.backoff(concernsOne(code), +/^1013retry_ms=(\d+)/.exec(code + reason)?.[1]!);
    this.loss = { code, reason, nextAttemptInMs: this.dialled || this.isSuspended ? 0 : this.dialAt - this.nowMs };
  }

  /** A message arrived on the current connection. */
  handleMessage(_id: number, data: Received): void {
    this.noteAlive();
    this.noteProgress((data as string).length ?? (data as ArrayBuffer).byteLength);
    const { ping } = this.behaviour;
    if (ping && this.ask(() => ping.matches(data))) this.noteAnswer();
    else if (!this.closeWith) this.events.push({ type: "message", data });
  }

  // ---- what the application does ----------------------------------------------------------------

  /** Accepts a message. 0: there is no room. */
  send(data: Data): number {
    if (this.beginning) return this.outputs.push(this.writePlain(this.beginning, data));
    return this.unsent.length < (this.behaviour.keep?.messages ?? 1024) ? this.unsent.push(data) : 0;
  }

  /** Dials at once if the client waits or is suspended, and probes the connection if it has one. */
  probeNow(): void {
    this.isSuspended = false;
    this.abandonStuck();
    if (!(this.current || this.dialled)) this.dialAt = this.nowMs;
    this.probe();
  }

  /** Leaves the connection with this code and dials at once; the count of attempts begins anew. */
  reconnect(code: number, reason: string): void {
    if (this.closeWith) return;
    this.forget(this.current, code, reason);
    this.suspend(reason);
    this.attempts = 0;
    this.probeNow();
  }

  /** Something suggests that the peer may be gone: asks it for an answer. Only a missing answer gives the connection up. */
  probe(): void {
    this.probeAt = this.nowMs;
  }

  /** Leaves the connection and stays away until {@link probeNow} or {@link reconnect}. */
  suspend(reason = "suspended"): void {
    this.isSuspended = true;
    this.handleLost(this.dialled, 1000, reason);
    this.handleLost(this.current, 1000, reason);
    this.dialAt = Infinity;
  }

  /** Ends in order: messages that were accepted are delivered first. Those that are not within 10 s are unknown. */
  close(code: number, reason: string): void {
    if (this.closeWith) return;
    this.closeWith = { code, reason };
    this.closeBy = this.nowMs + 10_000;
    if (this.current || this.keeps) this.probeNow();
    else this.endNow(code, reason, false);
  }

  /** Ends now. `wasClean`: the other end closed, or answered our closing. */
  endNow(code: number, reason: string, wasClean = code !== 1006, fate?: Fate): void {
    if (this.isEnded) return;
    this.isEnded = true;
    this.loss = { code, reason };
    this.closeWith ??= this.loss;
    this.dialAt = this.closeBy = Infinity;
    this.forget(this.dialled, code, reason);
    this.forget(this.current, code, reason);
    this.current = this.dialled = 0;
    this.events.push({ type: "close", code, reason, wasClean, fate });
  }

  // ---- time and output --------------------------------------------------------------------------

  /** Does what is due. */
  handleTimeout(): void {
    if (this.closeBy <= this.nowMs) this.endNow(this.closeWith!.code, this.closeWith!.reason, false);
    else if (this.dialAt > this.nowMs) this.current && this.watch();
    else if (this.dialled) this.handleLost(this.dialled, 1006, NO_ANSWER);
    else this.dial();
  }

  /**
   * A pause of this process is no evidence about the peer. So before a connection is given up, the messages that have arrived are
   * read; and after a timer that fires late by more than `slack`, only a fresh probe decides.
   */
  private watch(): void {
    const late = this.nowMs - Math.min(this.aliveAt + this.patienceMs, this.deadlineAt);
    // It stays due, so it is checked again when the messages that have arrived have been read.
    if ((this.hasRead = late >= 0 && !this.hasRead)) return;
    if (late >= 0) {
      if (late <= this.slack) {
        this.patience *= 2;
        return this.handleLost(this.current, 4408, "silent for too long");
      }
      this.noteAlive();
      this.probe();
    }
    if (this.doubtAt <= this.nowMs) {
      // A message that waits behind bytes that have not left is written and not sent: its time counts from when it is.
      if (!this.isBusy) this.probeAt = this.nowMs;
      this.owedAt = this.nowMs;
    }
    if (this.probeAt > this.nowMs) return;
    // A probe would wait behind bytes that have not left yet, and its time counts from when it leaves.
    this.probeAt = this.nowMs + (this.isBusy ? 250 : this.pace);
    if (!this.isBusy && this.deadlineAt === Infinity && this.writeProbe()) {
      this.probeSentAt = this.nowMs;
      // The time that an answer may wait behind other bytes, at a megabyte a second: those that are kept, and one message as large as the largest so far.
      const bulkMs = Math.floor((this.bufferedAmount + this.largest) / 1000);
      this.deadlineAt = this.nowMs + Math.min(Math.max(2000, 4 * (this.rtt ?? 0)) * this.patience ** 2, 20_000 * this.patience) + bulkMs;
    }
  }

  /** When a message has been unanswered for so long that a probe is due: so the end that sends notices a cut first. */
  private get doubtAt(): number {
    return this.owedAt + Math.min(Math.max(3000, 4 * (this.rtt ?? 0)), 20_000);
  }

  /** Returns when {@link handleTimeout} has something to do; Infinity: not before something happens. */
  pollTimeout(): number {
    return Math.min(this.dialAt, this.closeBy, this.current ? Math.min(this.aliveAt + this.patienceMs, this.deadlineAt, this.probeAt, this.doubtAt) : Infinity);
  }

  get status(): Status {
    if (this.isEnded) return "ended";
    if (this.closeWith) return "closing";
    if (this.current) return "attached";
    if (this.isSuspended) return "suspended";
    return this.dialled || !this.lastId ? "connecting" : "waiting";
  }

  /** Returns the next event for the application, in order. */
  pollEvent(): MachineEvent | undefined {
    return this.events.shift();
  }

  /** Returns the next thing to do to a connection. The driver does it before it reports anything else. */
  pollTransmit(): Transmit | undefined {
    return this.outputs.shift() ?? this.nextMessage();
  }

  // ---- what sessions do otherwise ---------------------------------------------------------------

  /** The next message that may be written, or the close after the last. */
  protected nextMessage(): Transmit | undefined {
    const { current: id, closeWith } = this;
    if (!id || this.beginning) return;
    const data = this.unsent.shift();
    if (data !== undefined) return this.writePlain(id, data);
    if (!closeWith || this.waiting || this.isLeaving) return;
    this.isLeaving = true;
    // A live peer answers in far less, unless bytes have yet to leave.
    if (!this.isBusy) this.closeBy = Math.min(this.closeBy, this.nowMs + 5000);
    return { kind: "close", id, ...closeWith };
  }

  /** Sends a probe. Returns nothing if this peer cannot be probed. */
  protected writeProbe(): unknown {
    const { ping } = this.behaviour;
    if (ping) this.outputs.push({ kind: "write", id: this.current, data: ping.message });
    return ping;
  }

  /** The number of messages that an end would lose now. */
  protected get keeps(): number {
    return this.unsent.length + this.waiting;
  }

  /** Payload bytes that are accepted and not acknowledged, or not written to a connection. */
  get bufferedAmount(): number {
    return sizeOf(this.unsent);
  }

  // ---- helpers ----------------------------------------------------------------------------------

  protected dial(): void {
    this.dialled = ++this.lastId;
    this.stuckAt = this.nowMs + this.stuckMs;
    this.dialAt = this.nowMs + (this.behaviour.connectTimeoutMs ?? 10_000);
    this.outputs.push({ kind: "dial", id: this.dialled, offers: this.offers });
  }

  protected attach(id: number, limit: number, slack: number, interval: number): void {
    this.current = id;
    this.stopDialling();
    this.pace = interval;
    this.probeAt = this.nowMs + interval;
    this.attachedAt = this.nowMs;
    this.attemptsBefore = this.attempts;
    this.hasWorked = this.hasFailed = false;
    this.stuckMs = 2000;
    this.patienceMs = limit * this.patience;
    this.slack = slack;
    this.noteAlive();
  }

  /** The peer is alive: any message shows it. */
  protected noteAlive(): void {
    this.aliveAt = this.nowMs;
    this.deadlineAt = this.owedAt = Infinity;
  }

  /** The peer makes progress: a message, or an acknowledgement. */
  protected noteProgress(length = 0): void {
    this.largest = Math.max(this.largest, length);
    this.patience = 1;
    this.hasWorked = true;
  }

  protected noteAnswer(): void {
    const sample = this.nowMs - this.probeSentAt;
    this.probeSentAt = NaN;
    if (!(sample >= 0)) return;
    this.rtt ??= sample;
    this.rtt += (sample - this.rtt) / (sample > this.rtt ? 2 : 8);
  }

  /** Writes an application's message to a plain peer, which answers it or, later, a probe. */
  private writePlain(id: number, data: Data): Transmit {
    if (this.behaviour.ping) this.owedAt = Math.min(this.owedAt, this.nowMs);
    return { kind: "write", id, data };
  }

  /** Closes a connection, if there is one. The driver reports nothing more about it. */
  protected forget(id: number, code = 1000, reason = ""): void {
    if (id) this.outputs.push({ kind: "forget", id, code, reason });
  }

  /** Abandons an attempt that hangs. The next one may take twice as long, as the network may only be slow. */
  private abandonStuck(): void {
    if (!this.dialled || this.stuckAt > this.nowMs) return;
    this.stuckMs *= 2;
    this.abandon(this.dialled);
    this.stopDialling();
  }

  private stopDialling(): void {
    this.dialled = 0;
    this.dialAt = Infinity;
  }

  /** Closes a connection that was not attached. */
  protected abandon(id: number): void {
    this.forget(id);
  }

  /** Whether the application's options allow another attempt after a loss. */
  private mayReconnect(code: number, reason: string): boolean {
    const { maxRetries = Infinity, shouldReconnectOnClose } = this.behaviour;
    return this.attempts < maxRetries && this.ask(() => shouldReconnectOnClose?.({ code, reason })) !== false;
  }

  /** Calls a function of the options. An error that it throws is reported, and its result is undefined. */
  private ask<T>(act: () => T): T | undefined {
    try {
      return act();
    } catch (error) {
      this.events.push({ type: "error", error });
    }
    return;
  }

  /**
   * Returns the wait before the next attempt. The first wait is short: within 0.2 s if only this client lost its connection, within
   * a second if others probably did too. Later waits have a ceiling of 0.5 s x 2^n, at most 30 s, and are drawn at random: from the
   * upper half below it if only this client is concerned, else from all of it. Advice of the server takes precedence, up to 9 minutes,
   * and a tenth of it or 1 s is added at random. `retryMs`: NaN if the server gave no advice.
   */
  protected backoff(isAlone: boolean, retryMs?: number): number {
    const n = this.attempts++;
    let to = n ? Math.min(30_000, 250 * 2 ** n) : isAlone ? 200 : 1000;
    let from = n && isAlone ? to / 2 : 1;
    if (retryMs! >= 0) {
      from = Math.min(retryMs!, 540_000);
      to = from + Math.max(from / 10, 1000);
    }
    return from + (to - from) * this.chance();
  }
}
