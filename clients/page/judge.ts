/** The page's own judgement of one lane: what was sent and what arrived, by the numbers of the messages alone. */

import { Sequence } from "./sequence.js";

export class Judge {
  sent = 0;
  answered = 0;
  /** When each unanswered message was sent, the oldest first. */
  open = new Map<number, number>();
  /** The server's own messages. */
  ticks = new Sequence();
  #lost = new Set<number>();
  #twice = 0;
  #late = 0;
  #last = 0;

  /** Notes a message of the page. `wasSent` is false if there was no connection for it. */
  note(n: number, wasSent: boolean): void {
    this.sent++;
    if (wasSent) this.open.set(n, performance.now());
    else this.#lost.add(n);
  }

  /** Notes an answer. Returns the round trip if it is the first answer to this message. */
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
    // Messages arrive in order: an older one without an answer is not on its way any more.
    for (const older of this.open.keys()) if (older < n) this.lose(older);
    return at && performance.now() - at;
  }

  /** The unanswered messages are lost: their connection is gone, and neither end kept them. */
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
