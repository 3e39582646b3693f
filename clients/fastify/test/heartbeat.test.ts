import assert from "node:assert/strict";
import { test } from "node:test";
import { Heartbeat, type HeartbeatAction } from "../dist/heartbeat.js";
import { PlainSession } from "../dist/plain-session.js";
import { data } from "./frames.js";

const INTERVAL = 25_000;
const half = () => 0.5;

/** Returns a heartbeat whose first probe was made at 12,500 and has left. */
function probed(random = half): { beat: Heartbeat; nonce: number } {
  const beat = new Heartbeat(0, INTERVAL, random);
  const { nonce } = beat.handleTimeout(12_500) as { nonce: number };
  beat.handleFlushed(12_500);
  return { beat, nonce };
}

/** Returns the action at this time if there is nothing to read. */
function actionAt(beat: Heartbeat, now: number): HeartbeatAction | undefined {
  const action = beat.handleTimeout(now);
  return action?.kind === "drain" ? beat.handleTimeout(now) : action;
}

test("the first probe comes anywhere within the interval, each later probe within 10 % of the interval", () => {
  assert.equal(new Heartbeat(1000, INTERVAL, () => 0).pollTimeout(), 1000);
  assert.equal(new Heartbeat(1000, INTERVAL, () => 0.999).pollTimeout(), 1000 + 24_975);
  const gaps = new Set<number>();
  const beat = new Heartbeat(0, INTERVAL, half);
  for (let last = 0; gaps.size < 50; ) {
    const now = beat.pollTimeout();
    const { nonce } = beat.handleTimeout(now) as { nonce: number };
    beat.handleFlushed(now);
    beat.handlePong(now, nonce);
    if (last) gaps.add(Math.round(now - last));
    last = now;
  }
  assert.ok(Math.min(...gaps) >= 22_500 && Math.max(...gaps) <= 27_500);
  assert.ok(Math.max(...gaps) - Math.min(...gaps) > 4000, "spread over the width");
});

test("a client is dead after five seconds of silence behind a probe, once everything readable was read", () => {
  const { beat } = probed();
  assert.equal(beat.handleTimeout(17_499), undefined);
  assert.deepEqual(beat.handleTimeout(17_500), { kind: "drain" });
  assert.deepEqual(beat.handleTimeout(17_500), { kind: "dead", evidence: "silent" });
});

test("any byte restarts the deadline, even a byte that is read at the deadline", () => {
  const { beat } = probed();
  beat.handleBytes(15_000);
  assert.equal(beat.pollTimeout(), 20_000);
  assert.deepEqual(beat.handleTimeout(20_000), { kind: "drain" });
  beat.handleBytes(20_000);
  assert.equal(beat.handleTimeout(20_000), undefined);
  assert.equal(beat.pollTimeout(), 25_000);
});

test("progress of our own writes stretches the deadline to four times its length, and no further", () => {
  const { beat } = probed();
  for (let now = 13_500; now < 32_500; now += 1000) {
    beat.handleWriteProgress(now);
    assert.equal(beat.handleTimeout(now)?.kind === "dead", false);
  }
  assert.deepEqual(actionAt(beat, 32_500), { kind: "dead", evidence: "frozen" });
});

test("a probe that cannot leave makes a client dead after four deadlines", () => {
  const beat = new Heartbeat(0, INTERVAL, half);
  beat.handleTimeout(12_500);
  beat.handleUnread(20_000);
  assert.equal(actionAt(beat, 32_499)?.kind === "dead", false);
  assert.deepEqual(actionAt(beat, 32_500), { kind: "dead", evidence: "stalled" });
});

test("a client that sends and accepts nothing is dead after 24 deadlines, a client that sometimes accepts a few bytes is not", () => {
  for (const accepts of [false, true]) {
    const beat = new Heartbeat(0, INTERVAL, half);
    beat.handleTimeout(12_500);
    let verdict: [number, HeartbeatAction] | undefined;
    for (let now = 13_500; now < 1_000_000 && !verdict; now += 1000) {
      beat.handleBytes(now);
      if (accepts && now % 100_000 === 500) beat.handleWriteProgress(now);
      for (let action; !verdict && (action = beat.handleTimeout(now)); ) if (action.kind === "dead") verdict = [now, action];
    }
    assert.deepEqual(verdict, accepts ? undefined : [132_500, { kind: "dead", evidence: "stalled" }]);
  }
});

