/** Messages outside the stream that wait for a slow connection, or for a slow application: the newest are worth most. */

import { bytesOf, type Data, type Window } from "@mainstay/client/protocol";

export class Volatiles {
  private queue: Data[] = [];
  private bytes = 0;
  private limit: Window;

  constructor(limit: Window) {
    this.limit = limit;
  }

  /** Appends; of more than the limit the oldest go. One always fits. */
  push(data: Data): void {
    this.queue.push(data);
    this.bytes += bytesOf(data).length;
    while (this.queue.length > this.limit[0] || (this.queue.length > 1 && this.bytes > this.limit[1])) this.shift();
  }

  shift(): Data | undefined {
    const data = this.queue.shift();
    if (data !== undefined) this.bytes -= bytesOf(data).length;
    return data;
  }

  clear(): void {
    this.queue = [];
    this.bytes = 0;
  }
}
