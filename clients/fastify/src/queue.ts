/** A queue of messages that counts its bytes. */

import type { Data, Window } from "@mainstay/client/protocol";

/** Returns the bytes of a message. */
export const sizeOf = (data: Data): number => (typeof data === "string" ? Buffer.byteLength(data) : data.length);

/** Messages in order, with the sum of their bytes. An empty queue allocates nothing. */
export class ByteQueue {
  /** The sum of the messages' bytes. */
  bytes = 0;
  private items: Data[] | undefined;

  get length(): number {
    return this.items?.length ?? 0;
  }

  /** Appends a message. `length`: its bytes, if the caller has counted them. */
  push(data: Data, length = sizeOf(data)): void {
    (this.items ??= []).push(data);
    this.bytes += length;
  }

  /** Appends a message, and drops the oldest ones until the queue is within `limit`. The newest message always stays. */
  pushDroppingOldest(data: Data, limit: Window): void {
    this.push(data);
    while (this.length > 1 && (this.length > limit.messages || this.bytes > limit.bytes)) this.shift();
  }

  /** Removes and returns the oldest message; undefined if the queue is empty. */
  shift(): Data | undefined {
    const data = this.items?.shift();
    if (data !== undefined) this.bytes -= sizeOf(data);
    if (!this.items?.length) this.clear();
    return data;
  }

  /** Removes all messages. */
  clear(): void {
    this.items = undefined;
    this.bytes = 0;
  }

  /** Whether one more message of this length fits into `limit`. An empty queue has room for any message. */
  hasRoom(limit: Window, length: number): boolean {
    return !this.items || (this.items.length < limit.messages && this.bytes + length <= limit.bytes);
  }
}
