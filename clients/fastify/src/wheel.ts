/**
 * A timing wheel: the deadlines of all connections and sessions of one server, in slots of 8 ms, with one timer for the
 * next slot that is not empty.
 *
 * Arming and disarming a task are a few writes, which touch no other task: nothing is ordered within a slot. A deadline
 * that moves later is not touched: its task fires early, finds nothing due and is armed again. A deadline that is further
 * away than the wheel is long does the same.
 *
 * Deadlines are spread. Each goes into the emptiest of the slots from its own to 1/16 of its distance later, at most 64 ms
 * later, so that the probes of thousands of connections leave evenly. A deadline that is half a second away or more
 * goes into every second slot only, because one wake-up costs as much as many probes.
 */

/** The length of a slot in milliseconds. */
const SLOT = 8;
/** How many slots the wheel has: a power of two, and together longer than the default heartbeat interval. */
const SLOTS = 4096;
/** By how many slots a deadline may be delayed at most to find an emptier slot. */
const SPREAD = 8;
/** A deadline that is this many slots away or more goes into every second slot only. */
const FAR = 64;
/** The slot of a task that is not armed; the first slot is 1. */
const NONE = 0;

/** A task with one deadline. The wheel owns the two fields. */
export abstract class TimerTask {
  /** The slot that holds the task, counted from the start of the wheel, and the task's place in the slot. */
  slot = NONE;
  place = 0;

  /** The wheel calls this at the deadline or earlier, and has disarmed the task. */
  abstract fire(): void;
}

/** The tasks of one slot. A task that was disarmed leaves an empty place. */
class Slot {
  tasks: (TimerTask | undefined)[] = [];
  load = 0;
}

/** The deadlines of one server, on one timer. */
export class Wheel {
  /** How many tasks are armed. */
  armed = 0;
  private start: number;
  /** Every slot up to this one is empty, and accepts no deadline. */
  private passed = 0;
  private slots: (Slot | undefined)[] = new Array(SLOTS).fill(undefined);
  private timer: NodeJS.Timeout | undefined;
  /** The slot for which the timer waits. */
  private awaited = Infinity;
  private isTurning = false;
  private clock: () => number;

  /** `clock` returns milliseconds, which never run backwards. */
  constructor(clock: () => number) {
    this.clock = clock;
    this.start = clock();
  }

  /** The time of the wheel's clock. */
  get now(): number {
    return this.clock();
  }

  /** Fires `task` at the time `at` or earlier, and never more than 80 ms later. `now`: the time of the wheel's clock. */
  arm(task: TimerTask, at: number, now = this.clock()): void {
    // All slots before the one for which the timer waits are empty.
    if (!this.isTurning) this.passed = Math.max(this.passed, Math.min(this.slotBefore(now), this.awaited - 1));
    const last = this.passed + SLOTS - 2;
    const own = Math.min(Math.max(Math.ceil((at - this.start) / SLOT), this.passed + 1), last);
    if (task.slot !== NONE && task.slot <= own) return;
    this.disarm(task);
    const distance = own - this.passed;
    const step = distance < FAR ? 1 : 2;
    const slot = this.emptiest(own + (own % step), Math.min(own + Math.min(SPREAD, distance >> 4), last), step);
    const found = (this.slots[slot & (SLOTS - 1)] ??= new Slot());
    task.slot = slot;
    task.place = found.tasks.push(task) - 1;
    found.load++;
    this.armed++;
    if (slot < this.awaited && !this.isTurning) this.await(slot, now);
  }

  /** Disarms `task`: it does not fire. */
  disarm(task: TimerTask): void {
    if (task.slot === NONE) return;
    const slot = this.at(task.slot)!;
    task.slot = NONE;
    slot.tasks[task.place] = undefined;
    // Empty places are removed once they are the majority.
    if (--slot.load < slot.tasks.length >> 2) this.compact(slot);
    if (--this.armed || this.isTurning) return;
    clearTimeout(this.timer);
    this.awaited = Infinity;
  }

  /** Returns the first of the emptiest slots. */
  private emptiest(from: number, to: number, step: number): number {
    let found = from;
    for (let slot = from + step; slot <= to; slot += step) if (this.load(slot) < this.load(found)) found = slot;
    return found;
  }

  private compact(slot: Slot): void {
    slot.tasks = slot.tasks.filter((task) => task);
    slot.tasks.forEach((task, place) => (task!.place = place));
  }

  /** Fires every task whose slot has come. */
  private turn = (): void => {
    this.awaited = Infinity;
    this.isTurning = true;
    const reached = this.slotBefore(this.clock());
    try {
      // A task that is armed while a slot fires goes into a later slot.
      while (this.armed && this.passed < reached) this.fire(this.at(++this.passed));
    } finally {
      this.isTurning = false;
      // A task that throws does not keep the others from firing.
      if (this.armed) this.await(this.next(), this.clock());
    }
  };

  private fire(slot: Slot | undefined): void {
    while (slot?.load) {
      const task = slot.tasks.pop();
      if (!task) continue;
      task.slot = NONE;
      slot.load--;
      this.armed--;
      task.fire();
    }
    if (slot) slot.tasks.length = 0;
  }

  /** Returns the first slot that is not empty. After a task threw, this may be the slot that was firing. */
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
