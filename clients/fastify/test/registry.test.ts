import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, type Hello } from "@mainstay/client/protocol";
import { type Answer, Registry } from "../dist/registry.js";
import type { ServerSession, SessionConfig } from "../dist/server-session.js";
import { bytes, frameOf, type Hi, hello, type Tuple, tupleOf } from "./peer.js";

const CONFIG: SessionConfig = { heartbeat: 25_000, resumeWindow: 120_000, keep: { messages: 2, bytes: 1000 }, accept: { messages: 16, bytes: 1000 }, dropOldest: false };
const DAY = 86_400_000;

/** A registry, and what it answers. Every HELLO has a connection of its own. */
class Directory {
  registry: Registry;
  private connection = 0;

  constructor(limits: { sessions?: number; tombstones?: number } = {}) {
    this.registry = new Registry(0, { sessions: 10, tombstones: 10, ...limits }, CONFIG, bytes);
  }

  ask(now: number, hi: Hi, owner = ""): Answer {
    return this.registry.hello(now, ++this.connection, owner, frameOf(hello(hi)) as Hello);
  }

  /** The session and its WELCOME. */
  attach(now: number, hi: Hi, owner = ""): [ServerSession, Tuple] {
    const answer = this.ask(now, hi, owner);
    assert.ok(!answer.refuse, JSON.stringify(answer));
    return [answer.session, tupleOf(decode(answer.session.transmit(now, this.connection) as any))];
  }

  expire(now: number, session: ServerSession): void {
    session.lost(now, session.connection!);
    session.timeout(now + CONFIG.resumeWindow);
    this.registry.bury(now + CONFIG.resumeWindow, session);
  }
}

test("counts of another copy of the client are answered like an unknown token, and touch nothing", () => {
  const directory = new Directory();
  const instance = bytes(8);
  const [session, welcome] = directory.attach(0, { instance });
  const connection = session.connection!;
  session.receive(0, connection, frameOf([3, 0]));
  session.send("1");
  session.send("2");
  while (session.transmit(0, connection));
  session.receive(0, connection, frameOf([3, 1]));
  session.receive(0, connection, frameOf([0, "C1"]));
  const impossible: [string, number, number, number][] = [
    ["received what was never written", 3, 1, 1],
    ["received less than it acknowledged", 0, 1, 1],
    ["gave fewer numbers than were taken", 1, 0, 1],
    ["holds nothing that is needed next", 1, 3, 2],
  ];
  for (const [what, received, sent, firstHeld] of impossible) {
    const [other, { 4: isResumed }] = directory.attach(0, { resume: [welcome[2], received, sent, firstHeld] });
    assert.deepEqual([isResumed, other === session, session.connection], [false, false, connection], what);
  }
  const [same] = directory.attach(0, { instance, attempt: 2, resume: [welcome[2], 2, 1, 1] });
  assert.equal(same, session);
  assert.ok(session.send("3") && session.send("4"), "what HELLO says was received makes room");
});

test("results of AUTH do not pile up for a client that reads nothing", () => {
  const [session] = new Directory().attach(0, {});
  const connection = session.connection!;
  session.receive(0, connection, frameOf([3, 0]));
  for (const round of [1, 2]) {
    session.receive(0, connection, frameOf([9, bytes(8)]));
    session.verdict(session.takeAuth()!.connection, session.owner);
    assert.throws(() => session.receive(0, connection, frameOf([9, bytes(8)])), /AUTH before AUTH_RESULT/, `round ${round}`);
    assert.deepEqual(tupleOf(decode(session.transmit(0, connection) as any)), [10, true, 0]);
    assert.equal(session.transmit(0, connection), undefined);
  }
});

test("a session that has sent END still answers who asks whether it is there", () => {
  const [session] = new Directory().attach(0, {});
  const connection = session.connection!;
  session.receive(0, connection, frameOf([3, 0]));
  session.close(0, 4500, "over");
  assert.equal((session.transmit(0, connection) as any)[0], 8);
  session.receive(0, connection, frameOf([4, 7, 0, 0]));
  assert.deepEqual(tupleOf(decode(session.transmit(0, connection) as any)), [5, 7, 0, 0]);
  assert.equal(session.transmit(0, connection), undefined);
});

