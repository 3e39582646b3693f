import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, type Welcome } from "@mainstay/client/protocol";
import { type Answer, Registry } from "../dist/registry.js";
import type { ServerSession, SessionConfig } from "../dist/server-session.js";
import { ack, auth, authResult, data, END, endIn, PING, ping, pong, resumeAt } from "./frames.js";
import { bytes, hello, type HelloFields } from "./peer.js";

const CONFIG: SessionConfig = { heartbeatMs: 25_000, resumeWindowMs: 120_000, keep: { messages: 2, bytes: 1000 }, accept: { messages: 16, bytes: 1000 }, dropOldest: false };
const DAY = 86_400_000;

/** A registry, and its answers. Every HELLO has its own connection. */
class Directory {
  registry: Registry;
  private connection = 0;

  constructor(limits: { sessions?: number; tombstones?: number } = {}) {
    this.registry = new Registry(0, { sessions: 10, tombstones: 10, ...limits }, CONFIG, bytes);
  }

  ask(now: number, fields: HelloFields, owner = ""): Answer {
    return this.registry.handleHello(now, ++this.connection, owner, hello(fields));
  }

  /** Returns the session and its WELCOME. */
  attach(now: number, fields: HelloFields, owner = ""): [ServerSession, Welcome] {
    const answer = this.ask(now, fields, owner);
    assert.ok(answer.kind === "attached", JSON.stringify(answer));
    return [answer.session, decode(answer.session.pollTransmit(now, this.connection) as any) as Welcome];
  }

  expire(now: number, session: ServerSession): void {
    session.handleLost(now, session.connection!);
    session.handleTimeout(now + CONFIG.resumeWindowMs);
    this.registry.bury(now + CONFIG.resumeWindowMs, session);
  }
}

test("a HELLO with the counts of another copy of the client is answered like an unknown token, and changes no session", () => {
  const directory = new Directory();
  const instance = bytes(8);
  const [session, welcome] = directory.attach(0, { instance });
  const connection = session.connection!;
  session.handleFrame(0, connection, ack(0));
  session.send("1");
  session.send("2");
  while (session.pollTransmit(0, connection));
  session.handleFrame(0, connection, ack(1));
  session.handleFrame(0, connection, data("C1"));
  const impossible: [string, number, number, number][] = [
    ["acknowledges a message that was never written", 3, 1, 1],
    ["acknowledges less than before", 0, 1, 1],
    ["sent fewer messages than the server received", 1, 0, 1],
    ["does not hold the message that the server needs next", 1, 3, 2],
  ];
  for (const [what, acknowledged, sent, firstHeld] of impossible) {
    const [other, { resumed: isResumed }] = directory.attach(0, { resume: resumeAt(welcome.token, acknowledged, sent, firstHeld) });
    assert.deepEqual([isResumed, other === session, session.connection], [false, false, connection], what);
  }
  const [same] = directory.attach(0, { instance, attempt: 2, resume: resumeAt(welcome.token, 2, 1, 1) });
  assert.equal(same, session);
  assert.ok(session.send("3") && session.send("4"), "the messages that HELLO acknowledges make room");
});

test("AUTH_RESULTs do not pile up for a client that reads nothing", () => {
  const [session] = new Directory().attach(0, {});
  const connection = session.connection!;
  session.handleFrame(0, connection, ack(0));
  for (const round of [1, 2]) {
    session.handleFrame(0, connection, auth(bytes(8)));
    session.handleAuthResult(session.pollAuth()!.connection, session.owner);
    assert.throws(() => session.handleFrame(0, connection, auth(bytes(8))), /AUTH before AUTH_RESULT/, `round ${round}`);
    assert.deepEqual(decode(session.pollTransmit(0, connection) as any), authResult(true));
    assert.equal(session.pollTransmit(0, connection), undefined);
  }
});

test("a session that has sent END still answers a PING", () => {
  const [session] = new Directory().attach(0, {});
  const connection = session.connection!;
  session.handleFrame(0, connection, ack(0));
  session.close(0, 4500, "closed");
  assert.equal((decode(session.pollTransmit(0, connection) as any) as any).type, END);
  session.handleFrame(0, connection, ping(7, 0, 0));
  assert.deepEqual(decode(session.pollTransmit(0, connection) as any), pong(7, 0, 0));
  assert.equal(session.pollTransmit(0, connection), undefined);
});

