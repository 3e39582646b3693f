/**
 * A client's life: dialling, attached, probing, waiting, ended. It decides when to dial and how long to wait;
 * `client.ts` opens connections when told to, moves messages, and reports what happened.
 *
 * This machine knows plain peers: it reconnects, watches for silence, and reports every re-attach as fresh.
 * `sessions.ts` adds `mainstay.v1`. At most two connections live at a time: the attached one, and one being opened,
 * which follows it, or with sessions replaces it (after GOAWAY, or when a probe stays unanswered).
 *
 * Pure: time is what `nowMs` was set to, randomness an argument, and what is to be done goes through {@link Io}. Milliseconds throughout.
 * Source: `docs/PROTOCOL.md` "Attaching", "Heartbeat", "Closing"; `docs/DEFAULTS.md`.
 */

import { concernsOne, isFinal } from "./close.js";
import { sizeOf } from "./text.js";
import type { Data, Received, Window } from "./wire.js";

/** What the peer turned out to speak. */
export type Mode = "session" | "plain";

/** What a client is doing. Messages flow while it is `attached`; nothing follows `ended`. */
export type Status = "connecting" | "attached" | "waiting" | "suspended" | "closing" | "ended";

/** What the driver does when it is told to. None of these calls back before it returns. */
export interface Io {
  /** Opens a connection and reports with `handleOpened` or `handleLost`. */
  dial(id: number): void;
  writeTo(id: number, data: Data): void;
  /** Begins the closing handshake of a connection, which is over with `handleLost`. */
  leave(id: number, code: number, reason: string): void;
  /** Closes a connection and forgets it: nothing about it is reported any more. */
  forget(id: number, code?: number, reason?: string): void;
  /** Tells the application, later, and before it of a status that changed. */
  emit(type: string, fields?: object): void;
}

/** How a client behaves. */
export interface MachineConfig {
  /** From dialling to WELCOME. @default 10000 */
  connectTimeoutMs?: number | undefined;
  /** Towards plain peers: silence for so long is a verdict. @default never; with `ping`, two intervals and 5 s */
  silenceLimitMs?: number | undefined;
  /** Towards plain peers: an application's own ping. What `matches` is its answer, and is not handed on. */
  ping?: { message: Data; matches: (data: unknown) => boolean; intervalMs: number } | undefined;
  /** A plain peer that closes with 1000 or 3000-4999 meant it. @default false */
  endsWithPeer?: boolean | undefined;
  /** Asked after every lost connection and failed attempt: false ends the client with that code. @default the codes of PROTOCOL.md */
  shouldReconnectOnClose?: ((event: { code: number; reason: string }) => boolean) | undefined;
  /** How many attempts in a row may fail after the first; then the client ends with the code of the last. @default Infinity */
  maxRetries?: number | undefined;
  /**
   * End with a `close` event where a gap would be reported: for libraries that recover by themselves. Towards plain
   * peers that is where the first connection is lost, with its code; of a lost session it is 1006. @default false
   */
  endOnGap?: boolean | undefined;
  /** What is kept until acknowledged, or until a plain connection is there: messages, bytes. @default [1024, 4194304] */
  keep?: Window | undefined;
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
  /** What has not been told of the last loss, or of the end. */
  declare loss: { code: number; reason: string; retryInMs?: number } | undefined;
  /** Set before every call, as `nowMs` is: something that was written has not left yet. */
  declare isBusy: unknown;
  /** The connection in use, and the one that is being opened; 0, or nothing at first: none. */
  declare current: number;
  declare dialled: number;
  /** The connection whose `open` is being handled: what is sent meanwhile goes before what waited. */
  declare beginning: number | undefined;
  /** The driver's: what waits to be accepted, and goes out before a close. */
  queued: any[] = [];
  /** Accepted and never given to a connection. */
  unsent: Data[] = [];
  declare protected behaviour: MachineConfig;
  declare protected chance: () => number;
  declare protected io: Io;
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
  private attemptsBefore = 0;
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

