/**
 * The page's own judgement of one lane: what was said and what arrived, by the numbers of the messages alone, whoever
 * claims what.
 */

import { Sequence } from "./sequence.js";

export class Judge {
  sent = 0;
  answered = 0;
  /** Sent and not answered, oldest first; with when. */
  open = new Map<number, number>();
  /** The server's own. */
  ticks = new Sequence();
  #lost = new Set<number>();
  #twice = 0;
  #late = 0;
  #last = 0;

  /** The page said a number, or would have: there was nothing to send it on. */
  said(n: number, wasSent: boolean): void {
    this.sent++;
    if (wasSent) this.open.set(n, performance.now());
    else this.#lost.add(n);
  }

  /** The server answered; how long it took, if this is the first answer. */
  answer(n: number): number | undefined {
    const at = this.open.get(n);
    if (at === undefined && !this.#lost.delete(n)) {
      this.#twice++;
      return undefined;
    }
    this.open.delete(n);
    this.answered++;
    if (n < this.#last) this.#late++;
    this.#last = Math.max(n, this.#last);
    // Messages arrive in order: what is older and was not answered is not on its way any more.
    for (const older of this.open.keys()) if (older < n) this.lose(older);
    return at && performance.now() - at;
  }

  /** What was open is lost: its connection is gone, and nobody kept it. */
  abandon(): void {
    for (const n of this.open.keys()) this.lose(n);
  }

  get lost(): number {
    return this.#lost.size + this.ticks.missing;
  }

  get twice(): number {
    return this.#twice + this.ticks.twice;
  }

  get late(): number {
    return this.#late + this.ticks.late;
  }

  get isFaultless(): boolean {
    return !this.lost && !this.twice && !this.late;
  }

  private lose(n: number): void {
    this.open.delete(n);
    this.#lost.add(n);
  }
}