test("after a pause of this process the heartbeat sends a fresh probe, and only that probe counts", () => {
  const { beat } = probed();
  const late = 17_500 + INTERVAL;
  assert.deepEqual(beat.handleTimeout(late), { kind: "drain" });
  assert.equal(beat.handleTimeout(late)?.kind, "probe");
  beat.handleFlushed(late);
  assert.equal(actionAt(beat, late + 4999), undefined);
  assert.equal(actionAt(beat, late + 5000)?.kind, "dead");
});

test("a timer is late from a quarter of the interval on and never below 250 ms", () => {
  for (const [interval, late] of [[25_000, 6250], [100, 250]] as const) {
    for (const [by, kind] of [[late, "probe"], [late + 1, "drain"]] as const) {
      const beat = new Heartbeat(0, interval, () => 0.5);
      assert.equal(beat.handleTimeout(beat.pollTimeout() + by)?.kind, kind);
    }
  }
});

test("an answer measures the round trip; a stale or foreign answer counts as bytes only", () => {
  const { beat, nonce } = probed();
  beat.handlePong(13_000, nonce + 1);
  beat.handlePong(13_000, nonce - 1);
  assert.equal(beat.rtt, undefined);
  beat.handlePong(14_500, nonce);
  assert.equal(beat.rtt, 2000);
  assert.ok(beat.pollTimeout() > 30_000, "no deadline is open");
  const next = beat.pollTimeout();
  beat.handleTimeout(next);
  beat.handleFlushed(next);
  assert.equal(beat.pollTimeout(), next + 9000, "four round trips and a second");
});

test("a client that sends bytes and answers nothing is reported every five minutes, and is not dead", () => {
  const { beat } = probed();
  const reports: number[] = [];
  for (let now = 13_000; now < 700_000; now += 1000) {
    beat.handleBytes(now);
    for (let action; (action = beat.handleTimeout(now)); ) {
      if (action.kind === "probe") beat.handleFlushed(now);
      else if (action.kind === "not listening") reports.push(now);
      else assert.fail(action.kind);
    }
  }
  // The heartbeat checks this at every probe.
  const [first, second, ...more] = reports as [number, number];
  assert.ok(first >= 312_500 && first <= 340_000 && second >= first + 300_000 && !more.length, String(reports));
});

test("the nonce after the largest 32-bit number is 0", () => {
  const draws = [0.5, 1 - 2 ** -33];
  const { beat, nonce } = probed(() => draws.shift()!);
  assert.equal(nonce, 0);
  beat.handlePong(12_600, nonce);
  assert.equal(beat.rtt, 100);
});

test("the server stops reading a plain client while its handler is behind, and writes accepted messages before the Close", () => {
  const config = { heartbeatMs: INTERVAL, resumeWindowMs: 0, keep: { messages: 2, bytes: 10 }, accept: { messages: 2, bytes: 10 }, dropOldest: false } as const;
  const session = new PlainSession(0, config as any, 1, half);
  session.handleFrame(0, 1, data("1"));
  assert.ok(session.wantsInput);
  session.handleFrame(0, 1, data("2"));
  assert.ok(!session.wantsInput);
  assert.equal(session.deliver()?.data, "1");
  assert.ok(session.wantsInput);

  assert.ok(session.send("a") && session.send("b") && !session.send("c"));
  session.close(0, 4000, "bye");
  assert.deepEqual([session.pollTransmit(), session.pollTransmit(), session.pollTransmit(), session.pollTransmit()], ["a", "b", { kind: "close", code: 4000, reason: "bye" }, undefined]);
  assert.equal(session.handleTimeout(9999)?.kind === "dead", false);
  assert.equal(session.handleTimeout(10_000)?.kind, "dead");
});
