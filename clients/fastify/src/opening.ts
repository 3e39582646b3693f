/**
 * From the upgrade to a session: the first message, who the client is, and which session it may have. An opening has
 * a deadline; what comes out of it lives with a driver.
 *
 * Source: `docs/PROTOCOL.md` "Attaching", "Credentials".
 */

import type { Data } from "@mainstay/client/protocol";
import type { Connection, Listener } from "./connection.js";
import { Resident, type Wheel } from "./wheel.js";

/** A connection that is not bound to a session yet. */
export class Opening extends Resident implements Listener {
  readonly connection: Connection;
  /** What came first, and what came behind it while the first was judged. */
  private early: { data: Data; length: number }[] = [];
  private state: "open" | "lost" | "late" = "open";
  private wheel: Wheel;
  private deadline: number;
  private wake: (() => void) | undefined;
  /** Says that there is nothing more to wait for. */
  private end: (() => void) | undefined;

  /** `deadline`: a time of the wheel's clock. */
  constructor(connection: Connection, wheel: Wheel, deadline: number) {
    super();
    this.connection = connection;
    this.wheel = wheel;
    this.deadline = deadline;
    wheel.arm(this, deadline);
    connection.listener = this;
  }

  message(connection: Connection, data: Data, length: number): void {
    this.early.push({ data, length });
    // What is not read yet waits in the kernel: an opening holds no more than one read.
    connection.pause();
    this.wake?.();
  }

  due(): void {
    if (this.wheel.now < this.deadline) this.wheel.arm(this, this.deadline);
    else this.finish("late");
  }

  pong(): void {}

  wrote(): void {}

  lost(): void {
    this.finish("lost");
  }

  /** The first message. Undefined: none came in time. */
  async first(): Promise<Data | undefined> {
    if (!this.early.length && this.state === "open") await new Promise<void>((wake) => (this.wake = wake));
    return this.early.shift()?.data;
  }

  /** What `answer` comes to, or undefined if it takes too long. */
  inTime<T>(answer: Promise<T>): Promise<T | undefined> {
    if (this.state !== "open") return Promise.resolve(undefined);
    return Promise.race([answer, new Promise<undefined>((end) => (this.end = () => end(undefined)))]);
  }

  /** It is neither lost nor late. */
  get isOpen(): boolean {
    return this.state === "open";
  }

  get isLost(): boolean {
    return this.state === "lost";
  }

  /** What came meanwhile belongs to the connection's next listener. */
  handOn(): void {
    const { connection, early } = this;
    this.settle();
    connection.resume();
    for (const { data, length } of early.splice(0)) connection.listener?.message(connection, data, length);
  }

  /** Closes it. False, as no session comes out of it. */
  refuse(code: number, reason: string): false {
    this.settle();
    this.connection.close(code, reason);
    return false;
  }

  /** The wheel knows it no more. */
  settle(): void {
    this.wheel.disarm(this);
  }

  private finish(state: "lost" | "late"): void {
    this.state = state;
    this.settle();
    this.wake?.();
    this.end?.();
  }
}
