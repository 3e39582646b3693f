/**
 * The deadlines of all connections and sessions of one server, in slots of 8 ms, with one timer for the next slot that
 * holds any.
 *
 * Arming and disarming are a few writes, which touch no other resident: nothing is ordered within a slot. A deadline that
 * moves away is not touched: it fires early, finds nothing due and is armed again. One that is further away than the wheel
 * is long does the same.
 *
 * Deadlines are spread: of the slots from its own to 1/16 of its distance later, 64 ms at most, each takes the emptiest,
 * so that the probes of thousands of connections leave evenly and not in heaps. Those that are half a second away or more
 * take every second slot: a wake costs as much as many probes.
 */

/** Milliseconds. */
const SLOT = 8;
/** A power of two, and longer than the default heartbeat interval. */
const SLOTS = 4096;
/** Slots that a deadline may be put off by, so that it finds an emptier one. */
const SPREAD = 8;
/** From so many slots away on a deadline takes every second one. */
const FAR = 64;
/** No slot: the first is 1. */
const NONE = 0;

/** What has one deadline, and its place on the wheel, which is the wheel's. */
export abstract class Resident {
  /** The slot that it stands in, counted from the start of the wheel, and where in it. */
  slot = NONE;
  place = 0;

  /** Its slot has come; it is not armed any more. It may be early. */
  abstract due(): void;
}

/** What stands in a slot, and places that were left. */
class Slot {
  residents: (Resident | undefined)[] = [];
  load = 0;
}

export class Wheel {
  /** How many residents are armed. */
  armed = 0;
  private start: number;
  /** Every slot up to this one is empty, and no deadline is put there. */
  private passed = 0;
  private slots: (Slot | undefined)[] = new Array(SLOTS).fill(undefined);
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

  /** Has `resident` called at `at` or earlier, and never more than 80 ms later. `now`: by the wheel's clock. */
  arm(resident: Resident, at: number, now = this.clock()): void {
    // Before the slot that the timer waits for all are empty.
    if (!this.isTurning) this.passed = Math.max(this.passed, Math.min(this.slotBefore(now), this.awaited - 1));
    const last = this.passed + SLOTS - 2;
    const own = Math.min(Math.max(Math.ceil((at - this.start) / SLOT), this.passed + 1), last);
    if (resident.slot !== NONE && resident.slot <= own) return;
    this.disarm(resident);
    const distance = own - this.passed;
    const step = distance < FAR ? 1 : 2;
    const slot = this.emptiest(own + (own % step), Math.min(own + Math.min(SPREAD, distance >> 4), last), step);
    const found = (this.slots[slot & (SLOTS - 1)] ??= new Slot());
    resident.slot = slot;
    resident.place = found.residents.push(resident) - 1;
    found.load++;
    this.armed++;
    if (slot < this.awaited && !this.isTurning) this.await(slot, now);
  }

  /** `resident` is not called any more. */
  disarm(resident: Resident): void {
    if (resident.slot === NONE) return;
    const slot = this.at(resident.slot)!;
    resident.slot = NONE;
    slot.residents[resident.place] = undefined;
    // Places that were left are forgotten when they are most.
    if (--slot.load < slot.residents.length >> 2) this.close(slot);
    if (--this.armed || this.isTurning) return;
    clearTimeout(this.timer);
    this.awaited = Infinity;
  }

  /** The first of the emptiest slots. */
  private emptiest(from: number, to: number, step: number): number {
    let found = from;
    for (let slot = from + step; slot <= to; slot += step) if (this.load(slot) < this.load(found)) found = slot;
    return found;
  }

  private close(slot: Slot): void {
    slot.residents = slot.residents.filter((resident) => resident);
    slot.residents.forEach((resident, place) => (resident!.place = place));
  }

  /** Calls every resident whose slot has come. */
  private turn = (): void => {
    this.awaited = Infinity;
    this.isTurning = true;
    const reached = this.slotBefore(this.clock());
    try {
      // What is armed while a slot is called stands in a later one.
      while (this.armed && this.passed < reached) this.call(this.at(++this.passed));
    } finally {
      this.isTurning = false;
      // One that throws keeps none of the others from being called.
      if (this.armed) this.await(this.next(), this.clock());
    }
  };

  private call(slot: Slot | undefined): void {
    while (slot?.load) {
      const resident = slot.residents.pop();
      if (!resident) continue;
      resident.slot = NONE;
      slot.load--;
      this.armed--;
      resident.due();
    }
    if (slot) slot.residents.length = 0;
  }

  /** The first slot that is not empty. After a call that threw it may be the one that was being called. */
  private next(): number {
    if (this.load(this.passed)) this.passed--;
    let slot = this.passed + 1;
    while (!this.load(slot)) slot++;
    return slot;
  }

  private await(slot: number, now: number): void {
    clearTimeout(this.timer);
    this.awaited = slot;
    this.timer = setTimeout(this.turn, Math.max(Math.ceil(this.start + slot * SLOT - now), 1));
  }

  private at(slot: number): Slot | undefined {
    return this.slots[slot & (SLOTS - 1)];
  }

  private load(slot: number): number {
    return this.at(slot)?.load ?? 0;
  }

  private slotBefore(now: number): number {
    return Math.floor((now - this.start) / SLOT);
  }
}
