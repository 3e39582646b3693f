/**
 * A connection between its upgrade and its session: waits for the first message and for the answer of `authenticate`, both
 * before one deadline. Afterwards a driver takes the connection over.
 *
 * Source: `docs/PROTOCOL.md` "Attaching", "Credentials".
 */

import type { Data } from "@mainstay/client/protocol";
import type { Connection, Listener } from "./connection.js";
import { TimerTask, type Wheel } from "./wheel.js";

/** A connection that has no session yet. */
export class Opening extends TimerTask implements Listener {
  readonly connection: Connection;
  /** The messages that arrived, the first one first. */
  private early: { data: Data; length: number }[] = [];
  private state: "open" | "lost" | "late" = "open";
  private wheel: Wheel;
  private deadline: number;
  /** Wakes {@link first}. */
  private wake: (() => void) | undefined;
  /** Settles the promise of {@link inTime} when the opening is lost or late. */
  private stopWaiting: (() => void) | undefined;

  /** `deadline`: a time of the wheel's clock. */
  constructor(connection: Connection, wheel: Wheel, deadline: number) {
    super();
    this.connection = connection;
    this.wheel = wheel;
    this.deadline = deadline;
    wheel.arm(this, deadline);
    connection.listener = this;
  }

  handleMessage(connection: Connection, data: Data, length: number): void {
    this.early.push({ data, length });
    // Further bytes wait in the kernel: an opening holds the messages of one read at most.
    connection.pause();
    this.wake?.();
  }

  fire(): void {
    if (this.wheel.now < this.deadline) this.wheel.arm(this, this.deadline);
    else this.finish("late");
  }

  handlePong(): void {}

  handleWritten(): void {}

  handleLost(): void {
    this.finish("lost");
  }

  /** Returns the first message; undefined if none arrived in time. */
  async first(): Promise<Data | undefined> {
    if (!this.early.length && this.state === "open") await new Promise<void>((wake) => (this.wake = wake));
    return this.early.shift()?.data;
  }

  /** Returns the result of `answer`; undefined if the opening is lost or late before. */
  inTime<T>(answer: Promise<T>): Promise<T | undefined> {
    if (this.state !== "open") return Promise.resolve(undefined);
    return Promise.race([answer, new Promise<undefined>((settle) => (this.stopWaiting = () => settle(undefined)))]);
  }

  /** Whether the connection is neither lost nor late. */
  get isOpen(): boolean {
    return this.state === "open";
  }

  /** Whether the connection is lost. */
  get isLost(): boolean {
    return this.state === "lost";
  }

  /** Ends the opening: the connection's new listener receives the remaining messages. */
  release(): void {
    const { connection, early } = this;
    this.disarm();
    connection.resume();
    for (const { data, length } of early.splice(0)) connection.listener?.handleMessage(connection, data, length);
  }

  /** Closes the connection. Returns false, because the connection gets no session. */
  refuse(code: number, reason: string): false {
    this.disarm();
    this.connection.close(code, reason);
    return false;
  }

  private disarm(): void {
    this.wheel.disarm(this);
  }

  private finish(state: "lost" | "late"): void {
    this.state = state;
    this.disarm();
    this.wake?.();
    this.stopWaiting?.();
  }
}
