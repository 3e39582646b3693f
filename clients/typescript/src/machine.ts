/**
 * A client's life: dialling, attached, probing, waiting, ended. It decides when to dial and how long to wait;
 * `client.ts` opens connections when told to, moves messages, and reports what happened.
 *
 * This machine knows plain peers: it reconnects, watches for silence, and reports every re-attach as fresh.
 * `sessions.ts` adds `mainstay.v1`. At most two connections live at a time: the attached one, and one being opened,
 * which replaces it (after GOAWAY, or when a probe stays unanswered) or follows it.
 *
 * Pure: time is what `now` was set to, randomness an argument, and what is to be done goes through {@link Io}. Milliseconds throughout.
 * Source: `docs/PROTOCOL.md` "Attaching", "Heartbeat", "Closing"; `docs/DEFAULTS.md`.
 */

import { closeAction } from "./close.js";
import type { Data, Delay, Window } from "./wire.js";

/** What the peer turned out to speak. */
export type Mode = "session" | "plain";

/** What a client is doing. Messages flow while it is `attached`; nothing follows `ended`. */
export type Status = "connecting" | "attached" | "waiting" | "suspended" | "closing" | "ended";

/** What the driver does when it is told to. None of these calls back before it returns. */
export interface Io {
  /** Opens a connection and reports with `opened` or `lost`. `offers`: sessions are offered. */
  dial(id: number, offers: boolean): void;
  write(id: number, data: Data): void;
  /** Closes a connection and forgets it: nothing about it is reported any more. */
  drop(id: number, code?: number, reason?: string): void;
  /** Tells the application, later. */
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
  mode: Mode | undefined = "plain";
  /** Counts the attaches. */
  epoch = 0;
  /** Smoothed round-trip time of probes. */
  rtt: number | undefined;
  isEnded = false;
  isSuspended = false;
  /** The connection in use, and the one that is being opened; 0: none. */
  current = 0;
  dialled = 0;
  /** A probe was written and has not left yet. */
  isProbeQueued = false;
  protected closing: { code: number; reason: string; until: number } | undefined;
  /** When to dial; while dialling, when to give up. */
  protected dialAt: number;
  protected lastId = 0;
  protected config: MachineConfig;
  protected io: Io;
  protected random: () => number;
  /** Whether the next attempt offers sessions. */
  protected offers = false;
  /** Accepted and never given to a connection. */
  protected unsent: Data[] = [];
  private given = 0;
  private attempts = 0;
  private currentAt = 0;
  // The watch of the current connection: when something came last, and how long nothing may come.
  private heardAt = 0;
  private limit = 0;
  private slack = 0;
  /** Doubles with every verdict until a message comes: one that takes longer than the limit to arrive looks like silence. */
  protected patience = 1;
  private probeLeftAt = Infinity;
  private probeSentAt = NaN;
  private wantsProbe = false;
  private drained = 0;
  private replaceAt = Infinity;
  private pingAt = Infinity;

  /** Dials at once. `now` is to be set before every other call; `random` is uniform in [0, 1). */
  constructor(public now: number, config: MachineConfig, random: () => number, io: Io) {
    this.dialAt = now;
    this.config = config;
    this.random = random;
    this.io = io;
  }

  // ---- what happened to connections -------------------------------------------------------------

  /** A dialled connection is open and speaks this. */
  opened(id: number, mode: Mode): void {
    if (this.mode === mode) this.attachPlain(id);
    else {
      // What was promised under the one protocol cannot be kept under the other.
      this.io.drop(id);
      this.lost(id, 1006, "the server speaks another protocol now");
    }
  }

  /** A connection is gone, or could not be opened. `advice`: when to come back. */
  lost(id: number, code: number, reason: string, advice?: Delay): void {
    const wasAttached = id === this.current;
    if (this.isEnded || !id || (!wasAttached && id !== this.dialled)) return;
    if (wasAttached) {
      this.current = 0;
      if (this.now - this.currentAt >= 50_000) this.attempts = 0;
    } else {
      this.dialled = 0;
      this.dialAt = Infinity;
    }
    const action = closeAction(code);
    const { endsWithPeer, endOnGap } = this.config;
    const isMeant = endsWithPeer && (code === 1000 || (code > 2999 && code !== 4408));
    const isOver = this.mode === "plain" && !this.isSuspended && (isMeant || (endOnGap && wasAttached));
    // Our own verdict would be read as the peer's word.
    if (!this.current && (isOver || action === "stop")) return this.end(endOnGap && code === 4408 ? 1006 : code, reason);
    // A replacement may be on its way already.
    if (this.dialAt === Infinity && !this.isSuspended) this.dialAt = this.now + this.delay(action !== "reconnect", advice);
    this.io.emit("status", { code, reason, retryInMs: this.dialled || this.isSuspended ? 0 : this.dialAt - this.now });
  }

