/** Messages that an application sends in the handlers of `open`, a login, go before those that waited and those sent again. */

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

/** The server received and delivered no message of the session. */
const NOTHING: Account = { acknowledged: 0, delivered: 0, firstLost: 1, count: 0, cause: 5 };
const LIMIT = { timeout: 20_000 };

function open(t: TestContext, url: string, options: Options = {}): MainstaySocket {
  const socket = new MainstaySocket(url, [], { WebSocket, ...options });
  // No test here is about waiting.
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
  test(`messages that ${form} sends go before those that waited, and before those that a lost session did not deliver`, LIMIT, async (t) => {
    const server = await SessionServer.open(t);
    server.onHello = (connection, number) => connection.welcome(number === 2 ? NOTHING : undefined);
    server.onMessage = (connection) => server.connections.length === 1 ? connection.received.length === 4 && connection.close(1012) : connection.acknowledge();
    const socket = open(t, server.url);
    const logins: Promise<Outcome>[] = [];
    listen(socket, () => ["login", "subscribe"].forEach((text) => logins.push(socket.send(text).delivered)));
    const orders = ["one", "two"].map((text) => socket.send(text).delivered);
    assert.deepEqual(await Promise.all(orders), ["delivered", "delivered"]);
    const [first, second] = server.connections;
    assert.deepEqual(first!.received, ["login", "subscribe", "one", "two"]);
    // A login that was not delivered is sent again like every other message.
    assert.deepEqual(second!.received, ["login", "subscribe", "login", "subscribe", "one", "two"]);
    assert.deepEqual(await Promise.all(logins), ["delivered", "delivered", "delivered", "delivered"]);
    assert.deepEqual([socket.stats.sent, socket.stats.acknowledged, socket.bufferedAmount], [6, 6, 0]);
  });
}

test("each message of a lost session has a fate, and a delivered message is not sent again", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  // Four messages: two acknowledged, one more delivered.
  server.onHello = (connection, number) => connection.welcome(number === 2 ? { acknowledged: 2, delivered: 3, firstLost: 1, count: 0, cause: 5 } : undefined);
  server.onMessage = (connection, message) => (message === "4" && server.connections.length === 1 ? connection.cut() : server.connections.length === 2 && connection.acknowledge());
  const socket = open(t, server.url);
  const fates: unknown[] = [];
  socket.on("gap", ({ fate }) => fates.push(fate));
  socket.on("open", () => socket.send("login"));
  const sent = ["2", "3", "4"].map((text) => socket.send(text).delivered);
  assert.deepEqual(await Promise.all(sent), ["delivered", "unknown", "delivered"]);
  assert.deepEqual(server.connections.map(({ received }) => received), [["login", "2", "3", "4"], ["login", "4"]]);
  assert.deepEqual(fates, [{ delivered: 2, unknown: 3, last: 4, resent: true, lost: undefined, cause: "replaced" }]);
});

test("messages sent between a gap and the next open follow those that are sent again, in order", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  // A key that is refused: the gap comes with the refusal, a connection before the open.
  server.onHello = (connection, number) => (number === 1 ? connection.write({ type: Type.Refuse, code: 4411, temporary: false, delay: { earliestMs: 0, latestMs: 0 }, account: { acknowledged: 0, delivered: 0, firstLost: 1, count: 0, cause: 1 } }) : number > 2 && connection.welcome());
  server.onMessage = (connection) => connection.acknowledge();
  const socket = open(t, server.url);
  const events: string[] = [];
  for (const type of ["gap", "open"] as const) socket.on(type, () => events.push(type));
  socket.on("open", () => socket.send("login"));
  socket.send("1");
  await until(() => server.connections.length === 2);
  socket.send("2");
  server.connections[1]!.cut();
  const last = socket.send("3");
  assert.equal(await last.delivered, "delivered");
  assert.deepEqual([server.connections[2]!.received, events], [["login", "1", "2", "3"], ["gap", "open"]]);
});

test("a session that goes on has no open: waiting messages leave at once", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (connection, number) => (number === 1 ? connection.welcome() : connection.resume(number, 1, 1));
  const socket = open(t, server.url);
  socket.on("open", () => socket.send("login"));
  socket.send("1");
  await until(() => server.connections[0]?.received.length === 2);
  server.connections[0]!.cut();
  socket.send("2");
  await until(() => server.connections[1]?.received.length === 2);
  assert.deepEqual(server.connections[1]!.received, ["1", "2"]);
});

