/** What an application sends from the handlers of `open`, a login, goes before what waited and what is sent again. */

import assert from "node:assert/strict";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";
import { MainstaySocket, QueueFullError, type Options, type Outcome } from "@mainstay/client";
import { MainstaySocket as PlainSocket } from "@mainstay/client/plain";
import { WebSocketServer } from "ws";
import { type Account, Type } from "../src/wire.js";
import { SessionServer, WebSocket } from "./session-server.js";
import { until } from "./support.js";

/** Nothing of it was received or handed over. */
const NOTHING: Account = { acknowledged: 0, delivered: 0, firstLost: 1, count: 0, cause: 5 };
const LIMIT = { timeout: 20_000 };

function open(t: TestContext, url: string, options: Options = {}): MainstaySocket {
  const socket = new MainstaySocket(url, [], { WebSocket, ...options });
  // None of these is about waiting.
  socket.on("status", ({ status }) => status === "waiting" && socket.reconnect());
  t.after(() => socket.suspend());
  return socket;
}

const FORMS: [string, (socket: MainstaySocket, login: () => void) => unknown][] = [
  ["onopen", (socket, login) => (socket.onopen = login)],
  ["on", (socket, login) => socket.on("open", login)],
  ["addEventListener", (socket, login) => socket.addEventListener("open", login)],
  ["on gap and on open", (socket, login) => (socket.on("gap", login), socket.on("open", () => socket.stats.gaps || login()))],
  ["session", (socket, login) => socket.on("session", ({ resumed }) => resumed || login())],
  ["status", (socket, login) => socket.on("status", ({ status }) => status === "attached" && login())],
  [
    "a promise",
    async (socket, login) => {
      const opened = () => new Promise((resolve) => socket.addEventListener("open", resolve, { once: true }));
      for (let i = 0; i < 2; i++) {
        await opened();
        login();
      }
    },
  ],
  [
    "a promise in a promise",
    async (socket, login) => {
      const opened = async () => {
        await Promise.race([new Promise((resolve) => socket.addEventListener("open", resolve, { once: true })), new Promise(() => {})]);
      };
      for (let i = 0; i < 2; i++) {
        await opened();
        login();
      }
    },
  ],
];

for (const [form, listen] of FORMS) {
  test(`what ${form} sends goes before what waited, and before what a lost session did not deliver`, LIMIT, async (t) => {
    const server = await SessionServer.open(t);
    server.onHello = (visit, number) => visit.welcome(number === 2 ? NOTHING : undefined);
    server.onMessage = (visit) => server.visits.length === 1 ? visit.heard.length === 4 && visit.close(1012) : visit.acknowledge();
    const socket = open(t, server.url);
    const logins: Promise<Outcome>[] = [];
    listen(socket, () => ["login", "subscribe"].forEach((text) => logins.push(socket.send(text).delivered)));
    const orders = ["one", "two"].map((text) => socket.send(text).delivered);
    assert.deepEqual(await Promise.all(orders), ["delivered", "delivered"]);
    const [first, second] = server.visits;
    assert.deepEqual(first!.heard, ["login", "subscribe", "one", "two"]);
    // A login that was not delivered is sent again like all else.
    assert.deepEqual(second!.heard, ["login", "subscribe", "login", "subscribe", "one", "two"]);
    assert.deepEqual(await Promise.all(logins), ["delivered", "delivered", "delivered", "delivered"]);
    assert.deepEqual([socket.stats.sent, socket.stats.acknowledged, socket.bufferedAmount], [6, 6, 0]);
  });
}