  /** A message arrived. */
  received(id: number, data: Data): void {
    if (id !== this.current) return;
    this.heard();
    this.patience = 1;
    if (this.config.ping?.matches(data)) this.answered();
    else this.io.emit("message", { data });
  }

  // ---- what the application does ----------------------------------------------------------------

  /** Accepts a message. Its number, or 0: there is no room, or nothing more is accepted. */
  send(data: Data): number {
    if (this.closing || this.isEnded || this.unsent.length >= (this.config.keep?.[0] ?? 1024)) return 0;
    return this.given + this.unsent.push(data);
  }

  /** Something suggests that the network changed: dial now if waiting, probe if attached. */
  retryNow(): void {
    this.isSuspended = false;
    if (!this.current && !this.dialled) this.dialAt = this.now;
    this.probe();
  }

  /** Something suggests a look at the peer. Never a verdict by itself. */
  probe(): void {
    this.wantsProbe = true;
  }

  /** Leaves the connection and stays away until {@link retryNow}. */
  suspend(): void {
    this.isSuspended = true;
    for (const id of [this.dialled, this.current]) {
      this.io.drop(id);
      this.lost(id, 1000, "suspended");
    }
    this.dialAt = Infinity;
  }

  /** Ends in order: what was accepted is delivered first. What is not within 10 s is unknown. */
  close(code: number, reason: string): void {
    if (this.closing || this.isEnded) return;
    this.closing = { code, reason, until: this.now + 10_000 };
    if (!this.current && !this.keeps) this.end(code, reason);
    else this.retryNow();
    this.io.emit("status");
  }

  /** Ends now. */
  end(code: number, reason: string): void {
    if (this.isEnded) return;
    this.isEnded = true;
    for (const id of [this.dialled, this.current]) this.io.drop(id, code, reason);
    this.current = this.dialled = 0;
    this.io.emit("close", { code, reason, wasClean: code === 1000, fate: this.fate });
  }

  // ---- time and output --------------------------------------------------------------------------

  /** Does what is due. True: this process was paused; let it read what has arrived, then call again. */
  timeout(): boolean {
    if (this.isEnded) return false;
    if (this.closing && this.closing.until <= this.now) this.end(this.closing.code, this.closing.reason);
    else if (this.dialAt <= this.now) {
      if (this.dialled) {
        this.io.drop(this.dialled);
        this.lost(this.dialled, 1006, "no answer in time");
      } else this.dial();
    }
    return !!this.current && this.watch();
  }

  /**
   * Our own pause is no evidence about the peer: before any verdict what has arrived is read, and a timer that is
   * late by more than `slack` asks for a fresh probe after that, and only that one is judged.
   */
  private watch(): boolean {
    if (this.replaceAt <= this.now) {
      this.replaceAt = Infinity;
      if (this.dialAt === Infinity) this.dial();
    }
    const late = this.now - this.silentAt;
    const drained = this.drained;
    this.drained = 0;
    if (late >= 0 && !drained) {
      this.drained = late > this.slack ? 2 : 1;
      return true;
    }
    if (late >= 0 && drained < 2) {
      const id = this.current;
      this.patience *= 2;
      this.io.drop(id);
      this.lost(id, 4408, "silent for too long");
    } else if (late >= 0 || this.wantsProbe || this.pingAt <= this.now) this.sendProbe(late >= 0);
    return false;
  }

  private sendProbe(isLate: boolean): void {
    const { ping } = this.config;
    const isOpen = this.isProbeQueued || this.probeLeftAt < Infinity;
    this.wantsProbe = false;
    // A fresh limit for the fresh probe; a short one where none can be sent.
    if (isLate) this.heardAt = this.mode === "session" || ping ? this.now : this.now - this.limit + 5000;
    if (isOpen && !isLate && this.pingAt > this.now) return;
    this.pingAt = ping && this.mode === "plain" ? this.now + ping.intervalMs : Infinity;
    if (!this.writeProbe()) return;
    this.isProbeQueued = true;
    this.probeLeftAt = Infinity;
    this.probeSentAt = NaN;
    // A plain peer is not replaced while it may live: it would see a second client.
    if (this.mode === "session") this.replaceAt = this.now + 1000;
  }

