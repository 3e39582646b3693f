/** A driver with a socket and a clock that a test controls. */

import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import type { TestContext } from "node:test";
import { type Control, type Data, decode, encode, encodeData } from "@mainstay/client/protocol";
import { Connection } from "../dist/connection.js";
import { Driver, type Host } from "../dist/driver.js";
import { Counts } from "../dist/metrics.js";
import { PlainSession } from "../dist/plain-session.js";
import { Registry } from "../dist/registry.js";
import { Rooms } from "../dist/rooms.js";
import type { SessionConfig } from "../dist/server-session.js";
import { Session } from "../dist/session.js";
import { Wheel } from "../dist/wheel.js";
import { ack, DATA, WELCOME } from "./frames.js";
import { bytes, hello } from "./peer.js";

export const CONFIG: SessionConfig = { heartbeatMs: 25_000, resumeWindowMs: 120_000, keep: { messages: 1024, bytes: 1_000_000 }, accept: { messages: 1024, bytes: 1_000_000 }, dropOldest: false };

export class Socket extends EventEmitter {
  protocol = "mainstay.v1";
  extensions = "";
  OPEN = 1;
  readyState = 1;
  isTerminated = false;
  closes: [number, string][] = [];
  /** The written messages, without Pings. */
  written: any[] = [];
  tcp = new Tcp(this.written);

  get bufferedAmount(): number {
    return this.tcp.writableLength;
  }
  arrive(control: Control): void {
    this.tcp.bytesRead += 10;
    this.emit("message", Buffer.from(encode(control)), true);
  }
  pause(): void {}
  resume(): void {}
  close(code: number, reason: string): void {
    this.closes.push([code, reason]);
  }
  terminate(): void {
    this.isTerminated = true;
  }
}

/** A socket whose bytes leave at once while `isFlowing`. */
export class Tcp extends EventEmitter {
  bytesRead = 0;
  writableLength = 0;
  writes = 0;
  isFlowing = true;
  private callbacks: (() => void)[] = [];

  constructor(private written: any[]) {
    super();
  }
  get _handle(): { writeQueueSize: number } {
    return { writeQueueSize: this.writableLength };
  }
  cork(): void {}
  uncork(): void {
    this.writes++;
  }
  write(chunk: Buffer | "", left?: () => void): void {
    if (left) this.callbacks.push(left);
    if (typeof chunk === "string") return;
    if (!this.isFlowing) this.writableLength += chunk.length;
    const [opcode, payload] = [chunk[0]! & 15, chunk.subarray(2) as Buffer<ArrayBuffer>];
    if (opcode === 1) this.written.push(decode(payload.toString()));
    else if (opcode === 2) this.written.push(decode(payload));
  }
  flow(): void {
    this.writableLength = 0;
    for (const left of this.callbacks.splice(0)) left();
    this.emit("drain");
  }
}

const ANONYMOUS = { address: "", subprotocol: undefined, principal: "" };

/** The part of a server that a driver uses, with one session whose client has received WELCOME, or with one plain client. */
export class Stage implements Host {
  now = 0;
  isDraining = false;
  /** The wheel of all stages, for tests that compare how much memory they keep. */
  static wheel: Wheel | undefined;
  wheel = Stage.wheel ?? new Wheel(() => this.now);
  /** How many sessions ended. */
  removed = 0;
  rooms = new Rooms<Session>();
  counts = new Counts();
  registry: Registry;
  socket = new Socket();
  driver: Driver<Session>;
  /** The errors in the log. */
  errors: any[] = [];
  private connections = 0;

  constructor(t: TestContext, config = CONFIG, mode: "session" | "plain" = "session") {
    this.registry = new Registry(0, { sessions: 10, tombstones: 10 }, config, bytes);
    if (mode === "plain") this.socket.protocol = "";
    const connection = this.connect();
    t.after(() => this.driver.evict());
    const session = (driver: Driver<Session>) => new Session(driver, this.rooms);
    if (mode === "plain") {
      this.driver = new Driver(new PlainSession(0, config, connection.id, () => 0.5), this, connection, ANONYMOUS, session);
      return;
    }
    const answer = this.registry.handleHello(0, connection.id, "", hello());
    assert.ok(answer.kind === "attached");
    this.driver = new Driver(answer.session, this, connection, ANONYMOUS, session);
    this.driver.step();
    assert.equal(this.socket.written.shift().type, WELCOME);
    this.socket.arrive(ack(0));
  }

  /** A message of the client's application arrives. */
  receive(data: Data): void {
    const isBinary = typeof data !== "string";
    this.socket.emit("message", Buffer.from(isBinary && this.driver.mode === "session" ? encodeData(data) : data), isBinary);
  }

  /** Returns the messages of the application that were written since the last call. */
  written(): Data[] {
    return this.socket.written.splice(0).flatMap((frame) => (frame.type === DATA ? [frame.data] : []));
  }

  connect(): Connection {
    const request = { raw: { socket: this.socket.tcp }, log: { debug() {}, error: (fields: object, message: string) => this.errors.push({ ...fields, message }) } };
    return new Connection(++this.connections, this.socket as any, request as any);
  }

  /** Lets time pass in steps of 100 ms. The driver's timer fires, and readable bytes are read. */
  async pass(ms: number, meanwhile = () => {}): Promise<void> {
    for (const until = this.now + ms; this.now < until && this.driver.session.state === "attached"; this.now += 100) {
      meanwhile();
      this.driver.fire();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  clock(): number {
    return this.now;
  }
  async authenticateAgain(): Promise<undefined> {}
  handleLost(): void {}
  countGap(): void {}
  remove(): void {
    this.removed++;
  }
}
