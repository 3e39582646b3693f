/** The test kit as npm carries it, used as in an application's tests. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { MainstaySocket, type SocketEvents } from "@mainstay/client";
import { TestServer, textOf } from "@mainstay/client/testing";
import { until } from "./support.js";

const LIMIT = { timeout: 20_000 };

function open() {
  const server = new TestServer();
  const socket = new MainstaySocket("ws://test", [], { WebSocket: server.WebSocket, credentials: "token" });
  const received: string[] = [];
  const gaps: SocketEvents["gap"][] = [];
  socket.onmessage = ({ data }) => received.push(data);
  socket.on("gap", (event) => gaps.push(event));
  return { server, socket, received, gaps };
}

test("messages of both ends arrive, and are acknowledged", LIMIT, async () => {
  const { server, socket, received } = open();
  const sent = socket.send("hello");
  const session = await server.session();
  assert.equal(await session.next(), "hello");
  assert.equal(await sent.delivered, "delivered");
  session.deliver("welcome");
  await until(() => received.length === 1);
  assert.deepEqual([received, socket.mode, textOf(session.credentials!)], [["welcome"], "session", "token"]);
  socket.send(Uint8Array.of(1, 2));
  assert.deepEqual(await session.next(), Uint8Array.of(1, 2));
  socket.sendVolatile("typing");
  await until(() => session.volatiles.length === 1);
  socket.close();
});

test("a detached session loses nothing and is resumed when the test resumes it", LIMIT, async () => {
  const { server, socket, received, gaps } = open();
  const session = await server.session();
  for (let round = 0; round < 3; round++) {
    session.detach();
    await until(() => socket.status !== "attached");
    assert.deepEqual([session.isAttached, socket.readyState], [false, 1]);
    const sent = socket.send(`from the client ${round}`);
    session.deliver(`from the server ${round}`);
    await session.resume();
    assert.equal(await session.next(), `from the client ${round}`);
    assert.equal(await sent.delivered, "delivered");
    await until(() => received.length === round + 1);
  }
  assert.deepEqual([received.length, gaps.length, socket.stats.connections, server.sessions.length], [3, 0, 4, 1]);
  socket.close();
});

test("a session that expires is one gap with what is lost, and the client begins another", LIMIT, async () => {
  const { server, socket, gaps } = open();
  const first = await server.session();
  assert.equal(await socket.send("received").delivered, "delivered");
  first.detach();
  await until(() => socket.status !== "attached");
  const late = socket.send("never written");
  first.deliver("lost");
  first.expire();
  const second = await server.session();
  assert.equal(await second.next(), "never written", "it was not delivered, and is sent again");
  assert.equal(await late.delivered, "delivered");
  assert.deepEqual(gaps.map(({ fate }) => [fate!.delivered, fate!.cause, fate!.lost]), [[1, "expired", { first: 1, count: 1 }]]);
  await assert.rejects(first.resume(), /over/);
  socket.close();
});

test("either end ends a session in order", LIMIT, async () => {
  const { server, socket } = open();
  const session = await server.session();
  socket.send("last words");
  socket.close(4001, "bye");
  const closed = await new Promise<SocketEvents["close"]>((resolve) => socket.on("close", resolve));
  assert.deepEqual([closed.code, closed.wasClean, session.ended, session.waiting], [4001, true, { code: 4001, reason: "bye" }, ["last words"]]);

  const other = open();
  const ending = await other.server.session();
  ending.deliver("before the end");
  ending.end(4500, "idle");
  const end = await new Promise<SocketEvents["close"]>((resolve) => other.socket.on("close", resolve));
  assert.deepEqual([end.code, end.reason, other.received], [4500, "idle", ["before the end"]]);
  await assert.rejects(ending.next(), /4500 idle/);
});

test("messages that a session delivers to a client that reads none are bounded", LIMIT, async () => {
  const { server, socket } = open();
  const session = await server.session();
  session.detach();
  assert.throws(() => {
    for (let i = 0; i < 2000; i++) session.deliver("x");
  }, RangeError);
  socket.close();
});
