/**
 * The page's own judgement of one direction. Messages carry n = 1, 2, 3 ...; whatever is missing, comes twice or comes
 * late shows in the numbers alone, whoever claims what.
 */
export class Sequence {
  /** How many different numbers came. */
  arrived = 0;
  twice = 0;
  late = 0;
  /** The number that comes next if all is well. */
  next = 1;
  #missing = new Set<number>();

  /** Takes a number that arrived. Whether it came for the first time. */
  take(n: number): boolean {
    if (n < this.next && !this.#missing.has(n)) {
      this.twice++;
      return false;
    }
    if (this.#missing.delete(n)) this.late++;
    for (; this.next <= n; this.next++) if (this.next < n) this.#missing.add(this.next);
    this.arrived++;
    return true;
  }

  get missing(): number {
    return this.#missing.size;
  }

  get isFaultless(): boolean {
    return !this.missing && !this.twice && !this.late;
  }

  /** What is wrong, in words; empty if nothing is. */
  get faults(): string {
    const faults = [
      this.missing && `${this.missing} missing (${ranges([...this.#missing])})`,
      this.twice && `${this.twice} twice`,
      this.late && `${this.late} out of order`,
    ];
    return faults.filter(Boolean).join(", ");
  }
}

/** 3, 4, 5, 9 as "3–5, 9"; the first few. */
function ranges(numbers: number[]): string {
  const found: [number, number][] = [];
  for (const n of numbers.sort((a, b) => a - b)) {
    const last = found.at(-1);
    if (last && last[1] === n - 1) last[1] = n;
    else found.push([n, n]);
  }
  const words = found.slice(0, 3).map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`));
  return words.join(", ") + (found.length > 3 ? " …" : "");
}
