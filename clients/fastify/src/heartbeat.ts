/**
 * Decides when to probe a client and when to call it dead.
 *
 * The heartbeat probes every interval, whether the connection is busy or not. Once the probe has left the process, the
 * client has a deadline of clamp(4 x srtt + 1 s, 5 s, 20 s) to show a sign of life:
 *
 * - any byte that arrives is a sign of life and restarts the deadline;
 * - progress of our own writes is a weaker one, because it shows the client's kernel and not the client: it stretches the
 *   deadline to four times its length at most;
 * - a probe that cannot leave the process counts against the client after four deadlines without a byte in either
 *   direction, and after 24 deadlines whatever arrives: a client that accepts no bytes for that long is not reading.
 *
 * **A pause of this process is no evidence about the client.** A timer that fires late by more than a quarter of the
 * interval, and by more than 250 ms, makes the heartbeat read first and then send a fresh probe, and only the fresh probe
 * counts. Even in time, the heartbeat calls no client dead before the driver has read what was readable.
 *
 * Bytes only record when they arrived: no message touches a timer.
 *
 * Pure: time and randomness are arguments, in milliseconds. Source: `docs/PROTOCOL.md` "Heartbeat".
 */

/**
 * What shows that a client is dead. `silent`: no byte arrived after a probe. `frozen`: only its kernel accepted bytes.
 * `stalled`: the probe could not leave this process.
 */
export type Evidence = "silent" | "frozen" | "stalled";

/** What the driver has to do now. */
export type HeartbeatAction =
  /** Send a probe with this nonce. */
  | { kind: "probe"; nonce: number }
  /** Read what is readable, yield once, and call {@link Heartbeat.handleTimeout} again at once. */
  | { kind: "drain" }
  /** The client sends bytes and answers no probe. The client counts as alive; the heartbeat reports this every five minutes. */
  | { kind: "not listening" }
  /** Drop the connection: the client is dead. */
  | { kind: "dead"; evidence: Evidence };

/** A client that sends bytes and leaves probes unanswered for so long is not listening. Milliseconds. */
const ANSWER_LIMIT = 300_000;
/**
 * A timer that is late by no more is no pause of this process, however short the interval: otherwise a busy process that is
 * late again and again would put off the verdict for ever. Milliseconds.
 */
const SHORTEST_PAUSE = 250;
/** Upper bound, in deadlines, while only our own writes make progress. */
const HARD_CAP = 4;
/** Upper bound, in deadlines, for a client that sends bytes and accepts none. */
const STALL_CAP = 24;

/** The heartbeat of one connection. */
export class Heartbeat {
  /** Smoothed round-trip time of the probes (RFC 6298). */
  rtt: number | undefined;
  private nextBeat: number;
  /** The start of an open deadline: when the oldest open probe was made or, once it left, when it left. */
  private since: number;
  private bytesAt: number;
  private progressAt: number;
  /** The probes after `answered` up to `newest` are open. Nonces have 32 bits. */
  private newest: number;
  private answered: number;
  private drained: "no" | "in time" | "late" = "no";
  /** The oldest open probe has left the process. */
  private hasLeft = false;
  /** The newest probe has not left yet. */
  private isQueued = false;
  /** `since` belongs to the probe after `answered`, so the answer to that probe measures the round trip. */
  private isTimed = false;
  private interval: number;

  /**
   * The first probe comes at a uniform time in (0, interval), so that connections that were opened together are probed at
   * different times. `random` returns numbers in [0, 1).
   */
  constructor(now: number, interval: number, random: () => number) {
    this.interval = interval;
    this.since = this.bytesAt = this.progressAt = now;
    this.nextBeat = now + Math.floor(interval * random());
    this.newest = this.answered = Math.floor(random() * 2 ** 32);
  }

  /** Records that bytes arrived, of whatever kind. */
  handleBytes(now: number): void {
    this.bytesAt = now;
  }

  /** Records that the driver left readable bytes unread on purpose. That counts like bytes, unless a probe cannot leave. */
  handleUnread(now: number): void {
    if (!this.isQueued) this.handleBytes(now);
  }

  /** Records that everything written so far has left the process: an open deadline starts here. */
  handleFlushed(now: number): void {
    if (this.isQueued && !this.hasLeft) {
      this.restart(now);
      this.hasLeft = true;
    }
    this.isQueued = false;
  }

