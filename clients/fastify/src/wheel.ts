/**
 * The deadlines of all connections and sessions of one server, in slots of 16 ms, with one timer for the next slot that
 * holds any.
 *
 * Arming and disarming are a few writes: nothing is allocated, and nothing is ordered within a slot. A deadline that
 * moves away is not touched: it fires early, finds nothing due and is armed again. One that is further away than the wheel
 * is long does the same.
 *
 * Deadlines are spread: of the slots from its own to 1/16 of its distance later, 64 ms at most, each takes the emptiest,
 * so that the probes of thousands of connections leave evenly and not in heaps.
 */

/** Milliseconds. A wake costs as much as many probes, so that shorter slots cost more; longer ones make heaps of probes. */
const SLOT = 16;
/** Longer than the default heartbeat interval. */
const SLOTS = 2048;
/** Slots that a deadline may be put off by, so that it finds an emptier one. */
const SPREAD = 4;
/** No slot: the first is 1. */
const NONE = 0;

/** What has one deadline, and its place on the wheel, which is the wheel's. */
export abstract class Resident {
  /** The slot that it stands in, counted from the start of the wheel. */
  slot = NONE;
  before: Resident | undefined = undefined;
  behind: Resident | undefined = undefined;

  /** Its slot has come; it is not armed any more. It may be early. */
  abstract due(): void;
}

export class Wheel {
  /** How many residents are armed. */
  armed = 0;
  private start: number;
  /** Every slot up to this one is empty, and no deadline is put there. */
  private passed = 0;
  private first: (Resident | undefined)[] = new Array(SLOTS).fill(undefined);
  private load = new Uint32Array(SLOTS);
  private timer: NodeJS.Timeout | undefined;
  /** The slot that the timer waits for. */
  private awaited = Infinity;
  private isTurning = false;
  private clock: () => number;

  /** `clock`: milliseconds that never run backwards. */
  constructor(clock: () => number) {
    this.clock = clock;
    this.start = clock();
  }

  /** By the wheel's clock. */
  get now(): number {
    return this.clock();
  }

  /** Has `resident` called at `at` or earlier, and never more than 80 ms later. */
  arm(resident: Resident, at: number): void {
    const now = this.clock();
    // Before the slot that the timer waits for all are empty.
    if (!this.isTurning) this.passed = Math.max(this.passed, Math.min(this.slotBefore(now), this.awaited - 1));
    const least = Math.min(Math.max(Math.ceil((at - this.start) / SLOT), this.passed + 1), this.passed + SLOTS - 1);
    if (resident.slot !== NONE && resident.slot <= least) return;
    this.disarm(resident);
    const most = Math.min(least + Math.min(SPREAD, (least - this.passed) >> 4), this.passed + SLOTS - 1);
    let slot = least;
    for (let other = least + 1; other <= most; other++) if (this.load[other % SLOTS]! < this.load[slot % SLOTS]!) slot = other;
    this.link(resident, slot);
    if (slot < this.awaited && !this.isTurning) this.await(slot, now);
  }

  /** `resident` is not called any more. */
  disarm(resident: Resident): void {
    const { slot, before, behind } = resident;
    if (slot === NONE) return;
    resident.slot = NONE;
    resident.before = resident.behind = undefined;
    if (before) before.behind = behind;
    else this.first[slot % SLOTS] = behind;
    if (behind) behind.before = before;
    this.load[slot % SLOTS]!--;
    if (--this.armed || this.isTurning) return;
    clearTimeout(this.timer);
    this.awaited = Infinity;
  }

  private link(resident: Resident, slot: number): void {
    const first = this.first[slot % SLOTS];
    resident.slot = slot;
    resident.behind = first;
    if (first) first.before = resident;
    this.first[slot % SLOTS] = resident;
    this.load[slot % SLOTS]!++;
    this.armed++;
  }

  /** Calls every resident whose slot has come. */
  private turn = (): void => {
    this.awaited = Infinity;
    this.isTurning = true;
    const reached = this.slotBefore(this.clock());
    try {
      while (this.armed && this.passed < reached) {
        // What is armed while this slot is called stands in a later one.
        const slot = ++this.passed;
        for (let resident; (resident = this.first[slot % SLOTS]); ) {
          this.disarm(resident);
          resident.due();
        }
      }
    } finally {
      this.isTurning = false;
      // One that throws keeps none of the others from being called.
      if (this.armed) this.await(this.next(), this.clock());
    }
  };

  /** The first slot that is not empty. After a call that threw it may be the one that was being called. */
  private next(): number {
    if (this.load[this.passed % SLOTS]) this.passed--;
    let slot = this.passed + 1;
    while (!this.load[slot % SLOTS]) slot++;
    return slot;
  }

  private await(slot: number, now: number): void {
    clearTimeout(this.timer);
    this.awaited = slot;
    this.timer = setTimeout(this.turn, Math.max(Math.ceil(this.start + slot * SLOT - now), 1));
  }

  private slotBefore(now: number): number {
    return Math.floor((now - this.start) / SLOT);
  }
}