test("a lost session's messages have a fate each, and what was handed over is not sent again", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  // Two received, one more handed over, of four.
  server.onHello = (visit, number) => visit.welcome(number === 2 ? { acknowledged: 2, delivered: 3, firstLost: 1, count: 0, cause: 5 } : undefined);
  server.onMessage = (visit, message) => (message === "4" && server.visits.length === 1 ? visit.cut() : server.visits.length === 2 && visit.acknowledge());
  const socket = open(t, server.url);
  const fates: unknown[] = [];
  socket.on("gap", ({ fate }) => fates.push(fate));
  socket.on("open", () => socket.send("login"));
  const sent = ["2", "3", "4"].map((text) => socket.send(text).delivered);
  assert.deepEqual(await Promise.all(sent), ["delivered", "unknown", "delivered"]);
  assert.deepEqual(server.visits.map(({ heard }) => heard), [["login", "2", "3", "4"], ["login", "4"]]);
  assert.deepEqual(fates, [{ delivered: 2, unknown: 3, last: 4, resent: true, lost: undefined, cause: "replaced" }]);
});

test("what is sent between a gap and the next open follows what is sent again, in its order", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  // A key that is refused: the gap comes with the refusal, a connection before the open.
  server.onHello = (visit, number) => (number === 1 ? visit.write({ type: Type.Refuse, code: 4411, temporary: false, delay: { earliestMs: 0, latestMs: 0 }, account: { acknowledged: 0, delivered: 0, firstLost: 1, count: 0, cause: 1 } }) : number > 2 && visit.welcome());
  server.onMessage = (visit) => visit.acknowledge();
  const socket = open(t, server.url);
  const events: string[] = [];
  for (const type of ["gap", "open"] as const) socket.on(type, () => events.push(type));
  socket.on("open", () => socket.send("login"));
  socket.send("1");
  await until(() => server.visits.length === 2);
  socket.send("2");
  server.visits[1]!.cut();
  const last = socket.send("3");
  assert.equal(await last.delivered, "delivered");
  assert.deepEqual([server.visits[2]!.heard, events], [["login", "1", "2", "3"], ["gap", "open"]]);
});

test("a session that goes on has no open: what waited goes on at once", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (visit, number) => (number === 1 ? visit.welcome() : visit.resume(number, 1, 1));
  const socket = open(t, server.url);
  socket.on("open", () => socket.send("login"));
  socket.send("1");
  await until(() => server.visits[0]?.heard.length === 2);
  server.visits[0]!.cut();
  socket.send("2");
  await until(() => server.visits[1]?.heard.length === 2);
  assert.deepEqual(server.visits[1]!.heard, ["1", "2"]);
});

test("a full queue leaves room for what is sent first, and what waits for room comes last", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onMessage = (visit) => visit.acknowledge();
  const socket = open(t, server.url, { keep: { messages: 2, bytes: 1000 }, whenFull: "wait" });
  socket.on("open", () => ["login", "subscribe"].forEach((text) => socket.send(text)));
  const sent = ["1", "2", "3", "4"].map((text) => socket.send(text).delivered);
  assert.deepEqual(await Promise.all(sent), Array(4).fill("delivered"));
  assert.deepEqual(server.visits[0]!.heard, ["login", "subscribe", "1", "2", "3", "4"]);

  const throwing = open(t, server.url, { keep: { messages: 2, bytes: 1000 }, whenFull: "throw" });
  const thrown: unknown[] = [];
  throwing.on("open", () => {
    for (let number = 1; number <= 3; number++) {
      try {
        throwing.send(`login ${number}`);
      } catch (error) {
        thrown.push(error);
      }
    }
  });
  throwing.send("1");
  throwing.send("2");
  assert.throws(() => throwing.send("3"), QueueFullError);
  await until(() => server.visits[1]?.heard.length === 4);
  assert.deepEqual(server.visits[1]!.heard, ["login 1", "login 2", "1", "2"]);
  assert.ok(thrown.length === 1 && thrown[0] instanceof QueueFullError, "the buffer is bounded all the same");
});

test("a Blob among what is sent first keeps its place among that, behind what waited", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  const socket = open(t, server.url);
  socket.on("open", () => ["login", new Blob(["1234"]), "after"].forEach((message) => socket.send(message)));
  socket.send("waited");
  await until(() => server.visits[0]?.heard.length === 4);
  assert.deepEqual(server.visits[0]!.heard, ["login", "waited", 4, "after"]);
});

