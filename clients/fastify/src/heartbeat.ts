/**
 * When to probe a client, and when to call it dead.
 *
 * It probes every interval, busy or not. Once the probe has left the process the client has clamp(4 x srtt + 1 s,
 * 5 s, 20 s) to show a sign of life: any byte is one and starts that time anew; progress of our own writes is a
 * weaker one, which stretches it to four times its length; a probe that cannot even leave counts after as long
 * without a byte either way, and after 24 times whatever arrives: who takes nothing for so long reads nothing.
 *
 * **Our own pause is no evidence about the client.** A timer that fires late by more than a quarter of the interval
 * asks to read first, then for a fresh probe, and only that one is judged. Even in time, nobody is called dead before
 * what was readable has been read.
 *
 * Bytes only note when they came: no timer is touched per message.
 *
 * Pure: time and randomness are arguments, in milliseconds. Source: `docs/PROTOCOL.md` "Heartbeat".
 */

/** What is to be done now. `drain`: read what is readable, yield once, and call `timeout` again at once. */
export type Action =
  | { is: "probe"; nonce: number }
  | { is: "drain" }
  /** It sends bytes and answers no probe. No verdict; said again after each five minutes. */
  | { is: "not listening" }
  /** `silent`: nothing came back after a probe. `frozen`: its kernel took bytes. `stalled`: the probe could not leave. */
  | { is: "dead"; evidence: "silent" | "frozen" | "stalled" };

const ANSWER_LIMIT = 300_000;
/** How many deadlines pass at most while only our own writes make progress. */
const HARD_CAP = 4;
/** How many deadlines pass at most while the client sends and takes nothing. */
const TAKES_NOTHING = 24;

export class Heartbeat {
  /** Smoothed round-trip time of the probes (RFC 6298). */
  rtt: number | undefined;
  private nextBeat: number;
  /** What an open deadline counts from: when the oldest open probe was made and, once it left, when it left. */
  private since: number;
  private bytesAt: number;
  private progressAt: number;
  /** The probes after `answered` up to `newest` are open. 32 bits. */
  private newest: number;
  private answered: number;
  private drained: "no" | "in time" | "late" = "no";
  /** The oldest open probe has left. */
  private hasLeft = false;
  /** The newest one has not. */
  private isQueued = false;
  /** `since` belongs to the probe after `answered`, so its answer measures the round trip. */
  private isTimed = false;
  private interval: number;

  /** The first beat is uniform in (0, interval), so that connections made together beat apart. `random`: [0, 1). */
  constructor(now: number, interval: number, random: () => number) {
    this.interval = interval;
    this.since = this.bytesAt = this.progressAt = now;
    this.nextBeat = now + Math.floor(interval * random());
    this.newest = this.answered = Math.floor(random() * 2 ** 32);
  }

  /** Bytes arrived, of whatever kind. */
  bytes(now: number): void {
    this.bytesAt = now;
  }

  /** Readable bytes were left unread on purpose: our doing, and no evidence, unless a probe of ours cannot leave. */
  unread(now: number): void {
    if (!this.isQueued) this.bytes(now);
  }

  /** Everything written so far has left the process: an open deadline counts from here. */
  flushed(now: number): void {
    if (this.isQueued && !this.hasLeft) {
      this.restart(now);
      this.hasLeft = true;
    }
    this.isQueued = false;
  }

  /** Some of what was written left. */
  progress(now: number): void {
    this.progressAt = now;
  }

  /** An answer: confirms the probe with this nonce and those before it. An unknown one is only bytes. */
  pong(now: number, nonce: number): void {
    this.bytes(now);
    const answered = (nonce - this.answered) >>> 0;
    if (nonce > 0xffff_ffff || !answered || answered > this.open) return;
    if (this.isTimed && this.hasLeft && answered === 1) {
      const sample = now - this.since;
      this.rtt = this.rtt === undefined ? sample : this.rtt + (sample - this.rtt) / 8;
    }
    this.answered = nonce;
    this.isTimed = false;
    if (this.open) {
      // It answers, only late: the newer probes get their time from here.
      this.restart(now);
      this.hasLeft = !this.isQueued;
    }
  }

  /** Does what is due, and nothing when called early. Call it until it returns nothing. */
  timeout(now: number): Action | undefined {
    const late = now - this.due;
    const { drained } = this;
    this.drained = "no";
    if (drained === "late") return this.beat(now, true);
    if (drained === "no") {
      if (late < 0) return;
      if (late > this.interval / 4) return this.drain("late");
      if (this.deadAt <= now) return this.drain("in time");
    }
    if (this.deadAt <= now) return { is: "dead", evidence: this.evidence };
    if (this.open && this.hasLeft && now - this.since >= ANSWER_LIMIT) {
      this.restart(now);
      this.isTimed = false;
      return { is: "not listening" };
    }
    if (this.nextBeat <= now) return this.beat(now, false);
    return;
  }

  /** A probe is not answered: whoever drives tells when what is written leaves. */
  get isProbing(): boolean {
    return this.newest !== this.answered;
  }

  /** When {@link timeout} has something to do. */
  get dueAt(): number {
    return this.drained === "no" ? this.due : 0;
  }

  private get due(): number {
    return Math.min(this.nextBeat, this.deadAt);
  }

  /** A probe shares the deadline of an open one, or a dead client would be given more time with every beat. */
  private beat(now: number, isFresh: boolean): Action {
    if (isFresh || !this.open) {
      this.restart(now);
      this.answered = this.newest;
      this.hasLeft = false;
      this.isTimed = true;
    }
    this.newest = (this.newest + 1) >>> 0;
    this.isQueued = true;
    this.nextBeat = now + Math.floor(this.interval * (0.9 + 0.2 * spread(this.newest)));
    return { is: "probe", nonce: this.newest };
  }

  private drain(why: "in time" | "late"): Action {
    this.drained = why;
    return { is: "drain" };
  }

  /** When the open probes count as unanswered, if nothing else happens. */
  private get deadAt(): number {
    if (!this.open) return Infinity;
    const deadline = Math.min(Math.max(4 * (this.rtt ?? 0) + 1000, 5000), 20_000);
    const signOfLife = Math.max(this.since, this.bytesAt, this.progressAt);
    if (!this.hasLeft) return Math.min(signOfLife + deadline * HARD_CAP, Math.max(this.since, this.progressAt) + deadline * TAKES_NOTHING);
    return Math.min(signOfLife + deadline, Math.max(this.since, this.bytesAt) + deadline * HARD_CAP);
  }

  private get evidence(): "silent" | "frozen" | "stalled" {
    if (!this.hasLeft) return "stalled";
    return this.progressAt > Math.max(this.since, this.bytesAt) ? "frozen" : "silent";
  }

  private get open(): number {
    return (this.newest - this.answered) >>> 0;
  }

  /** The open probes get their whole deadline from `now`. */
  private restart(now: number): void {
    this.since = this.bytesAt = this.progressAt = now;
  }
}

/** In [0, 1): 2^32 over the golden ratio throws consecutive nonces far apart, so that beats are jittered. */
function spread(nonce: number): number {
  return (Math.imul(nonce, 0x9e37_79b1) >>> 0) / 2 ** 32;
}
