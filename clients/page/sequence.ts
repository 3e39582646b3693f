/** Numbers that come one after the other: what is missing, comes twice or comes late shows in the numbers alone. */
export class Sequence {
  /** How many different numbers came. */
  arrived = 0;
  twice = 0;
  late = 0;
  /** The newest that came; 0: none came yet. The first one is where it begins. */
  newest = 0;
  #missing = new Set<number>();

  take(n: number): void {
    // The first; or the server's clock was set.
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
