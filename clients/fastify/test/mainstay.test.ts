/** `app.mainstay`: rooms, broadcast, presence and metrics. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { type Data } from "@mainstay/client/protocol";
import { mainstay, type Session } from "@mainstay/fastify";
import Fastify from "fastify";
import { shareFrame, writeMessage } from "../dist/frame.js";
import { ack, end, gap, resumeAt, volatile } from "./frames.js";
import { bytes, hello, Peer, serve } from "./peer.js";

const until = async (isTrue: () => boolean) => {
  while (!isTrue()) await new Promise((resolve) => setImmediate(resolve));
};

test("app.mainstay finds all sessions, and a session by its id, until the session ends", async (t) => {
  const { app, url } = await serve({}, () => {});
  t.after(() => app.close());
  const { mainstay } = app;
  const [peer] = await Peer.attached(url);
  await new Peer(url, [], true).opened();
  await until(() => mainstay.sessions.size === 2);
  const [session, plain] = [...mainstay.sessions] as [Session, Session];
  assert.deepEqual([session.mode, plain.mode], ["session", "plain"]);
  assert.equal(mainstay.get(session.id), session);
  assert.equal(mainstay.get(""), undefined);
  assert.equal(mainstay.get("no such id"), undefined);
  const detached = once(session, "detached");
  await peer.cut();
  await detached;
  assert.equal(mainstay.get(session.id)?.state, "parked", "a parked session is still there");
  session.close();
  plain.close();
  await until(() => mainstay.sessions.size === 1);
  assert.deepEqual([...mainstay.sessions], [session], "the END of a parked session waits for its client");
});

test("a room's message reaches every member in order, plain, attached or parked, and no session that left or ended", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => void sessions.push(session));
  t.after(() => app.close());
  const { mainstay } = app;
  const [near, welcome] = await Peer.attached(url);
  const plain = await new Peer(url, [], true).opened();
  const [other] = await Peer.attached(url);
  await until(() => sessions.length === 3);
  const [a, b, c] = sessions as [Session, Session, Session];
  for (const session of [a, b]) session.join("kitchen");
  for (const session of [b, c]) session.join("garden");
  a.join("kitchen");
  assert.deepEqual([[...a.rooms], [...b.rooms], mainstay.rooms], [["kitchen"], ["kitchen", "garden"], ["kitchen", "garden"]]);
  assert.deepEqual([...mainstay.to("kitchen", "garden").sessions], [a, b, c], "each once");

  const detached = once(a, "detached");
  await near.cut();
  await detached;
  assert.deepEqual(mainstay.to("kitchen").send("one"), { sent: 2, skipped: 0, disconnected: 0 });
  assert.deepEqual(mainstay.to("kitchen", "garden").send("two", { except: c }), { sent: 2, skipped: 0, disconnected: 0 });
  assert.deepEqual(mainstay.broadcast("three", { except: [a, c] }), { sent: 1, skipped: 0, disconnected: 0 });
  assert.deepEqual(mainstay.broadcast("four", { where: ({ mode }) => mode === "plain" }), { sent: 1, skipped: 0, disconnected: 0 });
  assert.deepEqual(mainstay.broadcast("five"), { sent: 3, skipped: 0, disconnected: 0 });
  assert.deepEqual(mainstay.to("empty").send("six"), { sent: 0, skipped: 0, disconnected: 0 });
  const [back] = await Peer.attached(url, { resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.deepEqual([await back.text(), await back.text(), await back.text()], ["one", "two", "five"]);
  for (const text of ["one", "two", "three", "four", "five"]) assert.equal(await plain.text(), text);
  assert.equal(await other.text(), "five");

  a.leave("kitchen");
  a.leave("kitchen");
  const closed = once(b, "closed");
  await plain.cut();
  await closed;
  assert.deepEqual([mainstay.rooms, [...a.rooms], [...b.rooms]], [["garden"], [], []]);
  b.join("garden");
  assert.deepEqual([...b.rooms], [], "a session that ended joins no room");
  assert.throws(() => mainstay.to(["garden"] as never).send("x"), /a room's name is a string that is not empty/);
  assert.throws(() => a.join(""), /a room's name is a string that is not empty/);
  assert.throws(() => a.join(7 as never), TypeError);
});

test("a room's message is copied once: the application may overwrite its bytes at once, and all members share the copy", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => void sessions.push(session));
  t.after(() => app.close());
  const peers = [await new Peer(url, [], true).opened(), await new Peer(url, [], true).opened(), (await Peer.attached(url))[0]];
  await until(() => sessions.length === 3);
  const data = new Uint8Array([1, 2, 3]);
  app.mainstay.broadcast(data);
  data.fill(9);
  for (const peer of peers) assert.deepEqual([...(await peer.text())], [1, 2, 3]);
  assert.throws(() => app.mainstay.broadcast({} as never), /a message is a string, an ArrayBuffer or a view of one/);
});

test("a message to many sockets is framed once, with the same bytes as a message to one", () => {
  const writes = (data: Data, isShared: boolean) => {
    const chunks: unknown[][] = [[], []];
    const act = () => chunks.forEach((list) => writeMessage({ write: (chunk: unknown, encoding?: BufferEncoding) => list.push(typeof chunk === "string" ? Buffer.from(chunk, encoding) : chunk) } as never, data));
    if (isShared) shareFrame(data, act);
    else act();
    return chunks as Buffer[][];
  };
  for (const size of [0, 1, 125, 126, 2048, 2049, 70_000]) {
    for (const data of ["x".repeat(size), "é".repeat(size), new Uint8Array(size).fill(7)]) {
      const [one, two] = writes(data, true) as [Buffer[], Buffer[]];
      assert.ok(one.length > 0 && one.every((chunk, i) => chunk === two[i]));
      const [alone] = writes(data, false);
      assert.deepEqual(Buffer.concat(one), Buffer.concat(alone!));
      assert.notEqual(writes(data, false)[0]![0], one[0]);
    }
  }
  shareFrame("outer", () => {
    shareFrame("inner", () => {});
    assert.equal(writes("outer", false)[0]![0], writes("outer", false)[1]![0], "a message of another room in between does not end the sharing");
  });
});

test("a member without room is disconnected and learns exactly what it missed, or is skipped, as the sender chooses", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ keep: { messages: 2 } }, (session) => {
    sessions.push(session);
    session.join("feed");
  });
  t.after(() => app.close());
  const room = app.mainstay.to("feed");
  const key = bytes(16);
  const instance = bytes(8);
  const [slow, welcome] = await Peer.attached(url, { key, instance });
  const detached = once(sessions[0]!, "detached");
  await slow.cut();
  await detached;
  const [quick] = await Peer.attached(url);
  for (const text of ["1", "2"]) assert.deepEqual(room.send(text), { sent: 2, skipped: 0, disconnected: 0 });
  quick.write(ack(2));
  for (const text of ["1", "2"]) assert.equal(await quick.text(), text);
  await until(() => sessions[1]!.trySend("only for you"));
  assert.deepEqual(room.send("3", { slow: "skip" }), { sent: 1, skipped: 1, disconnected: 0 });
  assert.equal(await quick.text(), "only for you");
  assert.equal(await quick.text(), "3");
  quick.write(ack(4));
  await until(() => sessions[1]!.trySend("5"));
  const closed = once(sessions[0]!, "closed");
  assert.deepEqual(room.send("6"), { sent: 1, skipped: 0, disconnected: 1 });
  assert.deepEqual(await closed, [{ cause: "evicted", code: 1006, reason: "too far behind what is sent to its rooms" }]);
  // The account names the two lost messages: those that were accepted for it.
  const [, again] = await Peer.attached(url, { key: bytes(16), instance, attempt: 2, resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.deepEqual([again.resumed, again.account?.count], [false, 2]);
  assert.deepEqual(app.mainstay.stats().slow, { disconnected: 1, skipped: 1 });
  assert.equal(app.mainstay.stats().evicted.slow, 1);
  assert.throws(() => room.send("x", { slow: "wait" as never }), /slow must be "disconnect" or "skip"/);
});

test("a plain member that reads nothing is closed with 1013, and the other members get every message", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ keep: { messages: 4 } }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const stuck = await new Peer(url, [], true).opened();
  stuck.socket.pause();
  const [quick] = await Peer.attached(url);
  await until(() => sessions.length === 2);
  const closed = once(sessions[0]!, "closed");
  const large = "x".repeat(200_000);
  let sent = 0;
  for (let closes = 0; !closes; ) {
    closes = app.mainstay.broadcast(large).disconnected;
    sent++;
    assert.equal((await quick.text()).length, 200_000);
    quick.write(ack(sent));
    await until(() => sessions[1]!.state === "attached" && app.mainstay.stats().sessions.attached === 1);
  }
  const [{ code, reason }] = await closed;
  assert.deepEqual([code, reason], [1013, "too far behind what is sent to its rooms"]);
  assert.equal(sessions[1]!.state, "attached");
  stuck.socket.terminate();
});

test("with dropOldest no member of a room is disconnected: its oldest message is dropped, and its client receives a gap", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ keep: { messages: 2 }, dropOldest: true }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [peer, welcome] = await Peer.attached(url);
  const detached = once(sessions[0]!, "detached");
  await peer.cut();
  await detached;
  for (const text of ["1", "2", "3"]) assert.equal(app.mainstay.broadcast(text).sent, 1);
  const [back] = await Peer.attached(url, { resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.deepEqual(await back.next(), gap(1, 1));
  assert.equal(await back.text(), "2");
});

test("a message that is too large for one member is skipped for that member only, and logged", async (t) => {
  const lines: string[] = [];
  const logger = { level: "warn", stream: { write: (line: string) => void lines.push(line) } };
  const { app, url } = await serve({}, () => {}, { logger });
  t.after(() => app.close());
  await Peer.attached(url, { maxMessage: 1001 });
  const [other] = await Peer.attached(url);
  assert.deepEqual(app.mainstay.broadcast("x".repeat(1002)), { sent: 1, skipped: 1, disconnected: 0 });
  assert.equal((await other.text()).length, 1002);
  assert.equal(lines.filter((line) => line.includes("a client did not get a message of its room")).length, 1);
});

test("volatile messages to a room reach the attached members", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => void (sessions.push(session), session.join("a")));
  t.after(() => app.close());
  const [near] = await Peer.attached(url);
  const [away] = await Peer.attached(url);
  const detached = once(sessions[1]!, "detached");
  await away.cut();
  await detached;
  assert.equal(app.mainstay.to("a").sendVolatile("now"), 1);
  assert.deepEqual(await near.next(), volatile("now"));
});

test("presence listeners are called once for each begin, loss, return and end, and a failing listener affects no session", async (t) => {
  const lines: string[] = [];
  const logger = { level: "error", stream: { write: (line: string) => void lines.push(line) } };
  const events: unknown[] = [];
  const { app, url } = await serve({ resumeWindowMs: 60_000 }, (session) => void events.push(["handler", [...session.rooms]]), { logger });
  t.after(() => app.close());
  const { mainstay } = app;
  mainstay.onSession(() => assert.fail("a listener's bug"));
  mainstay.onSession(async () => assert.fail("an asynchronous listener's bug"));
  const remove = mainstay.onSession(() => void events.push("removed"));
  remove();
  mainstay.onSession((session) => {
    events.push(["session", session.mode]);
    session.join("everybody");
  });
  mainstay.onDetached((session, { code }) => void events.push(["detached", code, session.state]));
  mainstay.onResumed((session, epoch) => void events.push(["resumed", epoch, session.state]));
  mainstay.onClosed((session, { cause }) => void events.push(["closed", cause, [...session.rooms]]));
  const [peer, welcome] = await Peer.attached(url);
  await peer.cut();
  await until(() => events.length === 3);
  const [back] = await Peer.attached(url, { resume: resumeAt(welcome.token, 0, 0, 1) });
  back.write(end(1000, "", 0, 0));
  await back.closed;
  const plain = await new Peer(url, [], true).opened();
  await until(() => events.length === 7);
  await plain.cut();
  await until(() => events.length === 8);
  assert.deepEqual(events, [
    ["session", "session"],
    ["handler", ["everybody"]],
    ["detached", 1006, "parked"],
    ["resumed", 2, "attached"],
    ["closed", "ended", []],
    ["session", "plain"],
    ["handler", ["everybody"]],
    ["closed", "lost", []],
  ]);
  assert.equal(lines.filter((line) => line.includes("a listener of session failed")).length, 4);
  assert.throws(() => mainstay.onClosed(undefined as never), /a listener is a function/);
});

test("metrics count what happened without work per message, and are readable by Prometheus", async (t) => {
  const authenticate = (credentials: Buffer | undefined) => (String(credentials) === "no" ? null : "");
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { authenticate });
  app.get("/", { websocket: true }, (session) => {
    session.join("all");
    session.on("message", (data) => session.send(data));
  });
  app.get("/metrics", async () => app.mainstay.metrics());
  const address = await app.listen({ port: 0, host: "127.0.0.1" });
  const url = address.replace("http", "ws");
  const [peer, welcome] = await Peer.attached(url);
  peer.write(ack(0), "one", "two");
  for (const text of ["one", "two"]) assert.equal(await peer.text(), text);
  await peer.cut();
  await until(() => app.mainstay.stats().sessions.parked === 1);
  const kept = app.mainstay.stats().queueBytes;
  assert.equal(kept, 6);
  await Peer.attached(url, { resume: resumeAt(welcome.token, 2, 2, 1) });
  const ended = await Peer.attached(url);
  ended[0].write("three", end(1000, "", 0, 0));
  await ended[0].closed;
  await (await new Peer(url, [], true).opened()).cut();
  const refused = await new Peer(url).opened();
  refused.write(hello({ credentials: "no" }));
  await refused.closed;
  const garbage = await new Peer(url).opened();
  garbage.write("no HELLO");
  await garbage.closed;
  const [dropper] = await Peer.attached(url);
  dropper.write(gap(1, 2), "after a gap");
  assert.equal(await dropper.text(), "after a gap");
  dropper.write(end(1000, "", 0, 0));
  await dropper.closed;
  const wrong = await new Peer(url, [], true).opened();
  // A frame with a reserved bit.
  (wrong.socket as any)._socket.write(Buffer.from([0xf1, 0x80, 0, 0, 0, 0]));
  await wrong.closed;
  await until(() => app.mainstay.stats().connections === 1 && app.mainstay.sessions.size === 1);
  const stats = app.mainstay.stats();
  assert.deepEqual(stats.attaches, { new: 3, resumed: 1, lost: 0, refused: 1 });
  assert.deepEqual([stats.gaps, stats.protocolErrors], [{ session: 0, client: 1 }, { websocket: 1, session: 1 }]);
  assert.deepEqual(stats.messages, { in: 4, out: 4 });
  assert.deepEqual([stats.opened, stats.openingsFailed, stats.refused.credentials, stats.rooms], [8, 2, 1, 1]);

  const response = await app.inject("/metrics");
  const text = response.body;
  assert.match(response.headers["content-type"] as string, /^text\/plain/);
  assert.match(text, /^mainstay_sessions 1$/m);
  assert.match(text, /^mainstay_sessions_by_state\{state="attached"\} 1$/m);
  assert.match(text, /^mainstay_attaches_total\{outcome="resumed"\} 1$/m);
  for (const line of text.trimEnd().split("\n")) {
    assert.match(line, /^# (HELP|TYPE) mainstay_[a-z_]+ |^mainstay_[a-z_]+(\{[a-z]+="[a-z_]+"\})? \d+$/);
  }
  // A name that the gateway has too has the same meaning here. The other names are the plugin's own.
  const gateway = readFileSync(new URL("../../../docs/METRICS.md", import.meta.url), "utf8");
  const own = ["mainstay_connections_passed_on_total", "mainstay_rooms", "mainstay_room_messages_not_sent_total"];
  for (const [, name] of text.matchAll(/^# TYPE (\S+)/gm)) assert.ok(own.includes(name!) || gateway.includes(`\`${name}`), name);
});