  /** Dials at once. `nowMs` is to be set before every other call; `random` is uniform in [0, 1). */
  constructor(now: number, config: MachineConfig, random: () => number, io: Io) {
    this.nowMs = this.dialAt = now;
    this.behaviour = config;
    this.chance = random;
    this.io = io;
  }

  // ---- what happened to connections -------------------------------------------------------------

  /** A dialled connection is open, and speaks this subprotocol. */
  handleOpened(id: number, protocol: string): void {
    this.protocol = protocol;
    const interval = this.behaviour.ping?.intervalMs ?? Infinity;
    const limit = this.behaviour.silenceLimitMs ?? 2 * interval + 5000;
    this.attach(id, limit, limit / 8, interval);
    this.beginning = id;
    if (this.epoch++) this.io.emit("gap");
    this.io.emit("session", { mode: "plain", resumed: false, epoch: this.epoch, id: "" });
    if (!this.closeWith) this.io.emit("open");
  }

  /** A connection is gone, could not be opened, or is given up. */
  handleLost(id: number, code: number, reason: string): void {
    this.io.forget(id);
    const { endsWithPeer, endOnGap } = this.behaviour;
    const wasAttached = id === this.current;
    if (!id || (!wasAttached && id !== this.dialled)) return;
    if (wasAttached) {
      this.current = this.beginning = 0;
      // The peer's word, or that of its connection's loss.
      if (this.isLeaving) return this.endNow(code === 4408 ? 1006 : code, reason);
      const lived = this.nowMs - this.attachedAt;
      // What replacements waited for was that this connection lived: their failures hold nothing back.
      this.attempts = lived >= (this.hasWorked ? 2000 : 10_000) ? 0 : this.attemptsBefore;
      this.leaveStuck();
      if (this.hasFailed && !this.dialled) this.dialAt = Infinity;
    } else {
      this.dialled = 0;
      this.dialAt = Infinity;
      this.hasFailed = true;
    }
    const isMeant = code === 1000 || (code > 2999 && code !== 4408);
    const isOver = (endOnGap && wasAttached) || (endsWithPeer && isMeant);
    if (!this.current && (isFinal(code) || (!this.isSuspended && ((isOver && this.mode === "plain") || !this.mayReconnect(code, reason))))) {
      // Our own verdict would be read as the peer's word.
      return this.endNow(endOnGap && code === 4408 ? 1006 : code, reason);
    }
    if (this.isEnded) return;
    // A replacement may be on its way already.
    if (this.dialAt === Infinity && !this.isSuspended) this.dialAt = this.nowMs + this.backoff(concernsOne(code), +/^1013retry_ms=(\d+)/.exec(code + reason)?.[1]!);
    this.loss = { code, reason, retryInMs: this.dialled || this.isSuspended ? 0 : this.dialAt - this.nowMs };
  }

  /** A message arrived on the current connection. */
  handleMessage(_id: number, data: Received): void {
    this.heard();
    this.progressed((data as string).length ?? (data as ArrayBuffer).byteLength);
    const { ping } = this.behaviour;
    if (ping && this.told(() => ping.matches(data))) this.answered();
    else if (!this.closeWith) this.io.emit("message", { data });
  }

  // ---- what the application does ----------------------------------------------------------------

  /** Accepts a message. 0: there is no room. */
  send(data: Data): number {
    if (this.beginning) return this.writePlain(this.beginning, data), 1;
    return this.unsent.length < (this.behaviour.keep?.[0] ?? 1024) ? this.unsent.push(data) : 0;
  }

  /** Something suggests that the network changed: dial now if waiting, probe if attached. */
  retryNow(): void {
    this.isSuspended = false;
    this.leaveStuck();
    if (!(this.current || this.dialled)) this.dialAt = this.nowMs;
    this.probe();
  }

  /** Leaves the connection with this code and dials at once. */
  reconnect(code: number, reason: string): void {
    if (this.closeWith) return;
    this.io.forget(this.current, code, reason);
    this.suspend(reason);
    this.attempts = 0;
    this.retryNow();
  }

