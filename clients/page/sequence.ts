/** Numbers that come one after the other: they show which are missing, repeated or late. */
export class Sequence {
  /** The number of different numbers that came. */
  arrived = 0;
  twice = 0;
  late = 0;
  /** The newest number; 0: none came yet. The first one begins the sequence. */
  newest = 0;
  #missing = new Set<number>();

  receive(n: number): void {
    // The first number; or the server's clock was set.
    if (!this.newest || n - this.newest > 100_000) this.newest = n - 1;
    if (n <= this.newest) {
      if (!this.#missing.delete(n)) {
        this.twice++;
        return;
      }
      this.late++;
    }
    for (let next = this.newest + 1; next < n; next++) this.#missing.add(next);
    this.newest = Math.max(n, this.newest);
    this.arrived++;
  }

  get missing(): number {
    return this.#missing.size;
  }
}