test("what waits when a socket is closed leaves in order all the same, behind what open sends", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onMessage = (visit) => visit.acknowledge();
  const socket = open(t, server.url);
  socket.on("open", () => {
    socket.send("login");
    socket.close();
    socket.send("too late");
  });
  const { delivered } = socket.send("1");
  assert.equal(await delivered, "delivered");
  assert.deepEqual(server.visits[0]!.heard, ["login", "1"]);
});

test("a handler of open that leaves the connection loses nothing", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (visit, number) => (number === 1 ? visit.welcome() : visit.resume(number, 0, 1));
  const socket = open(t, server.url);
  socket.on("open", () => {
    socket.suspend();
    socket.send("login");
    socket.reconnect();
  });
  socket.send("1");
  await until(() => server.visits.at(-1)?.heard.length === 2);
  assert.deepEqual(server.visits.at(-1)!.heard.toSorted(), ["1", "login"]);
});

// ---- plain servers --------------------------------------------------------------------------------

/** Counts its connections, and keeps what each brought. */
async function plain(t: TestContext): Promise<{ url: string; heard: string[][]; cut(): void }> {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  const heard: string[][] = [];
  server.on("connection", (socket) => {
    const mine: string[] = [];
    heard.push(mine);
    socket.on("message", (data) => mine.push(String(data)));
  });
  await once(server, "listening");
  const cut = () => server.clients.forEach((client) => client.terminate());
  t.after(() => (cut(), server.close()));
  return { url: `ws://127.0.0.1:${(server.address() as AddressInfo).port}`, heard, cut };
}

for (const [name, Socket] of [["@mainstay/client", MainstaySocket], ["@mainstay/client/plain", PlainSocket]] as const) {
  test(`what waits for a plain server goes behind what open sends, on every connection: ${name}`, LIMIT, async (t) => {
    const server = await plain(t);
    const socket = new Socket(server.url, [], { WebSocket });
    t.after(() => socket.close());
    socket.on("open", () => ["login", "subscribe"].forEach((text) => socket.send(text)));
    for (const text of ["1", "2"]) socket.send(text);
    await until(() => server.heard[0]?.length === 4);
    assert.equal(socket.bufferedAmount, 0);
    server.cut();
    await until(() => socket.status === "waiting");
    for (const text of ["3", "4"]) socket.send(text);
    assert.equal(socket.bufferedAmount, 2);
    socket.reconnect();
    await until(() => server.heard[1]?.length === 4);
    assert.deepEqual(server.heard, [["login", "subscribe", "1", "2"], ["login", "subscribe", "3", "4"]]);
  });

  test(`a handler of open that closes gets its words out, and those that waited: ${name}`, LIMIT, async (t) => {
    const server = await plain(t);
    const socket = new Socket(server.url, [], { WebSocket });
    socket.onopen = () => {
      socket.send("login");
      socket.close();
    };
    socket.send("1");
    await new Promise((resolve) => socket.on("close", resolve));
    await until(() => server.heard[0]?.length === 2);
    assert.deepEqual(server.heard, [["login", "1"]]);
  });

  test(`a handler of open that leaves a plain server sends on the next connection: ${name}`, LIMIT, async (t) => {
    const server = await plain(t);
    const socket = new Socket(server.url, [], { WebSocket });
    t.after(() => socket.close());
    let opens = 0;
    socket.on("open", () => {
      if (opens++) return;
      socket.suspend();
      socket.send("kept");
      socket.reconnect();
    });
    await until(() => server.heard[1]?.length === 1);
    assert.deepEqual(server.heard[1], ["kept"]);
  });
}

test("towards a plain server what is sent first is unknown at once, and what waited when it is written", LIMIT, async (t) => {
  const server = await plain(t);
  const socket = open(t, server.url);
  const outcomes: string[] = [];
  const send = (text: string) => void socket.send(text).delivered.then((outcome) => outcomes.push(`${text} ${outcome}`));
  socket.on("open", () => send("login"));
  send("1");
  await until(() => outcomes.length === 2);
  assert.deepEqual(outcomes, ["login unknown", "1 unknown"]);
});
