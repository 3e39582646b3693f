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
  /** From dialling to WELCOME. @default 10000 */
  connectTimeoutMs?: number | undefined;
  /** Towards plain peers: a connection that is silent for so long is given up. @default never; with `ping`, two intervals and 5 s */
  silenceLimitMs?: number | undefined;
  /** Towards plain peers: an application's own ping. A message that `matches` is its answer, and is not delivered. */
  ping?: { message: Data; matches: (data: unknown) => boolean; intervalMs: number } | undefined;
  /** The client ends when a plain peer closes with 1000 or 3000-4999, instead of reconnecting. @default false */
  closeWithPeer?: boolean | undefined;
  /** Asked after every lost connection and failed attempt: false ends the client with that code. @default the codes of PROTOCOL.md */
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
  /** Counts the attaches. */
  epoch = 0;
  /** Smoothed round-trip time; grows faster than it falls, so that one slow answer is enough to expect another. */
  declare rtt: number | undefined;
  declare isEnded: boolean | undefined;
  /** The last loss, or the end, until the driver has reported it. */
  declare loss: { code: number; reason: string; nextAttemptInMs?: number } | undefined;
  /** The driver sets it before every call, as `nowMs`: some of what was written has not left yet. */
  declare isBusy: unknown;
  /** The driver sets it before every call: how many messages wait there to be accepted, and go out before a close. */
  declare waiting: number;
  /** The machine that goes on in this one's place, once the peer turned out to speak no sessions: the driver holds that from then on. */
  declare successor: Machine | undefined;
  /** The connection in use, and the one that is being opened; 0, or nothing at first: none. */
  declare current: number;
  declare dialled: number;
  /** The connection whose `open` is being handled: messages sent meanwhile go before those that waited. */
  declare beginning: number | undefined;
  /** Accepted and never given to a connection. */
  unsent: Data[] = [];
  declare protected behaviour: MachineConfig;
  declare protected chance: () => number;
  /** Whether the next attempt offers sessions. */
  protected offers = false;
  protected outputs: Transmit[] = [];
  protected events: MachineEvent[] = [];
  declare protected closeWith: { code: number; reason: string } | undefined;
  /** When closing is over, done or not. */
  private closeBy = Infinity;
  /** The closing handshake of the current connection has begun. */
  declare private isLeaving: boolean | undefined;
  /** When to dial; while dialling, when to give up. */
  declare protected dialAt: number;
  /**
   * Doubles with every verdict until something of use comes, as an answer that is slow, or a message that takes longer than the
   * limit to arrive, looks like silence. A probe, whose limit is short, has its square: one verdict is enough to learn from.
   */
  protected patience = 1;
  declare protected isSuspended: boolean | undefined;
  private lastId = 0;
  protected attempts = 0;
  /** When the current connection was attached. */
  declare private attemptsBefore: number;
  /** A replacement for the current connection has failed. */
  declare private hasFailed: boolean | undefined;
  /** From when the attempt that is under way is not waited for, if somebody asks; and after how long the next one. */
  declare private stuckAt: number;
  private stuckMs = 2000;
  declare private attachedAt: number;
  /** The current connection has brought a message or an acknowledgement. */
  declare private hasWorked: boolean | undefined;
  // The watch of the current connection: how long nothing may come, and until when, by that and by an open probe.
  declare private patienceMs: number;
  declare private slack: number;
  declare private heardAt: number;
  declare private deadlineAt: number;
  /** Since when something is written that nothing has answered. */
  protected owedAt = Infinity;
  /** The largest message that has come, as text or bytes have lengths. */
  private largest = 0;
  /** What had arrived when the connection seemed silent has been read. */
  declare private hasRead: boolean | undefined;
  /** When to probe next, and how often without being asked to. */
  declare private probeAt: number;
  declare private pace: number;
  declare private probeSentAt: number;

  /** Dials at once. `random` returns numbers that are uniform in [0, 1). */
  constructor(now: number, config: MachineConfig, random: () => number) {
    this.nowMs = this.dialAt = now;
    this.behaviour = config;
    this.chance = random;
  }

  // ---- what happened to connections -------------------------------------------------------------

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
      this.leaveStuck();
      if (this.hasFailed && !this.dialled) this.dialAt = Infinity;
    } else {
      this.dialled = 0;
      this.dialAt = Infinity;
      this.hasFailed = true;
    }
    const isMeant = code === 1000 || (code > 2999 && code !== 4408);
    const isOver = (closeOnGap && wasAttached) || (closeWithPeer && isMeant);
    if (!this.current && (isFinal(code) || (!this.isSuspended && ((isOver && this.mode === "plain") || !this.mayReconnect(code, reason))))) {
      // Our own verdict would be read as the peer's word.
      return this.endNow(closeOnGap && code === 4408 ? 1006 : code, reason);
    }
    if (this.isEnded) return;
    // A replacement may be on its way already.
    if (this.dialAt === Infinity && !this.isSuspended) this.dialAt = this.nowMs + this.backoff(concernsOne(code), +/^1013retry_ms=(\d+)/.exec(code + reason)?.[1]!);
    this.loss = { code, reason, nextAttemptInMs: this.dialled || this.isSuspended ? 0 : this.dialAt - this.nowMs };
  }

  /** A message arrived on the current connection. */
  handleMessage(_id: number, data: Received): void {
    this.heard();
    this.progressed((data as string).length ?? (data as ArrayBuffer).byteLength);
    const { ping } = this.behaviour;
    if (ping && this.ask(() => ping.matches(data))) this.answered();
    else if (!this.closeWith) this.events.push({ type: "message", data });
  }

  // ---- what the application does ----------------------------------------------------------------

  /** Accepts a message. 0: there is no room. */
  send(data: Data): number {
    if (this.beginning) return this.outputs.push(this.writePlain(this.beginning, data));
    return this.unsent.length < (this.behaviour.keep?.messages ?? 1024) ? this.unsent.push(data) : 0;
  }

  /** Something suggests that the network changed: dials now if it waits, probes if it is attached. */
  wake(): void {
    this.isSuspended = false;
    this.leaveStuck();
    if (!(this.current || this.dialled)) this.dialAt = this.nowMs;
    this.probe();
  }

  /** Leaves the connection with this code and dials at once; the count of attempts begins anew. */
  reconnect(code: number, reason: string): void {
    if (this.closeWith) return;
    this.forget(this.current, code, reason);
    this.suspend(reason);
    this.attempts = 0;
    this.wake();
  }

  /** Something suggests that the peer may be gone: asks it for an answer. That alone gives no connection up. */
  probe(): void {
    this.probeAt = this.nowMs;
  }

  /** Leaves the connection and stays away until {@link wake} or {@link reconnect}. */
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
    if (this.current || this.keeps) this.wake();
    else this.endNow(code, reason, undefined, false);
  }

  /** Ends now. `wasClean`: the other end closed, or answered our closing. */
  endNow(code: number, reason: string, fate?: Fate, wasClean = code !== 1006): void {
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
    if (this.closeBy <= this.nowMs) this.endNow(this.closeWith!.code, this.closeWith!.reason, undefined, false);
    else if (this.dialAt > this.nowMs) this.current && this.watch();
    else if (this.dialled) this.handleLost(this.dialled, 1006, NO_ANSWER);
    else this.dial();
  }

  /**
   * Our own pause is no evidence about the peer: before any verdict what has arrived is read, and a timer that is
   * late by more than `slack` asks for a fresh probe after that, and only that one is judged.
   */
  private watch(): void {
    const late = this.nowMs - Math.min(this.heardAt + this.patienceMs, this.deadlineAt);
    // Due still, and so looked at again when what has arrived has been read.
    if ((this.hasRead = late >= 0 && !this.hasRead)) return;
    if (late >= 0) {
      if (late <= this.slack) {
        this.patience *= 2;
        return this.handleLost(this.current, 4408, "silent for too long");
      }
      this.heard();
      this.probe();
    }
    if (this.doubtAt <= this.nowMs) {
      // Written, if it waits behind what has not left, and not sent: its time counts from when it is.
      if (!this.isBusy) this.probeAt = this.nowMs;
      this.owedAt = this.nowMs;
    }
    if (this.probeAt > this.nowMs) return;
    // It would wait with what has not left yet, and its time counts from when it leaves.
    this.probeAt = this.nowMs + (this.isBusy ? 250 : this.pace);
    if (!this.isBusy && this.deadlineAt === Infinity && this.writeProbe()) {
      this.probeSentAt = this.nowMs;
      this.deadlineAt = this.nowMs + Math.min(Math.max(2000, 4 * (this.rtt ?? 0)) * this.patience ** 2, 20_000 * this.patience) + this.bulkMs;
    }
  }

  /** For how long an answer may stand behind what is on its way, at a megabyte a second: what is kept, and one message like the largest so far. */
  private get bulkMs(): number {
    return Math.floor((this.bufferedAmount + this.largest) / 1000);
  }

  /** When something has been written for so long, and not answered, that a probe is due: a cut is noticed by the end that sends. */
  private get doubtAt(): number {
    return this.owedAt + Math.min(Math.max(3000, 4 * (this.rtt ?? 0)), 20_000);
  }

  /** Returns when {@link handleTimeout} has something to do; Infinity: not before something happens. */
  pollTimeout(): number {
    return Math.min(this.dialAt, this.closeBy, this.current ? Math.min(this.heardAt + this.patienceMs, this.deadlineAt, this.probeAt, this.doubtAt) : Infinity);
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

  /** The next message that may be written, or the close behind the last. */
  protected nextMessage(): Transmit | undefined {
    const { current: id, closeWith } = this;
    if (!id || this.beginning) return;
    const data = this.unsent.shift();
    if (data !== undefined) return this.writePlain(id, data);
    if (!closeWith || this.waiting || this.isLeaving) return;
    this.isLeaving = true;
    // A peer that is there answers in far less, unless something has yet to leave.
    if (!this.isBusy) this.closeBy = Math.min(this.closeBy, this.nowMs + 5000);
    return { kind: "close", id, ...closeWith };
  }

  /** Sends a probe. Nothing: this peer cannot be probed. */
  protected writeProbe(): unknown {
    const { ping } = this.behaviour;
    if (ping) this.outputs.push({ kind: "write", id: this.current, data: ping.message });
    return ping;
  }

  /** Whether something accepted would be lost by an end now. */
  protected get keeps(): number {
    return this.unsent.length + this.waiting;
  }

  /** Payload that is accepted and not acknowledged, or not given to a connection. */
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
    this.dialled = 0;
    this.dialAt = Infinity;
    this.pace = interval;
    this.probeAt = this.nowMs + interval;
    this.attachedAt = this.nowMs;
    this.attemptsBefore = this.attempts;
    this.hasWorked = this.hasFailed = false;
    this.stuckMs = 2000;
    this.patienceMs = limit * this.patience;
    this.slack = slack;
    this.heard();
  }

  /** Any message is life. */
  protected heard(): void {
    this.heardAt = this.nowMs;
    this.deadlineAt = this.owedAt = Infinity;
  }

  /** The peer does what it is there for. */
  protected progressed(length = 0): void {
    this.largest = Math.max(this.largest, length);
    this.patience = 1;
    this.hasWorked = true;
  }

  protected answered(): void {
    const sample = this.nowMs - this.probeSentAt;
    this.probeSentAt = NaN;
    if (!(sample >= 0)) return;
    this.rtt ??= sample;
    this.rtt += (sample - this.rtt) / (sample > this.rtt ? 2 : 8);
  }

  /** An application's message to a plain peer, which answers it or, later, a probe. */
  private writePlain(id: number, data: Data): Transmit {
    if (this.behaviour.ping) this.owedAt = Math.min(this.owedAt, this.nowMs);
    return { kind: "write", id, data };
  }

  /** Closes a connection, if there is one, about which nothing is reported any more. */
  protected forget(id: number, code = 1000, reason = ""): void {
    if (id) this.outputs.push({ kind: "forget", id, code, reason });
  }

  /** An attempt that hangs is not waited for. The next one may take twice as long, as the network may only be slow. */
  private leaveStuck(): void {
    if (!this.dialled || this.stuckAt > this.nowMs) return;
    this.stuckMs *= 2;
    this.letGo(this.dialled);
    this.dialled = 0;
    this.dialAt = Infinity;
  }

  /** Closes a connection that was not attached. */
  protected letGo(id: number): void {
    this.forget(id);
  }

  /** What the application's options say to a loss. */
  private mayReconnect(code: number, reason: string): boolean {
    const { maxRetries = Infinity, shouldReconnectOnClose } = this.behaviour;
    return this.attempts < maxRetries && this.ask(() => shouldReconnectOnClose?.({ code, reason })) !== false;
  }

  /** Asks a function of the options. An error that it throws is reported, and is no answer. */
  private ask<T>(act: () => T): T | undefined {
    try {
      return act();
    } catch (error) {
      this.events.push({ type: "error", error });
    }
    return;
  }

  /**
   * How long to wait before the next attempt. The first comes soon, spread over 0.2 s when only this client lost its
   * connection, over a second when others did too. Later waits have a ceiling of 0.5 s x 2^n, at most 30 s, and are
   * drawn below it: from its upper half by a lone client, from all of it by one of a crowd. What the server says wins, up
   * to 9 minutes, and a tenth of it or 1 s is added at random. `retryMs`: NaN, if it says nothing.
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
