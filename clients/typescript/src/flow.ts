/**
 * What both ends of a session do alike: number and keep what goes out, count and hand over what comes in,
 * acknowledge, and check that both ends counted the same.
 *
 * No number travels with a message. A {@link Lane} is one connection's place in the two streams; it starts where
 * HELLO and WELCOME say and moves by one with every message. The flow outlives its lanes.
 *
 * Source: `docs/PROTOCOL.md` "Sequence rules".
 */

import { type Beat, type Bytes, bytesOf, type Data, encode, encodeData, fail, Type, type Window } from "./wire.js";

/** One connection's position in each direction: the number last written, the number last read. */
export interface Lane {
  wrote: number;
  read: number;
}

/**
 * The next thing for the application: a message, or `count` messages from `first` on that the peer's policy dropped. A
 * `count` of 0: what stands behind the peer was replaced before message `first`.
 */
export interface Delivery {
  data?: Data;
  first: number;
  count: number;
}

/** A message is larger than the other end takes. */
export class MessageTooLargeError extends RangeError {
  override name = "MessageTooLargeError";
  /** Payload bytes: those of the message, and the most that the other end takes. */
  declare size: number;
  declare limit: number;

  constructor(size: number, limit: number) {
    super(`the message has ${size} bytes, the other end takes at most ${limit}`);
    this.size = size;
    this.limit = limit;
  }
}

/** Messages accepted and not yet acknowledged, kept so that an attach can write them again. */
export class Outbox {
  /** What is above `base`, one for each number; `end` is the sum of payload bytes up to and with it. */
  items: { data: Data; end: number }[] = [];
  base = 0;
  baseEnd = 0;
  acknowledged = 0;
  /** The highest number of which a byte was given to any connection. */
  written = 0;
  /** What is above this number is not written yet: others may come before it. */
  ready = Infinity;
  /** What the peer accepts. */
  peer: Window = [16, 65_536];
  /** What is kept at most. */
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
   * Numbers and keeps a message. 0: there is no room. One message always fits, of any size. `isFirst`: it comes before
   * what is not {@link ready}, and has as much room again, as what waits may have taken all. `length`: its bytes.
   */
  push(data: Data, isFirst = false, length = bytesOf(data).length): number {
    const { items, base, limit } = this;
    const kept = this.last - this.acknowledged;
    const room = isFirst ? 2 : 1;
    if (kept && (kept >= limit[0] * room || this.bytes + length > limit[1] * room)) return 0;
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

  /** Takes out what was never written. */
  takeUnwritten(): Data[] {
    return this.items.splice(this.written - this.base).map((item) => item.data);
  }

  /** What follows this position, if it is ready and the peer's window holds it. */
  next(position: number): Data | undefined {
    if (position >= this.ready) return;
    const ahead = position + 1 - this.acknowledged;
    const fits = ahead <= this.peer[0] && this.endOf(position + 1) - this.endOf(this.acknowledged) <= this.peer[1];
    if (ahead <= 1 || fits) return this.items[position - this.base]?.data;
  }

  acknowledge(received: number): void {
    if (received > this.written) fail(`acknowledged ${received} of ${this.written}`);
    this.acknowledged = Math.max(this.acknowledged, received);
  }

  /** Frees what is acknowledged and stands at or below the position of every living connection. */
  trim(lowestPosition: number): void {
    const floor = Math.min(this.acknowledged, lowestPosition);
    if (floor <= this.base) return;
    this.baseEnd = this.endOf(floor);
    this.items.splice(0, floor - this.base);
    this.base = floor;
  }

  /** What is kept above this number. */
  after(number: number): Data[] {
    return this.items.slice(number - this.base).map((item) => item.data);
  }

  endOf(number: number): number {
    return this.items[number - this.base - 1]?.end ?? this.baseEnd;
  }
}

/** Messages read and not yet handed to the application, and what the peer may be told about them. */
export class Inbox {
  queue: (Delivery & { bytes: number })[] = [];
  /** The highest number read from any connection. */
  taken = 0;
  /** The highest number that the application was handed. */
  handed = 0;
  /** The highest number that is acknowledged: `handed`, unless a subclass waits for the application's word. */
  received = 0;
  /** The last `received` that the peer was told. */
  told = 0;
  openBytes = 0;
  untoldBytes = 0;
  /** When an acknowledgement is due even if nothing more comes. */
  dueAt = Infinity;
  declare window: Window;

  constructor(window: Window) {
    this.window = window;
  }

  take(data: Data, bytes = bytesOf(data).length): void {
    this.checkWindow(bytes);
    this.openBytes += bytes;
    this.queue.push({ data, first: ++this.taken, count: 1, bytes });
  }

