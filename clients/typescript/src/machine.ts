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
  /**
   * End with a `close` event where a gap would be reported: for libraries that recover by themselves. Towards plain
   * peers that is where the first connection is lost, with its code; of a lost session it is 1006. @default false
   */
  endOnGap?: boolean | undefined;
  /** What is kept until acknowledged, or until a plain connection is there: messages, bytes. @default [1024, 4194304] */
  keep?: Window | undefined;
}

export class Machine {
  declare nowMs: number;
  mode: Mode | undefined = "plain";
  /** The application's subprotocol, if one was agreed on. */
  protocol = "";
  /** Counts the attaches. */
  epoch = 0;
  /** Smoothed round-trip time of probes. */
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
  /** Doubles with every verdict until a message comes: one that takes longer than the limit to arrive looks like silence. */
  protected patience = 1;
  declare protected isSuspended: boolean | undefined;
  private lastId = 0;
  private attempts = 0;
  declare private attachedAt: number;
  // The watch of the current connection: how long nothing may come, and until when, by that and by an open probe.
  declare private patienceMs: number;
  declare private slack: number;
  declare private limitAt: number;
  declare private deadlineAt: number;
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
      if (this.nowMs - this.attachedAt >= 50_000) this.attempts = 0;
    } else {
      this.dialled = 0;
      this.dialAt = Infinity;
    }
    const isMeant = code === 1000 || (code > 2999 && code !== 4408);
    const isOver = (endOnGap && wasAttached) || (endsWithPeer && isMeant);
    if (!this.current && (isFinal(code) || (isOver && this.mode === "plain" && !this.isSuspended))) {
      // Our own verdict would be read as the peer's word.
      return this.endNow(endOnGap && code === 4408 ? 1006 : code, reason);
    }
    // A replacement may be on its way already.
    if (this.dialAt === Infinity && !this.isSuspended) this.dialAt = this.nowMs + this.backoff(concernsOne(code), +/^1013retry_ms=(\d+)/.exec(code + reason)?.[1]!);
    this.loss = { code, reason, retryInMs: this.dialled || this.isSuspended ? 0 : this.dialAt - this.nowMs };
  }

  /** A message arrived on the current connection. */
  handleMessage(_id: number, data: Received): void {
    this.heard();
    this.patience = 1;
    if (this.behaviour.ping?.matches(data)) this.answered();
    else if (!this.closeWith) this.io.emit("message", { data });
  }

  // ---- what the application does ----------------------------------------------------------------

  /** Accepts a message. 0: there is no room. */
  send(data: Data): number {
    if (this.beginning) return this.io.writeTo(this.beginning, data), 1;
    return this.unsent.length < (this.behaviour.keep?.[0] ?? 1024) ? this.unsent.push(data) : 0;
  }

  /** Something suggests that the network changed: dial now if waiting, probe if attached. */
  retryNow(): void {
    this.isSuspended = false;
    if (!(this.current || this.dialled)) this.dialAt = this.nowMs;
    this.probe();
  }

  /** Something suggests a look at the peer. Never a verdict by itself. */
  probe(): void {
    this.probeAt = this.nowMs;
  }

  /** Leaves the connection and stays away until {@link retryNow}. */
  suspend(): void {
    this.isSuspended = true;
    this.handleLost(this.dialled, 1000, "suspended");
    this.handleLost(this.current, 1000, "suspended");
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
    else if (this.dialled) this.handleLost(this.dialled, 1006, "no answer in time");
    else this.dial();
  }

  /**
   * Our own pause is no evidence about the peer: before any verdict what has arrived is read, and a timer that is
   * late by more than `slack` asks for a fresh probe after that, and only that one is judged.
   */
  private watch(): void {
    const late = this.nowMs - Math.min(this.limitAt, this.deadlineAt);
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
    if (this.probeAt > this.nowMs) return;
    // It would wait with what has not left yet, and its time counts from when it leaves.
    this.probeAt = this.nowMs + (this.isBusy ? 250 : this.pace);
    if (!this.isBusy && this.deadlineAt === Infinity && this.writeProbe()) {
      this.probeSentAt = this.nowMs;
      this.deadlineAt = this.nowMs + Math.min(Math.max(2000, 4 * (this.rtt ?? 0)), 20_000);
    }
  }

  /** When {@link handleTimeout} has something to do. */
  get dueAt(): number {
    return Math.min(this.dialAt, this.closeBy, this.current ? Math.min(this.limitAt, this.deadlineAt, this.probeAt) : Infinity);
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
      for (const data of this.unsent.splice(0)) this.io.writeTo(this.current, data);
      if (this.closeWith && !this.queued.length && !this.isLeaving) {
        this.isLeaving = true;
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
    this.patienceMs = limit * this.patience;
    this.slack = slack;
    this.heard();
  }

  protected heard(): void {
    this.limitAt = this.nowMs + this.patienceMs;
    this.deadlineAt = Infinity;
  }

  protected answered(): void {
    const sample = this.nowMs - this.probeSentAt;
    this.probeSentAt = NaN;
    if (!(sample >= 0)) return;
    this.rtt ??= sample;
    this.rtt += (sample - this.rtt) / 8;
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