test("a full queue leaves room for the messages sent first, and messages that wait for room come last", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onMessage = (connection) => connection.acknowledge();
  const socket = open(t, server.url, { keep: { messages: 2, bytes: 1000 }, whenFull: "wait" });
  socket.on("open", () => ["login", "subscribe"].forEach((text) => socket.send(text)));
  const sent = ["1", "2", "3", "4"].map((text) => socket.send(text).delivered);
  assert.deepEqual(await Promise.all(sent), Array(4).fill("delivered"));
  assert.deepEqual(server.connections[0]!.received, ["login", "subscribe", "1", "2", "3", "4"]);

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
  await until(() => server.connections[1]?.received.length === 4);
  assert.deepEqual(server.connections[1]!.received, ["login 1", "login 2", "1", "2"]);
  assert.ok(thrown.length === 1 && thrown[0] instanceof QueueFullError, "the buffer is bounded all the same");
});

test("a Blob among the messages sent first keeps its place among them, after those that waited", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  const socket = open(t, server.url);
  socket.on("open", () => ["login", new Blob(["1234"]), "after"].forEach((message) => socket.send(message)));
  socket.send("waited");
  await until(() => server.connections[0]?.received.length === 4);
  assert.deepEqual(server.connections[0]!.received, ["login", "waited", 4, "after"]);
});

test("messages that wait when a socket is closed leave in order all the same, after those that open sends", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onMessage = (connection) => connection.acknowledge();
  const socket = open(t, server.url);
  socket.on("open", () => {
    socket.send("login");
    socket.close();
    socket.send("too late");
  });
  const { delivered } = socket.send("1");
  assert.equal(await delivered, "delivered");
  assert.deepEqual(server.connections[0]!.received, ["login", "1"]);
});

test("a handler of open that leaves the connection loses nothing", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (connection, number) => (number === 1 ? connection.welcome() : connection.resume(number, 0, 1));
  const socket = open(t, server.url);
  socket.on("open", () => {
    socket.suspend();
    socket.send("login");
    socket.reconnect();
  });
  socket.send("1");
  await until(() => server.connections.at(-1)?.received.length === 2);
  assert.deepEqual(server.connections.at(-1)!.received.toSorted(), ["1", "login"]);
});

// ---- plain servers --------------------------------------------------------------------------------

/** Counts its connections, and keeps the messages of each. */
async function plain(t: TestContext): Promise<{ url: string; received: string[][]; cut(): void }> {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  const received: string[][] = [];
  server.on("connection", (socket) => {
    const mine: string[] = [];
    received.push(mine);
    socket.on("message", (data) => mine.push(String(data)));
  });
  await once(server, "listening");
  const cut = () => server.clients.forEach((client) => client.terminate());
  t.after(() => (cut(), server.close()));
  return { url: `ws://127.0.0.1:${(server.address() as AddressInfo).port}`, received, cut };
}

for (const [name, Socket] of [["@mainstay/client", MainstaySocket], ["@mainstay/client/plain", PlainSocket]] as const) {
  test(`messages that wait for a plain server go after those that open sends, on every connection: ${name}`, LIMIT, async (t) => {
    const server = await plain(t);
    const socket = new Socket(server.url, [], { WebSocket });
    t.after(() => socket.close());
    socket.on("open", () => ["login", "subscribe"].forEach((text) => socket.send(text)));
    for (const text of ["1", "2"]) socket.send(text);
    await until(() => server.received[0]?.length === 4);
    assert.equal(socket.bufferedAmount, 0);
    server.cut();
    await until(() => socket.status === "waiting");
    for (const text of ["3", "4"]) socket.send(text);
    assert.equal(socket.bufferedAmount, 2);
    socket.reconnect();
    await until(() => server.received[1]?.length === 4);
    assert.deepEqual(server.received, [["login", "subscribe", "1", "2"], ["login", "subscribe", "3", "4"]]);
  });

  test(`a handler of open that closes sends its messages, and those that waited: ${name}`, LIMIT, async (t) => {
    const server = await plain(t);
    const socket = new Socket(server.url, [], { WebSocket });
    socket.onopen = () => {
      socket.send("login");
      socket.close();
    };
    socket.send("1");
    await new Promise((resolve) => socket.on("close", resolve));
    await until(() => server.received[0]?.length === 2);
    assert.deepEqual(server.received, [["login", "1"]]);
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
    await until(() => server.received[1]?.length === 1);
    assert.deepEqual(server.received[1], ["kept"]);
  });
}

test("towards a plain server a message sent first is unknown at once, and a waiting message when it is written", LIMIT, async (t) => {
  const server = await plain(t);
  const socket = open(t, server.url);
  const outcomes: string[] = [];
  const send = (text: string) => void socket.send(text).delivered.then((outcome) => outcomes.push(`${text} ${outcome}`));
  socket.on("open", () => send("login"));
  send("1");
  await until(() => outcomes.length === 2);
  assert.deepEqual(outcomes, ["login unknown", "1 unknown"]);
});
