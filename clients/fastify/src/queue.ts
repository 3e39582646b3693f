/** Messages that wait, and their bytes. */

import type { Data, Window } from "@mainstay/client/protocol";

/** The bytes of a message. */
export const sizeOf = (data: Data): number => (typeof data === "string" ? Buffer.byteLength(data) : data.length);

/** An empty one keeps nothing. */
export class Queue {
  bytes = 0;
  private items: Data[] | undefined;

  get length(): number {
    return this.items?.length ?? 0;
  }

  push(data: Data, length = sizeOf(data)): void {
    (this.items ??= []).push(data);
    this.bytes += length;
  }

  shift(): Data | undefined {
    const data = this.items?.shift();
    if (data !== undefined) this.bytes -= sizeOf(data);
    if (!this.items?.length) this.clear();
    return data;
  }

  clear(): void {
    this.items = undefined;
    this.bytes = 0;
  }

  /** Whether it stays within the bound with one more of this length. One always fits. */
  holds({ messages, bytes }: Window, length: number): boolean {
    return !this.items || (this.items.length < messages && this.bytes + length <= bytes);
  }

  /** Whether it is within the bound. One always is. */
  fits({ messages, bytes }: Window): boolean {
    return this.length <= messages && (this.length <= 1 || this.bytes <= bytes);
  }
}
