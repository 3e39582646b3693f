/** The driver, with a socket and a clock that the test controls. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { ack, data, END, endIn, PING, pong } from "./frames.js";
import { CONFIG, Stage } from "./stage.js";

test("a silent client is dropped without a closing handshake, and its session parks and then expires", async (t) => {
  const stage = new Stage(t);
  const events: unknown[] = [];
  stage.driver.session.on("detached", () => events.push("detached"));
  stage.driver.session.on("closed", ({ cause }) => events.push(cause));
  await stage.pass(31_000);
  assert.deepEqual([stage.socket.isTerminated, stage.socket.closes, events], [true, [], ["detached"]]);
  stage.now += CONFIG.resumeWindowMs;
  stage.driver.fire();
  assert.deepEqual([events, stage.removed], [["detached", "expired"], 1]);
});

test("a client whose kernel accepts heartbeats and that answers none is found at the first deadline, however short the interval", async (t) => {
  const stage = new Stage(t, { ...CONFIG, heartbeatMs: 1000 });
  const losses: unknown[] = [];
  stage.driver.session.on("detached", (loss) => losses.push(loss));
  // The two messages of a heartbeat leave in one system call.
  stage.socket.tcp.isFlowing = false;
  await stage.pass(30_000, () => stage.socket.tcp.flow());
  assert.deepEqual(losses, [{ code: 4408, reason: "silent: nothing came back after a heartbeat" }]);
  assert.ok(stage.now < 7000, `after ${stage.now} ms`);
});

test("a client that answers heartbeats stays attached, and so does a client in the middle of a large message", async (t) => {
  const stage = new Stage(t);
  await stage.pass(100_000, () => {
    for (const frame of stage.socket.written.splice(0)) if (frame.type === PING) stage.socket.arrive(pong(frame.nonce, 0, 0));
  });
  assert.equal(stage.driver.session.state, "attached");
  assert.equal(stage.driver.session.rtt, 100);
  // From here on the client answers no heartbeat, but bytes arrive.
  await stage.pass(100_000, () => void (stage.socket.tcp.bytesRead += 1));
  assert.equal(stage.driver.session.state, "attached");
  await stage.pass(400_000, () => void (stage.socket.tcp.bytesRead += 1));
  assert.equal(stage.driver.session.state, "attached", "it answers nothing, but is in the middle of a message");
});

test("a client that sends messages and answers no probe is dropped after five minutes, and can resume", async (t) => {
  const stage = new Stage(t);
  await stage.pass(300_000, () => stage.socket.arrive(ack(0)));
  assert.equal(stage.driver.session.state, "attached");
  await stage.pass(60_000, () => stage.socket.arrive(ack(0)));
  assert.equal(stage.driver.session.state, "parked");
});

test("a probe that waits behind a large write does not end the connection while the kernel accepts bytes of that write", async (t) => {
  const stage = new Stage(t);
  stage.socket.tcp.isFlowing = false;
  stage.socket.tcp.writableLength = 60_000;
  await stage.pass(120_000, () => void stage.socket.tcp.writableLength--);
  assert.equal(stage.driver.session.state, "attached");
  await stage.pass(60_000);
  assert.equal(stage.driver.session.state, "parked");
});

test("messages wait in the session while the socket is full, and leave when it has room", async (t) => {
  const stage = new Stage(t);
  stage.socket.tcp.writableLength = 100_000;
  assert.ok(stage.driver.session.trySend("later"));
  assert.deepEqual(stage.socket.written, []);
  stage.socket.tcp.flow();
  assert.deepEqual(stage.socket.written, [data("later")]);
});

test("a message is acknowledged within 250 ms, by the session's only timer", async (t) => {
  const stage = new Stage(t);
  stage.driver.session.on("message", () => {});
  await new Promise((resolve) => setImmediate(resolve));
  stage.socket.emit("message", Buffer.from("hi"), false);
  stage.now = 249;
  stage.driver.fire();
  assert.deepEqual(stage.socket.written, []);
  stage.now = 250;
  stage.driver.fire();
  assert.deepEqual(stage.socket.written, [ack(1)]);
});

for (const [what, state] of [["nothing", "parked"], ["a message", "attached"]] as const) {
  test(`at the deadline the driver reads what is readable before it drops the connection: ${what}`, async (t) => {
    const stage = new Stage(t);
    for (const step of ["probe", "deadline"]) {
      stage.now = stage.driver.machine.pollTimeout();
      stage.driver.fire();
      assert.equal(stage.driver.session.state, "attached", step);
      // The probe leaves when this turn ends.
      if (step === "probe") await new Promise((resolve) => setImmediate(resolve));
    }
    if (what !== "nothing") stage.socket.arrive(ack(0));
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(stage.driver.session.state, state);
  });
}

test("after a close the handler receives nothing more, and the connection of a client that acknowledges nothing is closed within 10 s", async (t) => {
  const stage = new Stage(t);
  const { session } = stage.driver;
  const received: unknown[] = [];
  session.on("message", (data) => received.push(data));
  assert.ok(session.trySend("welcome"));
  session.close(4000, "kicked");
  const closedAt = stage.now;
  await stage.pass(20_000, () => void stage.socket.emit("message", Buffer.from("still here"), false));
  assert.deepEqual(received, []);
  const end = stage.socket.written.find((frame) => frame.type === END);
  assert.deepEqual(endIn(end), [END, 4000, "kicked"]);
  assert.equal(stage.removed, 1);
  assert.ok(stage.now - closedAt >= 10_000);
});

test("a loop over messages ends when its session is closed, whatever the client does", async (t) => {
  const stage = new Stage(t);
  const { session } = stage.driver;
  const loop = (async () => {
    for await (const _ of session);
    return "ended";
  })();
  assert.ok(session.trySend("welcome"));
  session.close(4000, "kicked");
  assert.equal(await loop, "ended");
});

test("a client that goes on acknowledging messages gets END only after the last one", async (t) => {
  const stage = new Stage(t, { ...CONFIG, keep: { messages: 1024, bytes: 1_000_000 } });
  const { session } = stage.driver;
  for (let n = 0; n < 12; n++) session.trySend(`${n}`);
  session.close(4000, "enough");
  let acknowledged = 0;
  const ends = () => stage.socket.written.some((frame) => frame.type === END);
  for (; acknowledged < 12; acknowledged++) {
    assert.ok(!ends(), `END after ${acknowledged} of 12`);
    stage.socket.arrive(ack(acknowledged + 1));
    if (acknowledged < 11) await stage.pass(4000);
  }
  assert.ok(ends());
});
