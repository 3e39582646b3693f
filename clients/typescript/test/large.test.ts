/** A message that is larger than the server accepts is refused, before it costs a connection. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { MainstaySocket, MessageTooLargeError, type Sendable } from "@mainstay/client";
import { type Account } from "../src/wire.js";
import { SessionServer, WebSocket } from "./session-server.js";
import { until } from "./support.js";

const LIMIT = { timeout: 20_000 };

/** A message of so many payload bytes, in each form. */
const forms: [string, (size: number) => Sendable][] = [
  ["text", (size) => "x".repeat(size)],
  ["text of two bytes a letter", (size) => "é".repeat(size >> 1) + "x".repeat(size & 1)],
  ["bytes", (size) => new Uint8Array(size)],
  ["a Blob", (size) => new Blob([new Uint8Array(size)])],
];

for (const [form, make] of forms) {
  test(`${form} of the server's limit is sent, one byte more is refused at once`, LIMIT, async (t) => {
    const server = await SessionServer.open(t);
    server.onHello = (connection) => connection.welcome(undefined, 1001);
    server.onMessage = (connection) => connection.acknowledge();
    const socket = new MainstaySocket(server.url, [], { WebSocket });
    t.after(() => socket.suspend());
    await new Promise((resolve) => socket.on("open", resolve));
    const fits = socket.send(make(1001));
    assert.throws(
      () => socket.send(make(1002)),
      (error: MessageTooLargeError) => {
        assert.ok(error instanceof MessageTooLargeError && error instanceof RangeError);
        assert.deepEqual([error.name, error.size, error.limit], ["MessageTooLargeError", 1002, 1001]);
        assert.equal(error.message, "the message has 1002 bytes, the other end accepts at most 1001");
        return true;
      },
    );
    const after = socket.send("after");
    assert.deepEqual([await fits.delivered, await after.delivered], ["delivered", "delivered"]);
    assert.deepEqual([server.connections.length, server.connections[0]!.received.at(-1), server.connections[0]!.received.length], [1, "after", 2]);
  });

  test(`${form} that waited and is one byte too large is not delivered and one error, and all other messages are sent`, LIMIT, async (t) => {
    const server = await SessionServer.open(t);
    server.onHello = (connection) => connection.welcome(undefined, 1001);
    server.onMessage = (connection) => connection.acknowledge();
    const socket = new MainstaySocket(server.url, [], { WebSocket });
    t.after(() => socket.suspend());
    const errors: unknown[] = [];
    socket.on("error", ({ error }) => errors.push((error as MessageTooLargeError).size));
    const sent = ["1", make(1001), make(1002), "2", make(2000), "3"].map((message) => socket.send(message).delivered);
    const expected = ["delivered", "delivered", "not-delivered", "delivered", "not-delivered", "delivered"];
    assert.deepEqual(await Promise.all(sent), expected);
    assert.deepEqual([errors, server.connections.length, server.connections[0]!.received.length], [[1002, 2000], 1, 4]);
    assert.deepEqual([socket.stats.sent, socket.bufferedAmount], [4, 0]);
  });
}

test("a message that is sent again and is larger than the next server accepts is not delivered; messages of open go first", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  const lost: Account = { acknowledged: 0, delivered: 0, firstLost: 1, count: 0, cause: 3 };
  server.onHello = (connection, number) => (number === 1 ? connection.welcome() : connection.welcome(lost, 100));
  server.onMessage = (connection) => (server.connections.length > 1 ? connection.acknowledge() : connection.received.length === 3 && connection.cut());
  const socket = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => socket.suspend());
  let logins = 0;
  socket.on("open", () => logins++ && socket.send("login"));
  const sent = ["1", "x".repeat(101), "3"].map((message) => socket.send(message).delivered);
  assert.deepEqual(await Promise.all(sent), ["delivered", "not-delivered", "delivered"]);
  assert.deepEqual(server.connections[1]!.received, ["login", "1", "3"]);
});

test("a limit holds while the client is away, a server that announces none accepts all, and volatile messages have it too", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (connection, number) => connection.welcome(undefined, number === 1 ? 100 : undefined);
  const socket = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => socket.suspend());
  await until(() => socket.status === "attached");
  assert.throws(() => socket.sendVolatile("x".repeat(101)), MessageTooLargeError);
  socket.sendVolatile("x".repeat(100));
  socket.suspend();
  assert.throws(() => socket.send("x".repeat(101)), MessageTooLargeError);
  socket.reconnect();
  await until(() => socket.status === "attached");
  socket.send("x".repeat(101));
  await until(() => server.connections[1]?.received.length === 1);
});

test("behind messages that wait for room, a message that is too large is refused once the limit is known", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (connection) => connection.welcome(undefined, 100);
  server.onMessage = (connection) => connection.acknowledge();
  const socket = new MainstaySocket(server.url, [], { WebSocket, keep: { messages: 1, bytes: 1000 }, whenFull: "wait" });
  t.after(() => socket.suspend());
  const sent = ["1", "x".repeat(101), "2"].map((message) => socket.send(message));
  assert.deepEqual(await Promise.all(sent.map(({ delivered }) => delivered)), ["delivered", "not-delivered", "delivered"]);
  await sent[1]!.accepted;
  assert.deepEqual(server.connections[0]!.received, ["1", "2"]);
});
