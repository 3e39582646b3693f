/**
 * A client's life: dialling, attached, probing, waiting, ended. It decides when to dial and how long to wait;
 * `client.ts` opens connections when told to, moves messages, and reports what happened.
 *
 * This machine knows plain peers: it reconnects, watches for silence, and reports every re-attach as fresh.
 * `sessions.ts` adds `mainstay.v1`. At most two connections live at a time: the attached one, and one being opened,
 * which follows it, or with sessions replaces it (after GOAWAY, or when a probe stays unanswered).
 *
 * Pure: time is what `now` was set to, randomness an argument, and what is to be done goes through {@link Io}. Milliseconds throughout.
 * Source: `docs/PROTOCOL.md` "Attaching", "Heartbeat", "Closing"; `docs/DEFAULTS.md`.
 */

import { concernsOne, isFinal } from "./close.js";
import type { Data, Received, Window } from "./wire.js";

/** What the peer turned out to speak. */
export type Mode = "session" | "plain";

/** What a client is doing. Messages flow while it is `attached`; nothing follows `ended`. */
export type Status = "connecting" | "attached" | "waiting" | "suspended" | "closing" | "ended";

/** What the driver does when it is told to. None of these calls back before it returns. */
export interface Io {
  /** Opens a connection and reports with `opened` or `lost`. */
  dial(id: number): void;
  write(id: number, data: Data): void;
  /** Closes a connection and forgets it: nothing about it is reported any more. */
  drop(id: number, code?: number, reason?: string): void;
  /** Tells the application, later. A status that changed is told without it. */
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
  declare now: number;
  mode: Mode | undefined = "plain";
  /** The application's subprotocol, if one was agreed on. */
  protocol = "";
  /** Counts the attaches. */
  epoch = 0;
  /** Smoothed round-trip time of probes. */
  declare rtt: number | undefined;
  isEnded = false;
  /** Set before every call, as `now` is: something that was written has not left yet. */
  isBusy = false;
  /** The connection in use, and the one that is being opened; 0: none. */
  current = 0;
  dialled = 0;
  /** Accepted and never given to a connection. */
  unsent: Data[] = [];
  declare protected config: MachineConfig;
  declare protected random: () => number;
  declare protected io: Io;
  declare protected closing: { code: number; reason: string } | undefined;
  /** When closing is over, done or not. */
  private closeBy = Infinity;
  /** When to dial; while dialling, when to give up. */
  declare protected dialAt: number;
  /** Doubles with every verdict until a message comes: one that takes longer than the limit to arrive looks like silence. */
  protected patience = 1;
  protected isSuspended = false;
  private lastId = 0;
  private attempts = 0;
  declare private attachedAt: number;
  // The watch of the current connection: how long nothing may come, and until when, by that and by an open probe.
  declare private limit: number;
  declare private slack: number;
  declare private limitAt: number;
  private deadlineAt = Infinity;
  /** What had arrived when the connection seemed silent has been read. */
  private hasRead = false;
  /** When to probe next, and how often without being asked to. */
  declare private probeAt: number;
  declare private interval: number;
  private probeSentAt = NaN;

  /** Dials at once. `now` is to be set before every other call; `random` is uniform in [0, 1). */
  constructor(now: number, config: MachineConfig, random: () => number, io: Io) {
    this.now = this.dialAt = now;
    this.config = config;
    this.random = random;
    this.io = io;
  }

  // ---- what happened to connections -------------------------------------------------------------

  /** A dialled connection is open, and speaks this subprotocol. */
  opened(id: number, protocol: string): void {
    this.protocol = protocol;
    const { ping, silenceLimitMs } = this.config;
    const interval = ping?.intervalMs ?? Infinity;
    const limit = silenceLimitMs ?? 2 * interval + 5000;
    this.attach(id, limit, limit / 8, interval);
    if (this.epoch++) this.io.emit("gap");
    this.io.emit("session", { mode: "plain", resumed: false, epoch: this.epoch, id: "" });
    this.io.emit("open");
  }

  /** A connection is gone, could not be opened, or is given up. */
  lost(id: number, code: number, reason: string): void {
    this.io.drop(id);
    const { endsWithPeer, endOnGap } = this.config;
    const wasAttached = id === this.current;
    if (!id || (!wasAttached && id !== this.dialled)) return;
    if (wasAttached) {
      this.current = 0;
      if (this.now - this.attachedAt >= 50_000) this.attempts = 0;
    } else {
      this.dialled = 0;
      this.dialAt = Infinity;
    }
    const isMeant = endsWithPeer && (code === 1000 || (code > 2999 && code !== 4408));
    const isOver = this.mode === "plain" && !this.isSuspended && (isMeant || (endOnGap && wasAttached));
    // Our own verdict would be read as the peer's word.
    if (!this.current && (isOver || isFinal(code))) return this.end(endOnGap && code === 4408 ? 1006 : code, reason);
    // A replacement may be on its way already.
    if (this.dialAt === Infinity && !this.isSuspended) this.dialAt = this.now + this.delay(concernsOne(code));
    this.io.emit("status", { code, reason, retryInMs: this.dialled || this.isSuspended ? 0 : this.dialAt - this.now });
  }

  /** A message arrived on the current connection. */
  received(_id: number, data: Received): void {
    this.heard();
    this.patience = 1;
    if (this.config.ping?.matches(data)) this.answered();
    else this.io.emit("message", { data });
  }

  // ---- what the application does ----------------------------------------------------------------

  /** Accepts a message. 0: there is no room, or nothing more is accepted. */
  send(data: Data): number {
    return this.closing || this.unsent.length >= (this.config.keep?.[0] ?? 1024) ? 0 : this.unsent.push(data);
  }