  /** Everything written has left: the time of a probe starts. */
  flushed(): void {
    if (this.isProbeQueued) this.probeLeftAt = this.probeSentAt = this.now;
    this.isProbeQueued = false;
  }

  private get silentAt(): number {
    const deadline = Math.min(Math.max(2000, 4 * (this.rtt ?? 0)), 20_000);
    return Math.min(this.heardAt + this.limit, this.probeLeftAt + deadline);
  }

  /** When {@link timeout} has something to do. */
  get dueAt(): number {
    if (this.isEnded) return Infinity;
    const watch = this.current ? Math.min(this.silentAt, this.replaceAt, this.pingAt, this.wantsProbe || this.drained ? 0 : Infinity) : Infinity;
    return Math.min(this.dialAt, watch, this.closing?.until ?? Infinity);
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
    this.given += this.unsent.length;
    for (const data of this.unsent.splice(0)) this.io.write(this.current, data);
    if (this.closing) this.end(this.closing.code, this.closing.reason);
  }

  /** Sends a probe, or will. False: this peer cannot be probed. */
  protected writeProbe(): boolean {
    const { ping } = this.config;
    if (ping) this.io.write(this.current, ping.message);
    return !!ping;
  }

  /** Everything up to this number is acknowledged; of a plain peer: was given to a connection. */
  get settled(): number {
    return this.given;
  }

  /** Whether something accepted would be lost by an end now. */
  get keeps(): number {
    return this.unsent.length;
  }

  /** Payload that is accepted and not acknowledged, or not given to a connection. */
  get bufferedAmount(): number {
    return this.unsent.reduce((sum, data) => sum + data.length, 0);
  }

  protected get fate(): object | undefined {
    return;
  }

  // ---- helpers ----------------------------------------------------------------------------------

  protected dial(): void {
    this.dialled = ++this.lastId;
    this.dialAt = this.now + (this.config.connectTimeoutMs ?? 10_000);
    this.io.dial(this.dialled, this.offers);
    this.io.emit("status");
  }

  protected attachPlain(id: number): void {
    const { ping, silenceLimitMs } = this.config;
    const limit = silenceLimitMs ?? (ping ? 2 * ping.intervalMs + 5000 : Infinity);
    this.attach(id, limit, limit / 8);
    if (ping) this.pingAt = this.now + ping.intervalMs;
    if (this.epoch++) this.io.emit("gap");
    this.io.emit("session", { mode: "plain", resumed: false, epoch: this.epoch, id: "" });
  }

  protected attach(id: number, limit: number, slack: number): void {
    if (this.current) this.io.drop(this.current);
    this.current = id;
    this.dialled = 0;
    this.dialAt = this.replaceAt = this.pingAt = this.probeLeftAt = Infinity;
    this.currentAt = this.heardAt = this.now;
    this.limit = limit * this.patience;
    this.slack = slack;
    this.isProbeQueued = this.wantsProbe = false;
    this.io.emit("status");
  }

  protected heard(): void {
    this.heardAt = this.now;
    this.replaceAt = this.probeLeftAt = Infinity;
  }

  protected answered(): void {
    const sample = this.now - this.probeSentAt;
    this.probeSentAt = NaN;
    if (sample >= 0) this.rtt = this.rtt === undefined ? sample : this.rtt + (sample - this.rtt) / 8;
  }

  /**
   * How long to wait before the next attempt. The first comes soon, spread over 0.2 s when only this client lost its
   * connection, over a second when others did too. Later waits have a ceiling of 0.5 s x 2^n, at most 30 s, and are
   * drawn below it: from its upper half by a lone client, from all of it by one of a crowd. Advice wins, up to 10 min.
   */
  protected delay(isAlone: boolean, advice?: Delay): number {
    const n = this.attempts++;
    let to = n ? Math.min(30_000, 250 * 2 ** n) : isAlone ? 200 : 1000;
    let from = n && isAlone ? to / 2 : 1;
    if (advice?.[1]) {
      const earliest = Math.min(advice[0], 600_000);
      const width = Math.max(1000, earliest / 10);
      to = Math.min(Math.max(advice[1], earliest + width), 600_000);
      from = Math.max(1, Math.min(earliest, to - width));
    }
    return from + (to - from) * this.random();
  }
}
