/**
 * What both ends of a session do alike: they number and keep what they send, count and deliver what they receive,
 * acknowledge it, and check that both ends counted the same.
 *
 * No number travels with a message. A {@link Lane} is one connection's position in the two streams; it starts where
 * HELLO and WELCOME say and moves by one with every message. The flow outlives its lanes.
 *
 * Source: `docs/PROTOCOL.md` "Sequence rules".
 */

import { type Beat, type Bytes, bytesOf, type Data, encode, encodeData, fail, Type, type Window } from "./wire.js";

/** The position of one connection in each direction: the number last written, the number last read. */
export interface Lane {
  wrote: number;
  read: number;
}

/**
 * The next thing for the application: a message, or `count` messages from `first` on that the peer dropped by its policy.
 * A `count` of 0: the backend behind the peer was replaced before message `first`.
 */
export interface Delivery {
  data?: Data | undefined;
  first: number;
  count: number;
}

/** A message is larger than the other end accepts. */
export class MessageTooLargeError extends RangeError {
  override name = "MessageTooLargeError";
  /** The payload bytes of the message. */
  declare size: number;
  /** The most payload bytes that the other end accepts. */
  declare limit: number;

  constructor(size: number, limit: number) {
    super(`the message has ${size} bytes, the other end accepts at most ${limit}`);
    this.size = size;
    this.limit = limit;
  }
}

/** The window of a peer that has announced none. */
export const INITIAL_WINDOW: Window = { messages: 16, bytes: 65_536 };

/** Messages accepted and not yet acknowledged, kept so that an attach can write them again. */
export class Outbox {
  /** The messages above `base`, one for each number; `end` is the sum of payload bytes up to and including it. */
  items: { data: Data; end: number }[] = [];
  base = 0;
  baseEnd = 0;
  acknowledged = 0;
  /** The highest number of which any connection was given a byte. */
  written = 0;
  /** Messages above this number are not written yet: others may be inserted before them. */
  ready = Infinity;
  /** The window of the peer. */
  peer = INITIAL_WINDOW;
  /** The bound of this buffer. */
  declare limit: Window;

  constructor(limit: Window) {
    this.limit = limit;
  }

  get last(): number {
    return this.base + this.items.length;
  }

  /** Payload bytes that are not acknowledged. */
  get bytes(): number {
    return this.endOf(this.last) - this.endOf(this.acknowledged);
  }

  /**
   * Numbers and keeps a message, and returns its number. 0: there is no room. One message always fits, of any size.
   * `isFirst`: it is inserted before the messages that are not {@link ready}, and has as much room again, as these may
   * fill the buffer. `length`: its bytes.
   */
  push(data: Data, isFirst = false, length = bytesOf(data).length): number {
    const { items, base, limit } = this;
    const kept = this.last - this.acknowledged;
    const room = isFirst ? 2 : 1;
    if (kept && (kept >= limit.messages * room || this.bytes + length > limit.bytes * room)) return 0;
    let at = items.length;
    if (isFirst) {
      for (; at > this.ready - base; at--) {
        items[at] = items[at - 1]!;
        items[at]!.end += length;
      }
      this.ready++;
    }
    items[at] = { data, end: this.endOf(base + at) + length };
    return base + at + 1;
  }

  /** Removes and returns the messages that were never written. */
  takeUnwritten(): Data[] {
    const unwritten = this.after(this.written);
    this.items.length -= unwritten.length;
    return unwritten;
  }

  /** The message after this position, if it is ready and fits into the peer's window. */
  next(position: number): Data | undefined {
    if (position >= this.ready) return;
    const ahead = position + 1 - this.acknowledged;
    const fits = ahead <= this.peer.messages && this.endOf(position + 1) - this.endOf(this.acknowledged) <= this.peer.bytes;
    if (ahead <= 1 || fits) return this.items[position - this.base]?.data;
  }

  /** The peer acknowledged the messages up to this number. */
  acknowledge(number: number): void {
    if (number > this.written) fail(`acknowledged ${number} of ${this.written}`);
    this.acknowledged = Math.max(this.acknowledged, number);
  }

  /** Frees messages that are acknowledged and stand at or below the position of every live connection. */
  trim(lowestPosition: number): void {
    const floor = Math.min(this.acknowledged, lowestPosition);
    if (floor <= this.base) return;
    this.baseEnd = this.endOf(floor);
    this.items.splice(0, floor - this.base);
    this.base = floor;
  }

  /** The messages above this number. */
  after(number: number): Data[] {
    return this.items.slice(number - this.base).map((item) => item.data);
  }

  endOf(number: number): number {
    return this.items[number - this.base - 1]?.end ?? this.baseEnd;
  }
}

/** Messages received and not yet delivered to the application, and how far they are acknowledged. */
export class Inbox {
  queue: (Delivery & { bytes: number })[] = [];
  /** The highest number that any connection received. */
  received = 0;
  /** The highest number that was delivered to the application. */
  delivered = 0;
  /** The highest number that may be acknowledged: `delivered`, unless a subclass waits until the application acknowledges. */
  acknowledged = 0;
  /** The `acknowledged` that was last written to the peer. */
  acked = 0;
  openBytes = 0;
  unackedBytes = 0;
  /** When an acknowledgement is due even if no more is delivered. */
  ackDueAt = Infinity;
  declare window: Window;

