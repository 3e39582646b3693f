/** The entry that a page leaves in `sessionStorage`, and how the next page uses it. Real pages are in `clients/proof`. */

import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { MainstaySocket } from "@mainstay/client";
import { sessionStorageStore } from "@mainstay/client/reload";
import { Type } from "../src/wire.js";
import { positionsOf, SessionServer, WebSocket } from "./session-server.js";
import { until } from "./support.js";

const LIMIT = { timeout: 20_000 };

/** The globals of a page; `leave` fires the events of a page that goes. */
function page(t: TestContext): { leave(): void } {
  const stored = new Map<string, string>();
  const window = new EventTarget();
  const globals = {
    document: new EventTarget(),
    sessionStorage: {
      getItem: (key: string) => stored.get(key) ?? null,
      setItem: (key: string, value: string) => stored.set(key, value),
      removeItem: (key: string) => stored.delete(key),
    },
    addEventListener: window.addEventListener.bind(window),
  };
  for (const [name, value] of Object.entries(globals)) Object.defineProperty(globalThis, name, { value, configurable: true });
  t.after(() => Object.keys(globals).forEach((name) => delete (globalThis as any)[name]));
  return { leave: () => window.dispatchEvent(new Event("pagehide")) };
}

for (const isKnown of [true, false]) {
  test(`messages that a page left behind are ${isKnown ? "sent before" : "sent again after"} those that the next one sends first, if its session ${isKnown ? "goes on" : "is lost"}`, LIMIT, async (t) => {
    const server = await SessionServer.open(t);
    const { leave } = page(t);
    const socket = new MainstaySocket(server.url, [], { WebSocket, persist: sessionStorageStore() });
    await until(() => socket.status === "attached");
    for (const text of ["1", "2", "3"]) socket.send(text);
    await until(() => server.connections[0]?.received.length === 3);
    server.connections[0]!.write({ type: Type.Ack, acknowledged: 1 });
    await until(() => socket.stats.acknowledged === 1);
    leave();
    assert.equal(socket.status, "suspended");

    server.onHello = (connection) => (isKnown ? connection.resume(2, 1, 1) : connection.welcome({ acknowledged: 2, delivered: 2, firstLost: 1, count: 0, cause: 1 }));
    const next = new MainstaySocket(server.url, [], { WebSocket, persist: sessionStorageStore() });
    t.after(() => next.suspend());
    const opened: boolean[] = [];
    next.on("session", ({ resumed }) => opened.push(resumed));
    next.on("open", () => next.send("login"));
    next.send("4");
    const count = isKnown ? 4 : 3;
    await until(() => server.connections[1]?.received.length === count);
    assert.deepEqual(server.connections[1]!.received, isKnown ? ["2", "3", "login", "4"] : ["login", "3", "4"]);
    assert.deepEqual([positionsOf(server.connections[1]!), opened], [[0, 3, 2], [isKnown]]);
  });
}

test("two sockets to one URL each go on with their own session after a reload, by subprotocol and in the order in which they are made", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  const { leave } = page(t);
  const open = (protocols: string[] = []) => {
    const socket = new MainstaySocket(server.url, protocols, { WebSocket, persist: sessionStorageStore() });
    t.after(() => socket.suspend());
    return socket;
  };
  const firsts = [open(), open(), open()];
  for (const [index, socket] of firsts.entries()) {
    await until(() => socket.status === "attached" && server.connections.length === 3);
    socket.send(`of ${index}`);
  }
  await until(() => server.connections.every(({ received }) => received.length === 1));
  const tokens = (connections: typeof server.connections) => connections.map(({ received, hello }) => [received[0], hello!.resume?.token]);
  const opened = tokens(server.connections).map(([of], index) => [of, new Uint8Array(24).fill(index + 1)]);
  leave();
  server.onHello = (connection) => connection.resume(2, 0, 1);
  const second = [open(), open(), open()];
  await until(() => server.connections.length === 6 && second.every(({ status }) => status === "attached"));
  const again = server.connections.slice(3);
  await until(() => again.every(({ received }) => received.length === 1));
  const sorted = (all: unknown[][]) => all.map((each) => JSON.stringify(each)).sort();
  assert.deepEqual(sorted(tokens(again)), sorted(opened), "each token comes with the message of its session");
  for (const [index, socket] of second.entries()) assert.equal(socket.stats.sent, firsts[index]!.stats.sent);
  await until(() => again.every(({ received }) => received.length === 1));
});

test("a page that may not store anything has a socket all the same, and starts a session at each load", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  page(t);
  Object.defineProperty(globalThis, "sessionStorage", {
    configurable: true,
    get() {
      throw new DOMException("The document is sandboxed", "SecurityError");
    },
  });
  for (const isThere of [true, false]) {
    // A document made by a server has no `sessionStorage`.
    if (!isThere) for (const name of ["sessionStorage", "document"]) delete (globalThis as any)[name];
    const socket = new MainstaySocket(server.url, [], { WebSocket, persist: sessionStorageStore() });
    t.after(() => socket.suspend());
    await until(() => socket.status === "attached");
  }
  assert.equal(server.connections.length, 2);
});
