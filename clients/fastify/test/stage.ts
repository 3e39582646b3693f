/** A driver with a socket that does what a test says, and time that passes when a test says. */

import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import type { TestContext } from "node:test";
import { type Data, decode, encode, encodeData, type Hello } from "@mainstay/client/protocol";
import { Connection } from "../dist/connection.js";
import { Driver, type Host } from "../dist/driver.js";
import { PlainSession } from "../dist/plain-session.js";
import { Registry } from "../dist/registry.js";
import { Rooms } from "../dist/rooms.js";
import type { SessionConfig } from "../dist/server-session.js";
import { Wheel } from "../dist/wheel.js";
import { bytes, frameOf, hello, type Tuple, tupleOf } from "./peer.js";

export const CONFIG: SessionConfig = { heartbeat: 25_000, resumeWindow: 120_000, keep: { messages: 1024, bytes: 1_000_000 }, accept: { messages: 1024, bytes: 1_000_000 }, dropOldest: false };

export class Socket extends EventEmitter {
  protocol = "mainstay.v1";
  extensions = "";
  OPEN = 1;
  readyState = 1;
  isTerminated = false;
  closes: [number, string][] = [];
  /** The messages that were written, without those of pings. */
  written: any[] = [];
  tcp = new Tcp(this.written);

  get bufferedAmount(): number {
    return this.tcp.writableLength;
  }
  arrive(control: Tuple): void {
    this.tcp.bytesRead += 10;
    this.emit("message", Buffer.from(encode(frameOf(control))), true);
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

/** What it takes leaves at once, unless it is not flowing. */
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
    if (opcode === 1) this.written.push(tupleOf(decode(payload.toString())));
    else if (opcode === 2) this.written.push(tupleOf(decode(payload)));
  }
  flow(): void {
    this.writableLength = 0;
    for (const left of this.callbacks.splice(0)) left();
    this.emit("drain");
  }
}

const NOBODY = { address: "", subprotocol: undefined, principal: "" };

/** A session on a connection that took its WELCOME, or a plain client. */
export class Stage implements Host {
  now = 0;
  isDraining = false;
  /** One for all stages of a test that only looks at what they keep. */
  static wheel: Wheel | undefined;
  wheel = Stage.wheel ?? new Wheel(() => this.now);
  forgotten = 0;
  rooms = new Rooms();
  registry: Registry;
  socket = new Socket();
  driver: Driver;
  /** What was logged as an error. */
  errors: any[] = [];
  private connections = 0;

  constructor(t: TestContext, config = CONFIG, mode: "session" | "plain" = "session") {
    this.registry = new Registry(0, { sessions: 10, tombstones: 10 }, config, bytes);
    if (mode === "plain") this.socket.protocol = "";
    const connection = this.connect();
    t.after(() => this.driver.stop());
    if (mode === "plain") {
      this.driver = new Driver(new PlainSession(0, config, connection.id, () => 0.5), this, connection, NOBODY);
      return;
    }
    const answer = this.registry.hello(0, connection.id, "", frameOf(hello()) as Hello);
    assert.ok(!answer.refuse);
    this.driver = new Driver(answer.session, this, connection, NOBODY);
    this.driver.step();
    assert.equal(this.socket.written.shift()[0], 2);
    this.socket.arrive([3, 0]);
  }

  /** A message of the application arrives. */
  say(data: Data): void {
    const isBinary = typeof data !== "string";
    this.socket.emit("message", Buffer.from(isBinary && this.driver.mode === "session" ? encodeData(data) : data), isBinary);
  }

  /** The messages of the application that were written since the last call. */
  heard(): Data[] {
    return this.socket.written.splice(0).flatMap((frame) => (frame[0] === 0 ? [frame[1]] : []));
  }

  connect(): Connection {
    const request = { raw: { socket: this.socket.tcp }, log: { debug() {}, error: (fields: object, words: string) => this.errors.push({ ...fields, words }) } };
    return new Connection(++this.connections, this.socket as any, request as any);
  }

  /** Time passes in small steps; what is due is done, and what was asked to be read first is read. */
  async pass(ms: number, meanwhile = () => {}): Promise<void> {
    for (const until = this.now + ms; this.now < until && this.driver.session.state === "attached"; this.now += 100) {
      meanwhile();
      this.driver.due();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  clock(): number {
    return this.now;
  }
  async judge(): Promise<undefined> {}
  lost(): void {}
  judged(): void {}
  refused(): void {}
  dropped(): void {}
  forget(): void {
    this.forgotten++;
  }
}
