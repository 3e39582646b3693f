import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { Resident, Wheel } from "../dist/wheel.js";
import { randomFrom } from "./peer.js";

/** Says when it was called. */
class Caller extends Resident {
  called: number[] = [];
  constructor(
    private wheel: Wheel,
    private then: () => void = () => {},
  ) {
    super();
  }
  due(): void {
    this.called.push(this.wheel.now);
    this.then();
  }
}

/** A wheel in virtual time, and how many timers it ever had at one time. */
function stage(t: TestContext): { wheel: Wheel; pass(ms: number): void; timers: { now: number; most: number; made: number } } {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  let now = 0;
  const timers = { now: 0, most: 0, made: 0 };
  const { setTimeout: set, clearTimeout: clear } = globalThis;
  const open = new Set<unknown>();
  const count = () => (timers.most = Math.max(timers.most, (timers.now = open.size)));
  t.mock.method(globalThis, "setTimeout", (call: () => void, ms: number) => {
    const timer = set(() => {
      open.delete(timer);
      count();
      call();
    }, ms);
    open.add(timer);
    timers.made++;
    count();
    return timer;
  });
  t.mock.method(globalThis, "clearTimeout", (timer: any) => {
    open.delete(timer);
    count();
    clear(timer);
  });
  const pass = (ms: number) => {
    for (const until = now + ms; now < until; now++) t.mock.timers.tick(1);
  };
  return { wheel: new Wheel(() => now), pass, timers };
}

test("what is armed is called once, not early and at most 80 ms late, by one timer", (t) => {
  const { wheel, pass, timers } = stage(t);
  const callers = Array.from({ length: 500 }, () => new Caller(wheel));
  callers.forEach((caller, i) => wheel.arm(caller, i * 37));
  pass(19_000);
  callers.forEach(({ called: [at = NaN, ...more] }, i) => assert.ok(at >= i * 37 && at <= Math.max(i * 37, 16) + 80 && !more.length, `${i} at ${at}`));
  assert.deepEqual([timers.most, timers.now, wheel.armed], [1, 0, 0]);
});

test("deadlines that fall together are spread evenly over four slots", (t) => {
  const { wheel, pass } = stage(t);
  const callers = Array.from({ length: 1000 }, () => new Caller(wheel));
  for (const caller of callers) wheel.arm(caller, 25_000);
  pass(26_000);
  const times = callers.map(({ called }) => called[0]!);
  const counts = [...new Set(times)].map((time) => times.filter((other) => other === time).length);
  assert.deepEqual(counts, [250, 250, 250, 250]);
});

test("heartbeats of thousands of connections leave evenly, and a wake serves those of 16 ms", (t) => {
  const { wheel, pass, timers } = stage(t);
  const random = randomFrom(1);
  const interval = () => 2000 * (0.9 + 0.2 * random());
  const callers: Caller[] = Array.from({ length: 2500 }, () => {
    const caller: Caller = new Caller(wheel, () => wheel.arm(caller, wheel.now + interval()));
    return caller;
  });
  for (const caller of callers) wheel.arm(caller, 2000 * random());
  pass(4000);
  for (const caller of callers) caller.called = [];
  timers.made = 0;
  pass(4000);
  assert.ok(timers.made <= 4000 / 16 + 1, `${timers.made} wakes`);
  const counts = new Uint32Array(400);
  for (const { called } of callers) for (const at of called) counts[Math.floor((at - 4000) / 10)]!++;
  const mean = counts.reduce((sum, count) => sum + count, 0) / 400;
  assert.ok(Math.max(...counts) <= 2 * mean, `${Math.max(...counts)} in the worst 10 ms, ${mean} in the mean`);
});

test("a deadline beyond the wheel is called early, and can be armed again", (t) => {
  const { wheel, pass } = stage(t);
  const caller: Caller = new Caller(wheel, () => wheel.now < 100_000 && wheel.arm(caller, 100_000));
  wheel.arm(caller, 100_000);
  pass(101_000);
  assert.equal(caller.called.length, 4);
  assert.ok(caller.called[3]! >= 100_000 && caller.called[3]! <= 100_080);
});

test("an earlier deadline moves its resident, a later one does not", (t) => {
  const { wheel, pass, timers } = stage(t);
  const caller = new Caller(wheel);
  wheel.arm(caller, 1000);
  for (let i = 0; i < 1000; i++) wheel.arm(caller, 5000 + i);
  assert.equal(timers.made, 1, "a deadline that moves away touches no timer");
  wheel.arm(caller, 100);
  pass(200);
  assert.equal(caller.called.length, 1);
  pass(6000);
  assert.equal(caller.called.length, 1);
});

test("residents that leave, while others are called too, are not called, and keep no place", (t) => {
  const { wheel, pass, timers } = stage(t);
  const callers = Array.from({ length: 100 }, () => new Caller(wheel, () => callers.slice(0, 99).forEach((other) => wheel.disarm(other))));
  for (const caller of callers) wheel.arm(caller, 20);
  pass(100);
  assert.equal(callers.filter(({ called }) => called.length).length, 1);
  wheel.disarm(callers[0]!);
  assert.deepEqual([wheel.armed, timers.now], [0, 0]);
  assert.equal((wheel as any).slots.reduce((sum: number, slot: any) => sum + (slot?.residents.length ?? 0), 0), 0);
});

test("one that throws keeps none of the others from being called", (t) => {
  const { wheel, pass } = stage(t);
  const others = [new Caller(wheel), new Caller(wheel)];
  const failing = new Caller(wheel, () => {
    throw new Error("it fails");
  });
  for (const caller of [others[0]!, failing, others[1]!]) wheel.arm(caller, 20);
  assert.throws(() => pass(100), /it fails/);
  pass(100);
  assert.deepEqual(others.map(({ called }) => called.length), [1, 1]);
});

test("a wheel that stood still for long finds its way", (t) => {
  const { wheel, pass } = stage(t);
  const caller = new Caller(wheel);
  for (const wait of [100_000, 50, 400_000]) {
    pass(wait);
    wheel.arm(caller, wheel.now + 100);
    pass(180);
    assert.equal(caller.called.length, 1);
    caller.called = [];
  }
});