test("only the newer of two waiting probes is written", () => {
  const [session] = new Directory().attach(0, {});
  const connection = session.connection!;
  session.handleFrame(0, connection, ack(0));
  let now = 0;
  const probe = () => {
    for (;;) {
      now = Math.max(now, session.pollTimeout());
      session.handleBytes(now, connection);
      for (let action; (action = session.handleTimeout(now)); ) if (action.kind === "probe") return { now, nonce: action.nonce };
    }
  };
  const older = probe();
  assert.deepEqual(session.pollTransmit(older.now, connection), { kind: "ping", nonce: older.nonce });
  // The socket is full until the next probe is due.
  const newer = probe();
  assert.deepEqual(session.pollTransmit(newer.now, connection), { kind: "ping", nonce: newer.nonce });
  const written: any = decode(session.pollTransmit(newer.now, connection) as any);
  assert.deepEqual([written.type, written.nonce], [PING, newer.nonce]);
  assert.equal(session.pollTransmit(newer.now, connection), undefined);
});

test("a client that acknowledges nothing cannot delay its end", () => {
  const [session] = new Directory().attach(0, {});
  const connection = session.connection!;
  session.send("never acknowledged");
  session.close(0, 4501, "revoked");
  while (session.pollTransmit(0, connection));
  for (let now = 1000; now < 5000; now += 1000) {
    session.handleFrame(now, connection, ack(0));
    while (session.handleTimeout(now));
    for (let output; (output = session.pollTransmit(now, connection)); ) assert.notEqual((decode(output as any) as any).type, END, "END came too early");
  }
  session.handleFrame(5000, connection, ack(0));
  session.handleTimeout(5000);
  assert.deepEqual(endIn(decode(session.pollTransmit(5000, connection) as any)), [END, 4501, "revoked"]);
});

test("a token that another principal presents names no session", () => {
  const directory = new Directory();
  const [session, welcome] = directory.attach(0, {}, "ann");
  const [other] = directory.attach(0, { resume: resumeAt(welcome.token, 0, 0, 1) }, "bob");
  assert.notEqual(other, session);
});

test("the account of an ended session is given to the first instance that asks, and to no other", () => {
  const directory = new Directory();
  const [session, welcome] = directory.attach(0, {});
  directory.expire(0, session);
  const resume = resumeAt(welcome.token, 0, 3, 1);
  const instance = bytes(8);
  const account = { acknowledged: 0, delivered: 0, firstLost: 1, count: 0, cause: 1 };
  assert.deepEqual(directory.attach(DAY / 2, { instance, resume })[1].account, account);
  assert.equal(directory.attach(DAY / 2, { resume })[1].account, undefined);
  assert.deepEqual(directory.attach(DAY / 2, { instance, resume, attempt: 2 })[1].account, account);
});

test("tombstones are limited in number and in time, and leave no names behind", () => {
  const directory = new Directory({ tombstones: 2 });
  const { registry } = directory;
  for (let i = 0; i < 5; i++) {
    const instance = bytes(8);
    const [, welcome] = directory.attach(i, { instance });
    const [session] = directory.attach(i, { instance, attempt: 2, resume: resumeAt(welcome.token, 0, 0, 1) });
    // From here on the first token is spent, but its name is still registered.
    session.handleFrame(i, session.connection!, ack(0));
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

test("a key that is older than the registry's memory is refused, because it may have named a session", () => {
  const directory = new Directory({ tombstones: 0 });
  const old = (now: number, keyAgeMs: number) => {
    const answer = directory.registry.handleHello(now, 99, "", hello({ keyAgeMs }));
    return answer.kind === "refused" ? answer.refuse.code : undefined;
  };
  assert.equal(old(20_000, 10_001), 4411);
  assert.equal(old(20_000, 9999), undefined);
  // The registry dropped a tombstone: its memory begins when that session was buried.
  directory.expire(20_000, directory.attach(20_000, {})[0]);
  assert.equal(old(155_000, 9999), 4411);
});

test("names do not pile up over a thousand attaches", () => {
  const directory = new Directory();
  const instance = bytes(8);
  let [session, welcome] = directory.attach(0, { instance });
  for (let attempt = 2; attempt < 1000; attempt++) {
    // No epoch whose number is a multiple of three is confirmed: its WELCOME was lost.
    if (attempt % 3) session.handleFrame(0, session.connection!, ack(0));
    [session, welcome] = directory.attach(0, { instance, attempt, resume: resumeAt(welcome.token, 0, 0, 1) });
  }
  assert.ok(directory.registry.size.names <= 4, String(directory.registry.size.names));
});
