import assert from "node:assert/strict";
import { test } from "node:test";
import { type Action, Heartbeat } from "../dist/heartbeat.js";
import { PlainSession } from "../dist/plain-session.js";

const INTERVAL = 25_000;
const half = () => 0.5;

/** A heartbeat whose first probe is made at 12,500 and has left. */
function probed(random = half): { beat: Heartbeat; nonce: number } {
  const beat = new Heartbeat(0, INTERVAL, random);
  const { nonce } = beat.timeout(12_500) as { nonce: number };
  beat.flushed(12_500);
  return { beat, nonce };
}

/** Says what comes of calling at this time, reading nothing in between. */
function judge(beat: Heartbeat, now: number): Action | undefined {
  const action = beat.timeout(now);
  return action?.is === "drain" ? beat.timeout(now) : action;
}

test("the first beat falls anywhere within the interval, the later ones within 10 % of it", () => {
  assert.equal(new Heartbeat(1000, INTERVAL, () => 0).dueAt, 1000);
  assert.equal(new Heartbeat(1000, INTERVAL, () => 0.999).dueAt, 1000 + 24_975);
  const gaps = new Set<number>();
  const beat = new Heartbeat(0, INTERVAL, half);
  for (let last = 0; gaps.size < 50; ) {
    const now = beat.dueAt;
    const { nonce } = beat.timeout(now) as { nonce: number };
    beat.flushed(now);
    beat.pong(now, nonce);
    if (last) gaps.add(Math.round(now - last));
    last = now;
  }
  assert.ok(Math.min(...gaps) >= 22_500 && Math.max(...gaps) <= 27_500);
  assert.ok(Math.max(...gaps) - Math.min(...gaps) > 4000, "spread over the width");
});

test("silence after a probe is a verdict after five seconds, and not before what was readable was read", () => {
  const { beat } = probed();
  assert.equal(beat.timeout(17_499), undefined);
  assert.deepEqual(beat.timeout(17_500), { is: "drain" });
  assert.deepEqual(beat.timeout(17_500), { is: "dead", evidence: "silent" });
});

test("any byte starts the deadline again, also one that is read before the verdict", () => {
  const { beat } = probed();
  beat.bytes(15_000);
  assert.equal(beat.dueAt, 20_000);
  assert.deepEqual(beat.timeout(20_000), { is: "drain" });
  beat.bytes(20_000);
  assert.equal(beat.timeout(20_000), undefined);
  assert.equal(beat.dueAt, 25_000);
});

test("progress of our own writes stretches the deadline to four times its length, and no further", () => {
  const { beat } = probed();
  for (let now = 13_500; now < 32_500; now += 1000) {
    beat.progress(now);
    assert.equal(beat.timeout(now)?.is === "dead", false);
  }
  assert.deepEqual(judge(beat, 32_500), { is: "dead", evidence: "frozen" });
});

test("a probe that cannot leave counts after four deadlines", () => {
  const beat = new Heartbeat(0, INTERVAL, half);
  beat.timeout(12_500);
  beat.unread(20_000);
  assert.equal(judge(beat, 32_499)?.is === "dead", false);
  assert.deepEqual(judge(beat, 32_500), { is: "dead", evidence: "stalled" });
});

test("a client that sends and takes nothing is dead after 24 deadlines, one that takes a little now and then is not", () => {
  for (const takes of [false, true]) {
    const beat = new Heartbeat(0, INTERVAL, half);
    beat.timeout(12_500);
    let verdict: [number, Action] | undefined;
    for (let now = 13_500; now < 1_000_000 && !verdict; now += 1000) {
      beat.bytes(now);
      if (takes && now % 100_000 === 500) beat.progress(now);
      for (let action; !verdict && (action = beat.timeout(now)); ) if (action.is === "dead") verdict = [now, action];
    }
    assert.deepEqual(verdict, takes ? undefined : [132_500, { is: "dead", evidence: "stalled" }]);
  }
});

test("a pause of our own asks for a fresh probe, and only that one is judged", () => {
  const { beat } = probed();
  const late = 17_500 + INTERVAL;
  assert.deepEqual(beat.timeout(late), { is: "drain" });
  assert.equal(beat.timeout(late)?.is, "probe");
  beat.flushed(late);
  assert.equal(judge(beat, late + 4999), undefined);
  assert.equal(judge(beat, late + 5000)?.is, "dead");
});

test("an answer measures the round trip; a stale or foreign one is only bytes", () => {
  const { beat, nonce } = probed();
  beat.pong(13_000, nonce + 1);
  beat.pong(13_000, nonce - 1);
  assert.equal(beat.rtt, undefined);
  beat.pong(14_500, nonce);
  assert.equal(beat.rtt, 2000);
  assert.ok(beat.dueAt > 30_000, "no deadline is open");
  const next = beat.dueAt;
  beat.timeout(next);
  beat.flushed(next);
  assert.equal(beat.dueAt, next + 9000, "four round trips and a second");
});

test("who sends bytes and answers nothing is reported after five minutes, again and again, and is not dead", () => {
  const { beat } = probed();
  const reports: number[] = [];
  for (let now = 13_000; now < 700_000; now += 1000) {
    beat.bytes(now);
    for (let action; (action = beat.timeout(now)); ) {
      if (action.is === "probe") beat.flushed(now);
      else if (action.is === "not listening") reports.push(now);
      else assert.fail(action.is);
    }
  }
  // It is looked at with every beat.
  const [first, second, ...more] = reports as [number, number];
  assert.ok(first >= 312_500 && first <= 340_000 && second >= first + 300_000 && !more.length, String(reports));
});

test("the nonce after the last of 32 bits is 0", () => {
  const draws = [0.5, 1 - 2 ** -33];
  const { beat, nonce } = probed(() => draws.shift()!);
  assert.equal(nonce, 0);
  beat.pong(12_600, nonce);
  assert.equal(beat.rtt, 100);
});

const DATA = 0;

test("a plain client is not read while its handler is behind, and takes what precedes its Close", () => {
  const config = { heartbeat: INTERVAL, resumeWindow: 0, keep: { messages: 2, bytes: 10 }, accept: { messages: 2, bytes: 10 }, dropOldest: false } as const;
  const session = new PlainSession(0, config as any, 1, half);
  session.receive(0, 1, { type: DATA, data: "1" });
  assert.ok(session.wantsInput);
  session.receive(0, 1, { type: DATA, data: "2" });
  assert.ok(!session.wantsInput);
  assert.equal(session.handOver()?.data, "1");
  assert.ok(session.wantsInput);

  assert.ok(session.send("a") && session.send("b") && !session.send("c"));
  session.close(0, 4000, "bye");
  assert.deepEqual([session.transmit(), session.transmit(), session.transmit(), session.transmit()], ["a", "b", { code: 4000, reason: "bye" }, undefined]);
  assert.equal(session.timeout(9999)?.is === "dead", false);
  assert.equal(session.timeout(10_000)?.is, "dead");
});