  constructor(window: Window) {
    this.window = window;
  }

  receive(data: Data, bytes = bytesOf(data).length): void {
    this.checkWindow(bytes);
    this.add(1, bytes, data);
  }

  /** Queues a delivery. */
  private add(count: number, bytes = 0, data?: Data): void {
    this.queue.push({ data, first: this.received + 1, count, bytes });
    this.openBytes += bytes;
    this.received += count;
  }

  /** Receives from a peer that respects no window. A message that exceeds the window's bytes is dropped, and counted in its place. */
  receiveOrDrop(data: Data): void {
    // An empty message costs something too.
    const bytes = data.length + 64;
    const last = this.queue[this.queue.length - 1];
    if (!last || this.openBytes + bytes <= this.window.bytes) this.add(1, bytes, data);
    else if (last.data === undefined) {
      last.count++;
      this.received++;
    } else this.add(1);
  }

  /** Messages up to `last` never come. Those that were received before stay out of the gap. */
  receiveGap(last: number): void {
    if (last <= this.received) return;
    this.checkWindow(0);
    this.add(last - this.received);
  }

  /** The backend behind the peer was replaced at this position. Adjacent marks become one. */
  receiveReplaced(): void {
    if (this.queue[this.queue.length - 1]?.count !== 0) this.add(0);
  }

  checkWindow(bytes: number): void {
    const open = this.received - this.acknowledged;
    if (open > 0 && (open >= this.window.messages || this.openBytes + bytes > this.window.bytes)) fail("more than the window");
  }

  /** Returns the next message or gap, which counts as delivered from then on. */
  deliver(now: number): Delivery | undefined {
    const next = this.queue.shift();
    if (next?.count) {
      this.delivered = next.first + next.count - 1;
      this.acknowledge(now, this.delivered, next.bytes);
    }
    return next;
  }

  /** The messages up to this number may be acknowledged to the peer. */
  acknowledge(now: number, number: number, bytes: number): void {
    this.acknowledged = number;
    this.openBytes -= bytes;
    this.unackedBytes += bytes;
    this.ackDueAt = Math.min(this.ackDueAt, now + 250);
  }

  /** After 32 messages or a quarter of the window, after 64 KiB or a quarter, or after 250 ms. */
  isAckDue(now: number): boolean {
    const unacked = this.acknowledged - this.acked;
    const { messages, bytes } = this.window;
    return unacked > 0 && (unacked >= Math.min(Math.max(messages >> 2, 1), 32) || this.unackedBytes >= Math.min(bytes / 4, 65_536) || this.ackDueAt <= now);
  }

  /** Returns `acknowledged`, which the caller writes to the peer now. */
  ack(): number {
    this.unackedBytes = 0;
    this.ackDueAt = Infinity;
    return (this.acked = this.acknowledged);
  }
}

/** The two streams of one session. */
export class Flow {
  declare outbox: Outbox;
  declare inbox: Inbox;
  /** The nonce of the newest PING that waits for its PONG. */
  declare pong: number | undefined;
  /** Messages written again. */
  replayed = 0;
  /** Messages received again, and dropped. */
  repeated = 0;

  constructor(outbox: Outbox, inbox: Inbox) {
    this.outbox = outbox;
    this.inbox = inbox;
  }

  /** `length`: the bytes of the message, where the caller has counted them. */
  readData(lane: Lane, data: Data, length?: number): void {
    if (lane.read + 1 > this.inbox.received) this.inbox.receive(data, length);
    else this.repeated++;
    lane.read++;
  }

  readGap(lane: Lane, first: number, count: number): void {
    if (first !== lane.read + 1) fail(`gap at ${first}, ${lane.read} read`, true);
    this.inbox.receiveGap(lane.read + count);
    lane.read += count;
  }

  readBeat(lane: Lane, { type, nonce, sent, acknowledged }: Beat): void {
    if (sent !== lane.read) fail(`${sent} written, ${lane.read} read`, true);
    if (type === Type.Ping) this.pong = nonce;
    this.outbox.acknowledge(acknowledged);
  }

  writeBeat(type: Type.Ping | Type.Pong, nonce: number, lane: Lane): Bytes {
    return encode({ type, nonce, sent: lane.wrote, acknowledged: this.inbox.ack() });
  }

  /** The PONG or the ACK that is due, if one is. */
  writeOwed(now: number, lane: Lane): Bytes | undefined {
    const nonce = this.pong;
    this.pong = undefined;
    if (nonce !== undefined) return this.writeBeat(Type.Pong, nonce, lane);
    if (this.inbox.isAckDue(now)) return encode({ type: Type.Ack, acknowledged: this.inbox.ack() });
  }

  /** The next application message, if the peer's window has room for it. */
  writeData(lane: Lane): Data | undefined {
    const data = this.outbox.next(lane.wrote);
    if (data === undefined) return;
    if (++lane.wrote > this.outbox.written) this.outbox.written = lane.wrote;
    else this.replayed++;
    return encodeData(data);
  }
}