test("of two probes that wait only the newer leaves", () => {
  const [session] = new Directory().attach(0, {});
  const connection = session.connection!;
  session.receive(0, connection, frameOf([3, 0]));
  let now = 0;
  const probe = () => {
    for (;;) {
      now = Math.max(now, session.dueAt);
      session.bytes(now, connection);
      for (let action; (action = session.timeout(now)); ) if (action.is === "probe") return { now, nonce: action.nonce };
    }
  };
  const older = probe();
  assert.deepEqual(session.transmit(older.now, connection), { ping: older.nonce });
  // The socket is full until the next is due.
  const newer = probe();
  assert.deepEqual(session.transmit(newer.now, connection), { ping: newer.nonce });
  assert.deepEqual(tupleOf(decode(session.transmit(newer.now, connection) as any)).slice(0, 2), [4, newer.nonce]);
  assert.equal(session.transmit(newer.now, connection), undefined);
});

test("no client puts off its end by acknowledging nothing", () => {
  const [session] = new Directory().attach(0, {});
  const connection = session.connection!;
  session.send("never acknowledged");
  session.close(0, 4501, "revoked");
  while (session.transmit(0, connection));
  for (let now = 1000; now < 5000; now += 1000) {
    session.receive(now, connection, frameOf([3, 0]));
    while (session.timeout(now));
    for (let output; (output = session.transmit(now, connection)); ) assert.notEqual((output as any)[0], 8, "END came too early");
  }
  session.receive(5000, connection, frameOf([3, 0]));
  session.timeout(5000);
  assert.deepEqual(tupleOf(decode(session.transmit(5000, connection) as any)).slice(0, 3), [8, 4501, "revoked"]);
});

test("the token of somebody else names nothing", () => {
  const directory = new Directory();
  const [session, welcome] = directory.attach(0, {}, "ann");
  const [other] = directory.attach(0, { resume: [welcome[2], 0, 0, 1] }, "bob");
  assert.notEqual(other, session);
});

test("the account of a dead session is for the first instance that asks", () => {
  const directory = new Directory();
  const [session, welcome] = directory.attach(0, {});
  directory.expire(0, session);
  const resume: Hi["resume"] = [welcome[2], 0, 3, 1];
  const instance = bytes(8);
  const account = [0, 0, 1, 0, 1];
  assert.deepEqual(directory.attach(DAY / 2, { instance, resume })[1][10], account);
  assert.equal(directory.attach(DAY / 2, { resume })[1][10], undefined);
  assert.deepEqual(directory.attach(DAY / 2, { instance, resume, attempt: 2 })[1][10], account);
});

test("tombstones are bounded in number and in time, and leave no names behind", () => {
  const directory = new Directory({ tombstones: 2 });
  const { registry } = directory;
  for (let i = 0; i < 5; i++) {
    const instance = bytes(8);
    const [, welcome] = directory.attach(i, { instance });
    const [session] = directory.attach(i, { instance, attempt: 2, resume: [welcome[2], 0, 0, 1] });
    // From here on the first token is spent, and its name only stands there.
    session.receive(i, session.connection!, frameOf([3, 0]));
    directory.expire(i, session);
  }
  assert.deepEqual(registry.size, { names: 4, tombstones: 2 });
  assert.equal(registry.live, 0);
  const [session] = directory.attach(2 * DAY, {});
  assert.deepEqual(registry.size, { names: 2, tombstones: 0 });
  session.evict("");
  registry.bury(2 * DAY, session);
  registry.bury(2 * DAY, session);
  assert.deepEqual([registry.live, registry.size.tombstones], [0, 1]);
});

test("a key that is older than what is remembered may have lived, and is refused", () => {
  const directory = new Directory({ tombstones: 0 });
  const old = (now: number, age: number) => directory.registry.hello(now, 99, "", frameOf(hello().with(4, age) as Tuple) as Hello).refuse?.code;
  assert.equal(old(20_000, 10_001), 4411);
  assert.equal(old(20_000, 9999), undefined);
  // A tombstone was dropped: memory begins at its burial.
  directory.expire(20_000, directory.attach(20_000, {})[0]);
  assert.equal(old(155_000, 9999), 4411);
});

test("names do not pile up over a thousand attaches", () => {
  const directory = new Directory();
  const instance = bytes(8);
  let [session, welcome] = directory.attach(0, { instance });
  for (let attempt = 2; attempt < 1000; attempt++) {
    // Every third epoch is never confirmed: its WELCOME was lost.
    if (attempt % 3) session.receive(0, session.connection!, frameOf([3, 0]));
    [session, welcome] = directory.attach(0, { instance, attempt, resume: [welcome[2], 0, 0, 1] });
  }
  assert.ok(directory.registry.size.names <= 4, String(directory.registry.size.names));
});
