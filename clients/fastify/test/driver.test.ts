/** The driver with a socket that does what a test says, and time that passes when a test says. */

import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import { test, type TestContext } from "node:test";
import { type Control, decode, encode, type Welcome } from "@mainstay/client/protocol";
import { Connection } from "../dist/connection.js";
import { Driver, type Host } from "../dist/driver.js";
import { Rooms } from "../dist/rooms.js";
import { Registry } from "../dist/registry.js";
import type { SessionConfig } from "../dist/server-session.js";
import { Wheel } from "../dist/wheel.js";
import { bytes, hello } from "./peer.js";

const CONFIG: SessionConfig = { heartbeat: 25_000, resumeWindow: 120_000, keep: [1024, 1_000_000], accept: [1024, 1_000_000], dropOldest: false };

class Socket extends EventEmitter {
  protocol = "mainstay.v1";
  bufferedAmount = 0;
  isTerminated = false;
  closes: [number, string][] = [];
  written: any[] = [];
  /** What it takes leaves at once. */
  isFlowing = true;
  private callbacks: (() => void)[] = [];
  tcp = Object.assign(new EventEmitter(), { bytesRead: 0, _handle: { writeQueueSize: 0 }, cork() {}, uncork() {} });

  send(data: any, done = () => {}): void {
    this.written.push(decode(data));
    this.callbacks.push(done);
    if (this.isFlowing) this.flow();
  }
  ping(_data: unknown, _mask: boolean, done = () => {}): void {
    this.callbacks.push(done);
    if (this.isFlowing) this.flow();
  }
  flow(): void {
    for (const done of this.callbacks.splice(0)) done();
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

/** A session on a connection that took its WELCOME. */
class Stage implements Host {
  now = 0;
  isDraining = false;
  wheel = new Wheel(() => this.now);
  forgotten = 0;
  rooms = new Rooms();
  registry = new Registry(0, { sessions: 10, tombstones: 10 }, CONFIG, bytes);
  socket = new Socket();
  driver: Driver;
  private connections = 0;

  constructor(t: TestContext) {
    const connection = this.connect();
    const answer = this.registry.hello(0, connection.id, "", hello());
    assert.ok(!answer.refuse);
    this.driver = new Driver(answer.session, this, connection, { address: "", subprotocol: undefined, principal: "" });
    this.driver.step();
    assert.equal((this.socket.written.shift() as Welcome)[0], 2);
    this.socket.arrive([3, 0]);
    t.after(() => this.driver.stop());
  }

  connect(): Connection {
    const request = { raw: { socket: this.socket.tcp }, log: { debug() {}, error() {} } };
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
  forget(): void {
    this.forgotten++;
  }
}

test("a silent client is dropped without a closing handshake, and its session parks and then expires", async (t) => {
  const stage = new Stage(t);
  const events: unknown[] = [];
  stage.driver.session.on("detached", () => events.push("detached"));
  stage.driver.session.on("closed", ({ why }) => events.push(why));
  await stage.pass(31_000);
  assert.deepEqual([stage.socket.isTerminated, stage.socket.closes, events], [true, [], ["detached"]]);
  stage.now += CONFIG.resumeWindow;
  stage.driver.due();
  assert.deepEqual([events, stage.forgotten], [["detached", "expired"], 1]);
});

test("a client that answers stays, and so does one that is in the middle of a large message", async (t) => {
  const stage = new Stage(t);
  await stage.pass(100_000, () => {
    for (const frame of stage.socket.written.splice(0)) if (frame[0] === 4) stage.socket.arrive([5, frame[1], 0, 0]);
  });
  assert.equal(stage.driver.session.state, "attached");
  assert.equal(stage.driver.session.rtt, 100);
  // From here on it answers nothing, but bytes come.
  await stage.pass(100_000, () => void (stage.socket.tcp.bytesRead += 1));
  assert.equal(stage.driver.session.state, "attached");
  await stage.pass(400_000, () => void (stage.socket.tcp.bytesRead += 1));
  assert.equal(stage.driver.session.state, "attached", "not listening, and mid-message");
});

test("who sends messages and answers no probe is dropped after five minutes, and can resume", async (t) => {
  const stage = new Stage(t);
  await stage.pass(300_000, () => stage.socket.arrive([3, 0]));
  assert.equal(stage.driver.session.state, "attached");
  await stage.pass(60_000, () => stage.socket.arrive([3, 0]));
  assert.equal(stage.driver.session.state, "parked");
});

test("a probe that waits behind a large write is no verdict while the kernel takes some of it", async (t) => {
  const stage = new Stage(t);
  stage.socket.isFlowing = false;
  stage.socket.tcp._handle.writeQueueSize = 10_000_000;
  await stage.pass(120_000, () => void stage.socket.tcp._handle.writeQueueSize--);
  assert.equal(stage.driver.session.state, "attached");
  await stage.pass(60_000);
  assert.equal(stage.driver.session.state, "parked");
});

test("what a full socket does not take stays ours, and leaves when it has room", async (t) => {
  const stage = new Stage(t);
  stage.socket.bufferedAmount = 100_000;
  stage.socket.isFlowing = false;
  assert.ok(stage.driver.session.trySend("later"));
  assert.deepEqual(stage.socket.written, []);
  stage.socket.bufferedAmount = 0;
  stage.driver.wrote(stage.connect(), false);
  assert.deepEqual(stage.socket.written, [[0, "later"]]);
});

test("a message is acknowledged within 250 ms, by the one timer", async (t) => {
  const stage = new Stage(t);
  stage.driver.session.on("message", () => {});
  await new Promise((resolve) => setImmediate(resolve));
  stage.socket.emit("message", Buffer.from("hi"), false);
  stage.now = 249;
  stage.driver.due();
  assert.deepEqual(stage.socket.written, []);
  stage.now = 250;
  stage.driver.due();
  assert.deepEqual(stage.socket.written, [[3, 1]]);
});

for (const [what, state] of [["nothing", "parked"], ["a message", "attached"]] as const) {
  test(`at the deadline what is readable is read before the verdict: ${what}`, async (t) => {
    const stage = new Stage(t);
    for (const step of ["probe", "deadline"]) {
      stage.now = stage.driver.machine.dueAt;
      stage.driver.due();
      assert.equal(stage.driver.session.state, "attached", step);
    }
    if (what !== "nothing") stage.socket.arrive([3, 0]);
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(stage.driver.session.state, state);
  });
}
