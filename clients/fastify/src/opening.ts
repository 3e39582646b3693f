/**
 * From the upgrade to a session: the first message, who the client is, and which session it may have. An opening has
 * a deadline; what comes out of it lives with a driver.
 *
 * Source: `docs/PROTOCOL.md` "Attaching", "Credentials".
 */

import type { Data } from "@mainstay/client/protocol";
import type { Connection, Listener } from "./connection.js";

/** A connection that is not bound to a session yet. */
export class Opening implements Listener {
  /** What came first, and what came behind it while the first was judged. */
  private early: Data[] = [];
  private state: "open" | "lost" | "late" = "open";
  private timer: NodeJS.Timeout;
  private wake: (() => void) | undefined;
  /** Settles when there is nothing more to wait for. */
  private over: Promise<void>;
  private end!: () => void;

  constructor(
    readonly connection: Connection,
    deadline: number,
  ) {
    this.over = new Promise((end) => (this.end = end));
    this.timer = setTimeout(() => this.finish("late"), deadline);
    connection.listener = this;
  }

  message(connection: Connection, data: Data): void {
    this.early.push(data);
    // What is not read yet waits in the kernel: an opening holds no more than one read.
    connection.pause();
    this.wake?.();
  }

  pong(): void {}

  wrote(): void {}

  lost(): void {
    this.finish("lost");
  }

  /** The first message. Undefined: none came in time. */
  async first(): Promise<Data | undefined> {
    if (!this.early.length) await Promise.race([this.over, new Promise<void>((wake) => (this.wake = wake))]);
    return this.early.shift();
  }

  /** What `answer` comes to, or undefined if it takes too long. */
  inTime<T>(answer: Promise<T>): Promise<T | undefined> {
    return Promise.race([answer, this.over.then(() => undefined)]);
  }

  get isLost(): boolean {
    return this.state === "lost";
  }

  /** What came meanwhile belongs to the connection's next listener. */
  handOn(): void {
    const { connection, early } = this;
    this.settle();
    connection.resume();
    for (const data of early.splice(0)) connection.listener?.message(connection, data);
  }

  /** Closes it. False, as no session comes out of it. */
  refuse(code: number, reason: string): false {
    this.settle();
    this.connection.close(code, reason);
    return false;
  }

  /** No timer is left. */
  settle(): void {
    clearTimeout(this.timer);
  }

  private finish(state: "lost" | "late"): void {
    this.state = state;
    this.settle();
    this.end();
  }
}
