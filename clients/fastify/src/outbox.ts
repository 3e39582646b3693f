/**
 * An outbox for applications that prefer new messages to old ones: when it is full, it drops the oldest message that no
 * connection has written, instead of refusing the new one. Adjacent dropped messages form one gap. The gap keeps their
 * place in the stream: it is written as GAP, replayed and acknowledged like a message.
 *
 * Source: `docs/PROTOCOL.md` "Sequence rules" 7.
 */

import { type Bytes, type Data, encode, Flow, type Inbox, type Lane, Outbox, Type, type Window } from "@mainstay/client/protocol";
import { sizeOf } from "./queue.js";

/** The cause of a GAP: an overflow. */
const OVERFLOW = 1;

interface Item {
  data: Data;
  /** The item stands for messages that were dropped. */
  isGap: boolean;
  /** The number of the message, or the last number of the gap. */
  last: number;
  /** The payload bytes up to and with this item. */
  end: number;
}

/** An {@link Outbox} whose items may each stand for several numbers. */
export class DroppingOutbox extends Outbox {
  declare items: Item[];

  override get last(): number {
    return this.items.at(-1)?.last ?? this.base;
  }

  override push(data: Data, _isFirst?: boolean, length = sizeOf(data)): number {
    const last = this.last + 1;
    this.items.push({ data, isGap: false, last, end: this.endOf(last) + length });
    while (this.isOverFull() && this.dropOldest());
    return last;
  }

  /** As in {@link Outbox}. Called only where no gap follows. */
  override next(position: number): Data | undefined {
    return this.fitting(position)?.data;
  }

  /**
   * Returns the last number of the gap after this position; undefined if none follows, or the peer's window has no room for
   * it.
   */
  gapAfter(position: number): number | undefined {
    const item = this.fitting(position);
    return item?.isGap ? item.last : undefined;
  }

  override trim(lowestPosition: number): void {
    const floor = Math.min(this.acknowledged, lowestPosition);
    let freed = 0;
    for (let item; (item = this.items[freed]) && item.last <= floor; freed++) {
      this.base = item.last;
      this.baseEnd = item.end;
    }
    if (freed) this.items.splice(0, freed);
  }

  override after(number: number): Data[] {
    return this.items.filter((item) => item.last > number && !item.isGap).map((item) => item.data);
  }

  override endOf(number: number): number {
    if (number <= this.base) return this.baseEnd;
    return (this.items[this.index(number)] ?? this.items.at(-1))?.end ?? this.baseEnd;
  }

  private fitting(position: number): Item | undefined {
    const item = this.items[this.index(position + 1)];
    const ahead = position + 1 - this.acknowledged;
    if (!item || ahead <= 1) return item;
    return ahead <= this.peer.messages && item.end - this.endOf(this.acknowledged) <= this.peer.bytes ? item : undefined;
  }

  /** An unwritten gap does not count: there is one at most, and it has to leave room for the newest message. */
  private isOverFull(): boolean {
    const unwrittenGap = +!!this.items[this.index(this.written + 1)]?.isGap;
    const kept = this.items.length - this.index(this.acknowledged + 1) - unwrittenGap;
    return kept > 1 && (kept > this.limit.messages || this.bytes > this.limit.bytes);
  }

  /** Drops the oldest message that was never written, into a new gap or the one before it. Returns false if there is none. */
  private dropOldest(): boolean {
    const first = this.index(this.written + 1);
    const gap = this.items[first]?.isGap ? this.items[first] : undefined;
    const at = gap ? first + 1 : first;
    const oldest = this.items[at];
    if (!oldest) return false;
    const length = sizeOf(oldest.data);
    for (let i = at; i < this.items.length; i++) this.items[i]!.end -= length;
    if (gap) {
      gap.last = oldest.last;
      this.items.splice(at, 1);
    } else {
      oldest.isGap = true;
      oldest.data = "";
    }
    return true;
  }

  /** Returns the index of the first item whose last number is `number` or above: without a gap before it, a subtraction. */
  private index(number: number): number {
    const { items, base } = this;
    let low = 0;
    let high = Math.max(Math.min(items.length, number - base - 1), 0);
    if (items[high]?.last === number) return high;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (items[middle]!.last < number) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** A {@link Flow} that writes gaps. */
export class DroppingFlow extends Flow {
  declare outbox: DroppingOutbox;

  constructor(keep: Window, inbox: Inbox) {
    super(new DroppingOutbox(keep), inbox);
  }

  override writeData(lane: Lane): Data | undefined {
    const last = this.outbox.gapAfter(lane.wrote);
    return last ? this.writeGap(lane, last) : super.writeData(lane);
  }

  private writeGap(lane: Lane, last: number): Bytes {
    const first = lane.wrote + 1;
    lane.wrote = last;
    this.outbox.written = Math.max(this.outbox.written, last);
    return encode({ type: Type.Gap, first, count: last - first + 1, cause: OVERFLOW });
  }
}