  /** Takes what the peer sends without asking. What the window's bytes do not hold is dropped, and counted in its place. */
  hold(data: Data): void {
    // An empty one costs something too.
    const bytes = data.length + 64;
    const last = this.queue[this.queue.length - 1];
    if (!last || this.openBytes + bytes <= this.window[1]) {
      this.openBytes += bytes;
      this.queue.push({ data, first: ++this.taken, count: 1, bytes });
    } else if (last && last.data === undefined) {
      last.count++;
      this.taken++;
    } else this.queue.push({ first: ++this.taken, count: 1, bytes: 0 });
  }

  /** Messages up to `last` that never come. What was taken before stays out of it. */
  takeGap(last: number): void {
    if (last <= this.taken) return;
    this.checkWindow(0);
    this.queue.push({ first: this.taken + 1, count: last - this.taken, bytes: 0 });
    this.taken = last;
  }

  /** What stands behind the peer was replaced here. Marks that meet are one. */
  takeReplaced(): void {
    if (this.queue[this.queue.length - 1]?.count !== 0) this.queue.push({ first: this.taken + 1, count: 0, bytes: 0 });
  }

  checkWindow(bytes: number): void {
    const open = this.taken - this.received;
    if (open > 0 && (open >= this.window[0] || this.openBytes + bytes > this.window[1])) fail("more than the window");
  }

  handOver(now: number): Delivery | undefined {
    const next = this.queue.shift();
    if (next?.count) {
      this.handed = next.first + next.count - 1;
      this.settle(now, this.handed, next.bytes);
    }
    return next;
  }

  /** The application has what stands up to this number. */
  settle(now: number, number: number, bytes: number): void {
    this.received = number;
    this.openBytes -= bytes;
    this.untoldBytes += bytes;
    this.dueAt = Math.min(this.dueAt, now + 250);
  }

  /** After 32 messages or a quarter of the window, after 64 KiB or a quarter, or after 250 ms. */
  isDue(now: number): boolean {
    const untold = this.received - this.told;
    const [messages, bytes] = this.window;
    return untold > 0 && (untold >= Math.min(Math.max(messages >> 2, 1), 32) || this.untoldBytes >= Math.min(bytes / 4, 65_536) || this.dueAt <= now);
  }

  /** `received`, which the peer is told now. */
  tell(): number {
    this.untoldBytes = 0;
    this.dueAt = Infinity;
    return (this.told = this.received);
  }
}

/** The two streams of one session. */
export class Flow {
  declare outbox: Outbox;
  declare inbox: Inbox;
  /** The nonce of the newest PING that waits for its PONG. */
  declare pong: number | undefined;
  /** Messages written again; messages that came again and were dropped. */
  replayed = 0;
  repeated = 0;

  constructor(outbox: Outbox, inbox: Inbox) {
    this.outbox = outbox;
    this.inbox = inbox;
  }

  /** `length`: the bytes of the message, where they are known. */
  readData(lane: Lane, data: Data, length?: number): void {
    if (lane.read + 1 > this.inbox.taken) this.inbox.take(data, length);
    else this.repeated++;
    lane.read++;
  }

  readGap(lane: Lane, first: number, count: number): void {
    if (first !== lane.read + 1) fail(`gap at ${first}, ${lane.read} read`, true);
    this.inbox.takeGap(lane.read + count);
    lane.read += count;
  }

  readBeat(lane: Lane, [type, nonce, sent, received]: Beat): void {
    if (sent !== lane.read) fail(`${sent} written, ${lane.read} read`, true);
    if (type === Type.Ping) this.pong = nonce;
    this.outbox.acknowledge(received);
  }

  writeBeat(type: Type.Ping | Type.Pong, nonce: number, lane: Lane): Bytes {
    return encode([type, nonce, lane.wrote, this.inbox.tell()]);
  }

  /** A PONG or an ACK, if one is due. */
  writeOwed(now: number, lane: Lane): Bytes | undefined {
    const nonce = this.pong;
    this.pong = undefined;
    if (nonce !== undefined) return this.writeBeat(Type.Pong, nonce, lane);
    if (this.inbox.isDue(now)) return encode([Type.Ack, this.inbox.tell()]);
  }

  /** The next application message, if the window holds it. */
  writeData(lane: Lane): Data | undefined {
    const data = this.outbox.next(lane.wrote);
    if (data === undefined) return;
    if (++lane.wrote > this.outbox.written) this.outbox.written = lane.wrote;
    else this.replayed++;
    return encodeData(data);
  }
}