  /** Something suggests a look at the peer. Never a verdict by itself. */
  probe(): void {
    this.probeAt = this.nowMs;
  }

  /** Leaves the connection and stays away until {@link retryNow}. */
  suspend(reason = "suspended"): void {
    this.isSuspended = true;
    this.handleLost(this.dialled, 1000, reason);
    this.handleLost(this.current, 1000, reason);
    this.dialAt = Infinity;
  }

  /** Ends in order: what was accepted is delivered first. What is not within 10 s is unknown. */
  close(code: number, reason: string): void {
    if (this.closeWith) return;
    this.closeWith = { code, reason };
    this.closeBy = this.nowMs + 10_000;
    if (this.current || this.keeps) this.retryNow();
    else this.endNow(code, reason, undefined, false);
  }

  /** Ends now. `wasClean`: the other end closed, or answered our closing. */
  endNow(code: number, reason: string, fate?: object, wasClean = code !== 1006): void {
    if (this.isEnded) return;
    this.isEnded = true;
    this.loss = { code, reason };
    this.closeWith ??= this.loss;
    this.dialAt = this.closeBy = Infinity;
    this.io.forget(this.dialled, code, reason);
    this.io.forget(this.current, code, reason);
    this.current = this.dialled = 0;
    this.io.emit("close", { code, reason, wasClean, fate });
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

  /** When {@link handleTimeout} has something to do. */
  get dueAt(): number {
    return Math.min(this.dialAt, this.closeBy, this.current ? Math.min(this.heardAt + this.patienceMs, this.deadlineAt, this.probeAt, this.doubtAt) : Infinity);
  }

  get status(): Status {
    if (this.isEnded) return "ended";
    if (this.closeWith) return "closing";
    if (this.current) return "attached";
    if (this.isSuspended) return "suspended";
    return this.dialled || !this.lastId ? "connecting" : "waiting";
  }

  // ---- what sessions do otherwise ---------------------------------------------------------------

  /** Gives the connections what is to be written. */
  writeOut(): void {
    if (this.current && !this.beginning) {
      for (const data of this.unsent.splice(0)) this.writePlain(this.current, data);
      if (this.closeWith && !this.queued.length && !this.isLeaving) {
        this.isLeaving = true;
        // A peer that is there answers in far less, unless something has yet to leave.
        if (!this.isBusy) this.closeBy = Math.min(this.closeBy, this.nowMs + 5000);
        this.io.leave(this.current, this.closeWith.code, this.closeWith.reason);
      }
    }
  }

  /** Sends a probe. Nothing: this peer cannot be probed. */
  protected writeProbe(): unknown {
    const { ping } = this.behaviour;
    if (ping) this.io.writeTo(this.current, ping.message);
    return ping;
  }

  /** Whether something accepted would be lost by an end now. */
  protected get keeps(): number {
    return this.unsent.length + this.queued.length;
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
    this.io.dial(this.dialled);
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

  /** Writes an application's message to a plain peer, which answers it or, later, a probe. */
  private writePlain(id: number, data: Data): void {
    this.io.writeTo(id, data);
    if (this.behaviour.ping) this.owedAt = Math.min(this.owedAt, this.nowMs);
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
    this.io.forget(id);
  }

  /** What the application's options say to a loss. */
  private mayReconnect(code: number, reason: string): boolean {
    const { maxRetries = Infinity, shouldReconnectOnClose } = this.behaviour;
    return this.attempts < maxRetries && this.told(() => shouldReconnectOnClose?.({ code, reason })) !== false;
  }

  /** Asks a function of the options: what it throws is told, and is no answer. */
  private told<T>(act: () => T): T | undefined {
    try {
      return act();
    } catch (error) {
      this.io.emit("error", { error });
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
    const to = n ? Math.min(30_000, 250 * 2 ** n) : isAlone ? 200 : 1000;
    const from = retryMs! >= 0 ? Math.min(retryMs!, 540_000) : n && isAlone ? to / 2 : 1;
    return from + (retryMs! >= 0 ? Math.max(from / 10, 1000) : to - from) * this.chance();
  }
}