  /** Something suggests that the network changed: dial now if waiting, probe if attached. */
  retryNow(): void {
    this.isSuspended = false;
    if (!this.current && !this.dialled) this.dialAt = this.now;
    this.probe();
  }

  /** Something suggests a look at the peer. Never a verdict by itself. */
  probe(): void {
    this.probeAt = this.now;
  }

  /** Leaves the connection and stays away until {@link retryNow}. */
  suspend(): void {
    this.isSuspended = true;
    this.lost(this.dialled, 1000, "suspended");
    this.lost(this.current, 1000, "suspended");
    this.dialAt = Infinity;
  }

  /** Ends in order: what was accepted is delivered first. What is not within 10 s is unknown. */
  close(code: number, reason: string): void {
    if (this.closing) return;
    this.closing = { code, reason };
    this.closeBy = this.now + 10_000;
    if (!this.current && !this.keeps) this.end(code, reason);
    else this.retryNow();
  }

  /** Ends now. */
  end(code: number, reason: string, fate?: object): void {
    if (this.isEnded) return;
    this.isEnded = true;
    this.closing ??= { code, reason };
    this.dialAt = this.closeBy = Infinity;
    this.io.drop(this.dialled, code, reason);
    this.io.drop(this.current, code, reason);
    this.current = this.dialled = 0;
    const fields = { code, reason, wasClean: code === 1000, fate };
    this.io.emit("status", fields);
    this.io.emit("close", fields);
  }

  // ---- time and output --------------------------------------------------------------------------

  /** Does what is due. */
  timeout(): void {
    if (this.closeBy <= this.now) this.end(this.closing!.code, this.closing!.reason);
    else if (this.dialAt > this.now) this.current && this.watch();
    else if (this.dialled) this.lost(this.dialled, 1006, "no answer in time");
    else this.dial();
  }

  /**
   * Our own pause is no evidence about the peer: before any verdict what has arrived is read, and a timer that is
   * late by more than `slack` asks for a fresh probe after that, and only that one is judged.
   */
  private watch(): void {
    const late = this.now - this.silentAt;
    this.hasRead = late >= 0 && !this.hasRead;
    // Due still, and so looked at again when what has arrived has been read.
    if (this.hasRead) return;
    if (late >= 0 && late <= this.slack) {
      this.patience *= 2;
      return this.lost(this.current, 4408, "silent for too long");
    }
    if (late >= 0) {
      this.heard();
      this.probe();
    }
    if (this.probeAt > this.now) return;
    // It would wait with what has not left yet, and its time counts from when it leaves.
    this.probeAt = this.now + (this.isBusy ? 250 : this.interval);
    if (this.isBusy || this.deadlineAt < Infinity || !this.writeProbe()) return;
    this.probeSentAt = this.now;
    this.deadlineAt = this.now + Math.min(Math.max(2000, 4 * (this.rtt ?? 0)), 20_000);
  }

  private get silentAt(): number {
    return Math.min(this.limitAt, this.deadlineAt);
  }

  /** When {@link timeout} has something to do. */
  get dueAt(): number {
    return Math.min(this.dialAt, this.closeBy, this.current ? Math.min(this.silentAt, this.probeAt) : Infinity);
  }

  get status(): Status {
    if (this.isEnded) return "ended";
    if (this.closing) return "closing";
    if (this.current) return "attached";
    if (this.isSuspended) return "suspended";
    return this.dialled || !this.lastId ? "connecting" : "waiting";
  }

  // ---- what sessions do otherwise ---------------------------------------------------------------

  /** Gives the connections what is to be written. */
  write(): void {
    if (!this.current) return;
    for (const data of this.unsent.splice(0)) this.io.write(this.current, data);
    if (this.closing) this.end(this.closing.code, this.closing.reason);
  }

  /** Sends a probe, or will. False: this peer cannot be probed. */
  protected writeProbe(): boolean {
    const { ping } = this.config;
    if (ping) this.io.write(this.current, ping.message);
    return !!ping;
  }

  /** Whether something accepted would be lost by an end now. */
  protected get keeps(): number {
    return this.unsent.length;
  }

  /** Payload that is accepted and not acknowledged, or not given to a connection. */
  get bufferedAmount(): number {
    return this.unsent.reduce((sum, data) => sum + data.length, 0);
  }

  // ---- helpers ----------------------------------------------------------------------------------

  protected dial(): void {
    this.dialled = ++this.lastId;
    this.dialAt = this.now + (this.config.connectTimeoutMs ?? 10_000);
    this.io.dial(this.dialled);
  }

  protected attach(id: number, limit: number, slack: number, interval: number): void {
    this.current = id;
    this.dialled = 0;
    this.dialAt = Infinity;
    this.interval = interval;
    this.probeAt = this.now + interval;
    this.attachedAt = this.now;
    this.limit = limit * this.patience;
    this.slack = slack;
    this.heard();
  }

  protected heard(): void {
    this.limitAt = this.now + this.limit;
    this.deadlineAt = Infinity;
  }

  protected answered(): void {
    const sample = this.now - this.probeSentAt;
    this.probeSentAt = NaN;
    if (!(sample >= 0)) return;
    this.rtt ??= sample;
    this.rtt += (sample - this.rtt) / 8;
  }

  /**
   * How long to wait before the next attempt. The first comes soon, spread over 0.2 s when only this client lost its
   * connection, over a second when others did too. Later waits have a ceiling of 0.5 s x 2^n, at most 30 s, and are
   * drawn below it: from its upper half by a lone client, from all of it by one of a crowd.
   */
  protected delay(isAlone: boolean): number {
    const n = this.attempts++;
    const to = n ? Math.min(30_000, 250 * 2 ** n) : isAlone ? 200 : 1000;
    const from = n && isAlone ? to / 2 : 1;
    return from + (to - from) * this.random();
  }
}
