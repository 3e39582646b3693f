/** Messages outside the stream that wait for a slow connection, or for a slow application: the newest are worth most. */

import type { Data, Window } from "@mainstay/client/protocol";
import { Queue } from "./queue.js";

export class Volatiles extends Queue {
  private limit: Window;

  constructor(limit: Window) {
    super();
    this.limit = limit;
  }

  /** Appends; of more than the limit the oldest go. */
  override push(data: Data): void {
    super.push(data);
    while (!this.fits(this.limit)) this.shift();
  }
}
