import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { TimerTask, Wheel } from "../dist/wheel.js";
import { randomFrom } from "./peer.js";

/** Records when the wheel fired it. */
class Recorder extends TimerTask {
  firedAt: number[] = [];
  constructor(
    private wheel: Wheel,
    private then: () => void = () => {},
  ) {
    super();
  }
  fire(): void {
    this.firedAt.push(this.wheel.now);
    this.then();
  }
}

/** Returns a wheel in virtual time, and counts of its timers. */
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

test("an armed task fires once, not early and at most 80 ms late, and all tasks share one timer", (t) => {
  const { wheel, pass, timers } = stage(t);
  const tasks = Array.from({ length: 500 }, () => new Recorder(wheel));
  tasks.forEach((task, i) => wheel.arm(task, i * 37));
  pass(19_000);
  tasks.forEach(({ firedAt: [at = NaN, ...more] }, i) => assert.ok(at >= i * 37 && at <= Math.max(i * 37, 16) + 80 && !more.length, `${i} at ${at}`));
  assert.deepEqual([timers.most, timers.now, wheel.armed], [1, 0, 0]);
});

test("deadlines at the same time are spread evenly over four slots", (t) => {
  const { wheel, pass } = stage(t);
  const tasks = Array.from({ length: 1000 }, () => new Recorder(wheel));
  for (const task of tasks) wheel.arm(task, 25_000);
  pass(26_000);
  const times = tasks.map(({ firedAt }) => firedAt[0]!);
  const counts = [...new Set(times)].map((time) => times.filter((other) => other === time).length);
  assert.deepEqual(counts, [250, 250, 250, 250]);
});

test("the heartbeats of thousands of connections leave evenly, and one wake-up serves those of 16 ms", (t) => {
  const { wheel, pass, timers } = stage(t);
  const random = randomFrom(1);
  const interval = () => 2000 * (0.9 + 0.2 * random());
  const tasks: Recorder[] = Array.from({ length: 2500 }, () => {
    const task: Recorder = new Recorder(wheel, () => wheel.arm(task, wheel.now + interval()));
    return task;
  });
  for (const task of tasks) wheel.arm(task, 2000 * random());
  pass(4000);
  for (const task of tasks) task.firedAt = [];
  timers.made = 0;
  pass(4000);
  assert.ok(timers.made <= 4000 / 16 + 1, `${timers.made} wakes`);
  const counts = new Uint32Array(400);
  for (const { firedAt } of tasks) for (const at of firedAt) counts[Math.floor((at - 4000) / 10)]!++;
  const mean = counts.reduce((sum, count) => sum + count, 0) / 400;
  assert.ok(Math.max(...counts) <= 2 * mean, `${Math.max(...counts)} in the worst 10 ms, ${mean} in the mean`);
});

test("a task whose deadline is beyond the wheel fires early, and can be armed again", (t) => {
  const { wheel, pass } = stage(t);
  const task: Recorder = new Recorder(wheel, () => wheel.now < 100_000 && wheel.arm(task, 100_000));
  wheel.arm(task, 100_000);
  pass(101_000);
  assert.equal(task.firedAt.length, 4);
  assert.ok(task.firedAt[3]! >= 100_000 && task.firedAt[3]! <= 100_080);
});

test("an earlier deadline moves its task, a later deadline does not", (t) => {
  const { wheel, pass, timers } = stage(t);
  const task = new Recorder(wheel);
  wheel.arm(task, 1000);
  for (let i = 0; i < 1000; i++) wheel.arm(task, 5000 + i);
  assert.equal(timers.made, 1, "a deadline that moves away touches no timer");
  wheel.arm(task, 100);
  pass(200);
  assert.equal(task.firedAt.length, 1);
  pass(6000);
  assert.equal(task.firedAt.length, 1);
});

test("a task that is disarmed, even while others fire, does not fire and keeps no memory", (t) => {
  const { wheel, pass, timers } = stage(t);
  const tasks = Array.from({ length: 100 }, () => new Recorder(wheel, () => tasks.slice(0, 99).forEach((other) => wheel.disarm(other))));
  for (const task of tasks) wheel.arm(task, 20);
  pass(100);
  assert.equal(tasks.filter(({ firedAt }) => firedAt.length).length, 1);
  wheel.disarm(tasks[0]!);
  assert.deepEqual([wheel.armed, timers.now], [0, 0]);
  assert.equal((wheel as any).slots.reduce((sum: number, slot: any) => sum + (slot?.tasks.length ?? 0), 0), 0);
});

test("a task that throws does not keep the others from firing", (t) => {
  const { wheel, pass } = stage(t);
  const others = [new Recorder(wheel), new Recorder(wheel)];
  const failing = new Recorder(wheel, () => {
    throw new Error("it fails");
  });
  for (const task of [others[0]!, failing, others[1]!]) wheel.arm(task, 20);
  assert.throws(() => pass(100), /it fails/);
  pass(100);
  assert.deepEqual(others.map(({ firedAt }) => firedAt.length), [1, 1]);
});

test("a wheel without tasks for a long time fires its next task in time", (t) => {
  const { wheel, pass } = stage(t);
  const task = new Recorder(wheel);
  for (const wait of [100_000, 50, 400_000]) {
    pass(wait);
    wheel.arm(task, wheel.now + 100);
    pass(180);
    assert.equal(task.firedAt.length, 1);
    task.firedAt = [];
  }
});
