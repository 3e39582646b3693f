/** Costs, as counts of timers, promises, writes and bytes of memory. Never times. */

import assert from "node:assert/strict";
import { createHook } from "node:async_hooks";
import { test, type TestContext } from "node:test";
import { Wheel } from "../dist/wheel.js";
import { ack } from "./frames.js";
import { serve, Peer, hello } from "./peer.js";
import { CONFIG, Stage } from "./stage.js";

const turn = () => new Promise((resolve) => setImmediate(resolve));
const MODES = ["session", "plain"] as const;

/** Returns a function that returns how often timers were made and cleared since. */
function timersOf(t: TestContext): () => number {
  let count = 0;
  for (const name of ["setTimeout", "clearTimeout", "setInterval", "setImmediate"] as const) {
    const original = globalThis[name] as any;
    t.mock.method(globalThis, name, Object.assign((...args: any[]) => (count++, original(...args)), original) as any);
  }
  return () => count;
}

async function echoing(t: TestContext, mode: "session" | "plain"): Promise<Stage> {
  const stage = new Stage(t, CONFIG, mode);
  stage.driver.session.on("message", (data) => void stage.driver.session.send(data));
  stage.driver.fire();
  // The code is compiled afterwards, and the first acknowledgement is due.
  for (let i = 0; i < 8; i++) stage.receive("warm");
  await turn();
  return stage;
}

for (const mode of MODES) {
  test(`a message touches no timer, and makes no promise that is not awaited: ${mode}`, async (t) => {
    const stage = await echoing(t, mode);
    const timers = timersOf(t);
    let promises = 0;
    const hook = createHook({ init: (_id, type) => void (promises += +(type === "PROMISE")) }).enable();
    // In a session both ends acknowledge every 32nd message.
    for (let i = 0; i < 20; i++) stage.receive("hi");
    hook.disable();
    assert.deepEqual([stage.written().length, timers(), promises], [28, 0, 0]);
  });

  test(`messages that arrive together are answered by one write: ${mode}`, async (t) => {
    const stage = await echoing(t, mode);
    const before = stage.socket.tcp.writes;
    for (let i = 0; i < 16; i++) stage.receive("hi");
    assert.equal(stage.socket.tcp.writes, before);
    await turn();
    assert.deepEqual([stage.socket.tcp.writes - before, stage.written().length], [1, 24]);
  });

  test(`calls of send that need not wait return the same promise: ${mode}`, async (t) => {
    const { session } = new Stage(t, CONFIG, mode).driver;
    assert.equal(session.send("a"), session.send("b"));
    assert.equal(await session.send("c"), true);
  });

  test(`an idle connection keeps few bytes, and as few after messages have passed: ${mode}`, async (t) => {
    const bytesOf = async (count: number, after: (stage: Stage) => void) => {
      const from = await heap();
      const stages = Array.from({ length: count }, () => new Stage(t, CONFIG, mode));
      for (const stage of stages) {
        stage.driver.session.on("message", (data) => void stage.driver.session.send(data));
        stage.driver.fire();
        after(stage);
      }
      await turn();
      for (const stage of stages) stage.written();
      return ((await heap()) - from) / stages.length;
    };
    const exchange = (stage: Stage) => {
      for (let i = 0; i < 40; i++) stage.receive("x".repeat(100));
      if (mode === "session") stage.socket.arrive(ack(40));
    };
    Stage.wheel = new Wheel(() => 0);
    t.after(() => (Stage.wheel = undefined));
    await bytesOf(200, exchange);
    const idle = await bytesOf(1000, () => {});
    const used = await bytesOf(1000, exchange);
    t.diagnostic(`${Math.round(idle)} bytes idle, ${Math.round(used)} after messages have passed`);
    // The figure includes the stage: its socket and registry.
    assert.ok(idle < (mode === "plain" ? 8000 : 9500), `${Math.round(idle)} bytes`);
    // A session keeps two empty arrays.
    assert.ok(used - idle < (mode === "plain" ? 500 : 900), `${Math.round(used - idle)} bytes are left of messages that have passed`);
  });
}

test("all connections and sessions share one timer", async (t) => {
  const { app, url } = await serve({}, () => {});
  t.after(() => app.close());
  const timeouts = () => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
  const before = timeouts();
  const peers = await Promise.all(Array.from({ length: 40 }, (_, i) => new Peer(url, i % 2 ? [] : ["mainstay.v1"], !!(i % 2)).opened()));
  for (const [i, peer] of peers.entries()) if (i % 2 === 0) peer.write(hello());
  for (const [i, peer] of peers.entries()) if (i % 2 === 0) await peer.next();
  assert.ok(timeouts() <= before + 1, `${timeouts() - before} timers`);
  for (const peer of peers) await peer.cut();
});

/** Collects twice: the second collection frees what the first one finalizes. */
async function heap(): Promise<number> {
  for (let i = 0; i < 2; i++) {
    globalThis.gc!();
    await turn();
  }
  return process.memoryUsage().heapUsed;
}