  /** Records that some written bytes left the process. */
  handleWriteProgress(now: number): void {
    this.progressAt = now;
  }

  /** Handles an answer: it answers the probe with this nonce and all earlier ones. An unknown nonce counts as bytes only. */
  handlePong(now: number, nonce: number): void {
    this.handleBytes(now);
    const answered = (nonce - this.answered) >>> 0;
    if (nonce > 0xffff_ffff || !answered || answered > this.open) return;
    if (this.isTimed && this.hasLeft && answered === 1) {
      const sample = now - this.since;
      this.rtt = this.rtt === undefined ? sample : this.rtt + (sample - this.rtt) / 8;
    }
    this.answered = nonce;
    this.isTimed = false;
    if (this.open) {
      // The client answers, only late: the deadline of the newer probes starts here.
      this.restart(now);
      this.hasLeft = !this.isQueued;
    }
  }

  /**
   * Returns the next action that is due; undefined if none is. Call it until it returns undefined. An early call does nothing.
   */
  handleTimeout(now: number): HeartbeatAction | undefined {
    const late = now - this.due;
    const { drained } = this;
    this.drained = "no";
    if (drained === "late") return this.beat(now, true);
    if (drained === "no") {
      if (late < 0) return;
      if (late > Math.max(this.interval / 4, SHORTEST_PAUSE)) return this.drain("late");
      if (this.deadAt <= now) return this.drain("in time");
    }
    if (this.deadAt <= now) return { kind: "dead", evidence: this.evidence };
    if (this.open && this.hasLeft && now - this.since >= ANSWER_LIMIT) {
      this.restart(now);
      this.isTimed = false;
      return { kind: "not listening" };
    }
    if (this.nextBeat <= now) return this.beat(now, false);
    return;
  }

  /** Whether a probe is unanswered: the driver then has to report when written bytes leave the process. */
  get isProbing(): boolean {
    return this.newest !== this.answered;
  }

  /** Returns when to call {@link handleTimeout}. */
  pollTimeout(): number {
    return this.drained === "no" ? this.due : 0;
  }

  private get due(): number {
    return Math.min(this.nextBeat, this.deadAt);
  }

  /**
   * Makes a probe. It shares the deadline of an open probe, because a dead client would get more time with every probe
   * otherwise.
   */
  private beat(now: number, isFresh: boolean): HeartbeatAction {
    if (isFresh || !this.open) {
      this.restart(now);
      this.answered = this.newest;
      this.hasLeft = false;
      this.isTimed = true;
    }
    this.newest = (this.newest + 1) >>> 0;
    this.isQueued = true;
    this.nextBeat = now + Math.floor(this.interval * (0.9 + 0.2 * spread(this.newest)));
    return { kind: "probe", nonce: this.newest };
  }

  private drain(timing: "in time" | "late"): HeartbeatAction {
    this.drained = timing;
    return { kind: "drain" };
  }

  /** When the client counts as dead, if nothing else happens. */
  private get deadAt(): number {
    if (!this.open) return Infinity;
    const deadline = Math.min(Math.max(4 * (this.rtt ?? 0) + 1000, 5000), 20_000);
    const signOfLife = Math.max(this.since, this.bytesAt, this.progressAt);
    if (!this.hasLeft) return Math.min(signOfLife + deadline * HARD_CAP, Math.max(this.since, this.progressAt) + deadline * STALL_CAP);
    return Math.min(signOfLife + deadline, Math.max(this.since, this.bytesAt) + deadline * HARD_CAP);
  }

  private get evidence(): Evidence {
    if (!this.hasLeft) return "stalled";
    return this.progressAt > Math.max(this.since, this.bytesAt) ? "frozen" : "silent";
  }

  /** How many probes are open. */
  private get open(): number {
    return (this.newest - this.answered) >>> 0;
  }

  /** Restarts the deadline of the open probes at `now`. */
  private restart(now: number): void {
    this.since = this.bytesAt = this.progressAt = now;
  }
}

/**
 * Returns a number in [0, 1). The factor, 2^32 divided by the golden ratio, spreads consecutive nonces, so probes are
 * jittered.
 */
function spread(nonce: number): number {
  return (Math.imul(nonce, 0x9e37_79b1) >>> 0) / 2 ** 32;
}
