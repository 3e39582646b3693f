/** The backend of a gateway is lost: its sessions end with that cause, or go on with a REPLACED in the stream. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { MainstaySocket } from "@mainstay/client";
import { type Control, Type } from "../src/wire.js";
import { positionsOf, SessionServer, WebSocket } from "./session-server.js";
import { until } from "./support.js";

const LIMIT = { timeout: 20_000 };
const replaced = (after: number, count: number): Control => ({ type: Type.Replaced, after, count });

/** The events of a socket, in order. */
function logOf(socket: MainstaySocket): unknown[] {
  const log: unknown[] = [];
  socket.on("gap", ({ fate, dropped }) => log.push(fate ? `gap ${fate.cause}` : dropped));
  socket.on("message", ({ data }) => log.push(data));
  for (const type of ["open", "error", "close"] as const) socket.on(type, () => log.push(type));
  return log;
}

test("a lost backend is one gap with that cause, and a new session: the client joins the room again", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (connection, number) => connection.welcome(number === 2 ? { acknowledged: 1, delivered: 1, firstLost: 1, count: 0, cause: 5 } : undefined);
  server.onMessage = (connection, message) => message === "join" && connection.write("news");
  const socket = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => socket.suspend());
  socket.on("open", () => socket.send("join"));
  const log = logOf(socket);
  await until(() => log.length === 2);
  server.connections[0]!.close(1012, "the backend was lost");
  await until(() => log.length === 5);
  assert.deepEqual(log, ["open", "news", "gap replaced", "open", "news"]);
  assert.deepEqual(server.connections[1]!.received, ["join"]);
});

test("a backend that was replaced is one gap in its place among the messages, and no message of the client is lost", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onMessage = (connection) => connection.write("1", "2", replaced(2, 1), "3");
  const socket = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => socket.suspend());
  const fates: unknown[] = [];
  socket.on("gap", ({ fate }) => fates.push(fate));
  const log = logOf(socket);
  let settled: string | undefined;
  void socket.send("hello").delivered.then((outcome) => (settled = outcome));
  await until(() => log.length === 5);
  await new Promise(setImmediate);
  assert.equal(settled, undefined, "it is on its way as before");
  assert.deepEqual(log, ["open", "1", "2", "gap replaced", "3"]);
  assert.deepEqual(fates, [{ delivered: 1, unknown: 1, last: 1, resent: false, lost: undefined, cause: "replaced" }]);
  assert.deepEqual([socket.stats.gaps, socket.stats.received, socket.status], [1, 3, "attached"]);

  // A connection is lost: a REPLACED that is written again is known, and one with a later count is not.
  server.onHello = (connection) => {
    connection.resume(2, 1, 3);
    connection.write(replaced(2, 1), "3", replaced(3, 3));
  };
  server.connections[0]!.cut();
  await until(() => log.length === 6);
  server.connections[1]!.write(replaced(3, 3), "4");
  await until(() => log.length === 7);
  assert.deepEqual(log.slice(5), ["gap replaced", "4"]);
  assert.equal(settled, "delivered", "by the WELCOME");
  server.onMessage = () => {};
  socket.send("more");
  await until(() => server.connections[1]!.received.length === 1);

  // A new session counts from 1 again.
  server.onHello = (connection) => {
    connection.welcome();
    connection.write(replaced(0, 1));
  };
  server.connections[1]!.cut();
  await until(() => log.length === 10);
  assert.deepEqual(log.slice(7), ["gap unknown", "open", "gap replaced"]);
});

test("a REPLACED that was lost with a connection is read from the next one, in its place", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  const socket = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => socket.suspend());
  const log = logOf(socket);
  await until(() => server.connections.length === 1);
  server.connections[0]!.write("1");
  await until(() => log.length === 2);
  server.onHello = (connection) => {
    connection.resume(2, 0, connection.hello!.resume!.acknowledged + 1);
    connection.write(replaced(1, 1), "2");
  };
  server.connections[0]!.cut();
  await until(() => log.length === 4);
  assert.deepEqual(log, ["open", "1", "gap replaced", "2"]);
});

test("an application that only sends gets the gap too, and one that reads messages one at a time gets it in its place", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  const sender = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => sender.suspend());
  let gaps = 0;
  sender.on("gap", () => gaps++);
  await until(() => server.connections.length === 1);
  server.connections[0]!.write(replaced(0, 1));
  await until(() => gaps === 1);

  const reader = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => reader.suspend());
  const log: unknown[] = [];
  reader.on("gap", ({ fate }) => log.push(fate?.cause));
  await until(() => server.connections.length === 2);
  server.connections[1]!.write("1", replaced(1, 1), replaced(1, 2), "2");
  for await (const message of reader) if (log.push(message) > 2) break;
  assert.deepEqual(log, ["1", "replaced", "2"], "marks that meet are one");
});

test("a library's socket ends where the backend was replaced: the library begins again by itself", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  const socket = new MainstaySocket(server.url, [], { WebSocket, closeOnGap: true });
  const log = logOf(socket);
  await until(() => server.connections.length === 1);
  server.connections[0]!.write("1", replaced(1, 1), "2");
  await until(() => socket.readyState === 3);
  assert.deepEqual(log, ["open", "1", "gap replaced", "close"]);
});

test("a REPLACED after another message than it states ends the session, as positions differ", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  const socket = new MainstaySocket(server.url, [], { WebSocket });
  const log = logOf(socket);
  await until(() => server.connections.length === 1);
  server.connections[0]!.write("1", replaced(0, 1));
  await until(() => socket.readyState === 3);
  assert.deepEqual(log, ["open", "1", "error", "close"]);
});

test("a REPLACED without a count is a protocol error, and the session goes on", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (connection, number) => (number === 1 ? connection.welcome() : connection.resume(number, 0, 1));
  const socket = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => socket.suspend());
  const log = logOf(socket);
  await until(() => server.connections.length === 1);
  server.connections[0]!.write(replaced(0, 0));
  await until(() => server.connections.length === 2);
  assert.deepEqual([log, positionsOf(server.connections[1]!)], [["open", "error"], [0, 0, 1]]);
});
