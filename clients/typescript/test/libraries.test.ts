/**
 * Libraries that take a `WebSocket` class, given this one and otherwise as they come.
 *
 * All want `closeOnGap`: they recover by themselves, from a `close` event, and must not go on over a gap as if nothing
 * had happened. They call the class with url and protocols only, so the tests pass a subclass with fixed options.
 * Towards a plain server it ends as any WebSocket does, and they connect again; towards one that speaks `mainstay.v1`
 * they never learn that a connection was lost.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";
import { MainstaySocket } from "@mainstay/client";
// @ts-expect-error It comes without types.
import WebSocketJSONStream from "@teamwork/websocket-json-stream";
import { GraphQLInt, GraphQLObjectType, GraphQLSchema } from "graphql";
import { createClient } from "graphql-ws";
import { useServer } from "graphql-ws/use/ws";
import ShareDB from "sharedb";
import { Connection } from "sharedb/lib/client/index.js";
import { WebSocket, WebSocketServer } from "ws";
import { WebsocketProvider } from "y-websocket";
import * as Y from "yjs";
import type { Cable } from "./cable.js";
import { cableTo, until } from "./support.js";
import { shareDocument } from "./yjs-server.js";

const LIMIT = { timeout: 30_000 };

/** The class that a library gets. */
class Socket extends MainstaySocket {
  static opened: Socket[] = [];

  constructor(url: string | URL, protocols?: string | string[]) {
    // A browser's page omits `WebSocket`: it has one of its own.
    super(url, protocols, { closeOnGap: true, WebSocket });
    Socket.opened.push(this);
  }
}

const both = [
  { peer: "a plain server", isFronted: false },
  { peer: "a gateway", isFronted: true },
];

// ---- Yjs ------------------------------------------------------------------------------------------

for (const { peer, isFronted } of both) {
  test(`Yjs documents converge over cuts: y-websocket with WebSocketPolyfill, ${peer}`, LIMIT, async (t) => {
    const server = await serve(t, shareDocument(new Y.Doc()));
    const { cable } = await wire(t, server, isFronted);
    const [here, there] = [new Y.Doc(), new Y.Doc()];
    // Both are in this process: without `disableBc` they would find one another without any server.
    const near = new WebsocketProvider(cable.url, "room", here, { WebSocketPolyfill: Socket as any, disableBc: true });
    const far = new WebsocketProvider(addressOf(server), "room", there, { WebSocketPolyfill: WebSocket as any, disableBc: true });
    after(t, () => [near, far].forEach(leave));
    await until(() => near.synced && far.synced);
    const statuses: string[] = [];
    near.on("status", ({ status }) => statuses.push(status));

    await cutInTheMiddle(cable, (n) => {
      here.getArray("numbers").push([`here ${n}`]);
      there.getArray("numbers").push([`there ${n}`]);
    });
    const numbers = (doc: Y.Doc) => doc.getArray("numbers").toArray() as string[];
    await until(() => numbers(here).length === 200 && numbers(there).length === 200);

    assert.deepEqual(numbers(here), numbers(there));
    assert.equal(new Set(numbers(here)).size, 200);
    assert.equal(Socket.opened.length > 1, !isFronted);
    assert.equal(statuses.includes("disconnected"), !isFronted);
  });
}

test("where a session is lost, its socket ends with `close` and no second `open`, and y-websocket goes on with another", LIMIT, async (t) => {
  const server = await serve(t, shareDocument(new Y.Doc()));
  const { cable, replace } = await wire(t, server, true);
  const doc = new Y.Doc();
  const provider = new WebsocketProvider(cable.url, "room", doc, { WebSocketPolyfill: Socket as any, disableBc: true });
  after(t, () => leave(provider));
  await until(() => provider.synced);
  const events: string[] = [];
  for (const type of ["open", "close", "message"]) Socket.opened[0]!.addEventListener(type, (event: any) => events.push(`${type} ${event.code ?? ""}`));
  await replace();
  doc.getArray("numbers").push([1]);
  await until(() => Socket.opened.length === 2 && provider.synced);
  assert.deepEqual(events, ["close 1006"]);
});

function leave(provider: WebsocketProvider): void {
  provider.destroy();
  // The document owns the timer.
  provider.doc.destroy();
}

test("a plain server that is silent for too long ends a socket with 1006: the client's own 4408 would look like the server's refusal", LIMIT, async (t) => {
  const server = await serve(t, () => {});
  const socket = new MainstaySocket(addressOf(server), [], { closeOnGap: true, silenceLimitMs: 50, WebSocket });
  const code = await new Promise((done) => socket.on("close", ({ code }) => done(code)));
  assert.equal(code, 1006);
  assert.equal(socket.stats.connections, 1);
});

// ---- GraphQL ----------------------------------------------------------------------------------------

test("a GraphQL subscription over a gateway yields every value once and in order, over cuts: graphql-ws with webSocketImpl", LIMIT, async (t) => {
  const { cable, count } = await graphql(t, true);
  assert.deepEqual(await count((value) => value % 30 === 0 && value < 90 && cable.cut()), oneTo(100));
  assert.equal(Socket.opened.length, 1);
  assert.equal(Socket.opened[0]!.stats.connections, 3);
});

test("a GraphQL subscription over a plain server begins again after a cut, as with any WebSocket", LIMIT, async (t) => {
  const { cable, count } = await graphql(t, false);
  const values = await count((_, n) => n === 30 && cable.cut());
  const restart = values.lastIndexOf(1);
  assert.ok(restart >= 30);
  assert.deepEqual(values.slice(restart), oneTo(100));
  assert.equal(Socket.opened.length, 2);
});

test("a GraphQL subscription that is ended while the cable is cut ends on the server too", LIMIT, async (t) => {
  const { cable, client, ticking } = await graphql(t, true);
  const query = "subscription { ticks }";
  const [ended, kept] = [client.iterate({ query }), client.iterate({ query })];
  await Promise.all([ended.next(), kept.next()]);
  assert.equal(ticking.size, 2);
  cable.refuse(true);
  cable.cut();
  await until(() => Socket.opened[0]!.status !== "attached");
  await ended.return!();
  cable.refuse(false);
  await until(() => ticking.size === 1);
  assert.equal(Socket.opened.length, 1);
});

for (const { peer, isFronted } of both) {
  test(`a GraphQL server's close code reaches graphql-ws: ${peer}`, LIMIT, async (t) => {
    const { client } = await graphql(t, isFronted, false);
    const error = await new Promise<any>((done) => {
      client.subscribe({ query: "subscription { count }" }, { next() {}, complete: () => done("complete"), error: done });
    });
    assert.deepEqual([error.code, error.reason], [4403, "Forbidden"]);
  });
}

async function graphql(t: TestContext, isFronted: boolean, isWelcome = true) {
  const ticking = new Set<object>();
  let seen = 0;
  const subscription = {
    // At most ten values ahead of the subscriber, so that a cut is in the middle of the work.
    async *count() {
      for (let count = 1; count <= 100; count++) {
        await until(() => count - seen <= 10);
        yield { count };
      }
    },
    async *ticks() {
      const self = {};
      ticking.add(self);
      try {
        for (let ticks = 1; ; ticks++) {
          await new Promise((done) => setTimeout(done, 5));
          yield { ticks };
        }
      } finally {
        ticking.delete(self);
      }
    },
  };
  const type = GraphQLInt;
  const schema = new GraphQLSchema({
    query: new GraphQLObjectType({ name: "Query", fields: { none: { type } } }),
    subscription: new GraphQLObjectType({
      name: "Subscription",
      fields: { count: { type, subscribe: subscription.count }, ticks: { type, subscribe: subscription.ticks } },
    }),
  });
  const server = await serve(t, () => {}, (server) => useServer({ schema, onConnect: () => isWelcome }, server));
  // A refusal is one of its close codes of 4400 to 4499, which ask a client to come back elsewhere.
  const { cable } = await wire(t, server, isFronted, isWelcome ? [] : ["--profile", "graphql-transport-ws"]);
  const client = createClient({
    url: cable.url,
    webSocketImpl: Socket,
    retryAttempts: isWelcome ? Infinity : 0,
    // Its own wait is 1.3 s and more, before each attempt; the socket waits between attempts by itself.
    retryWait: async () => {},
  });
  after(t, () => client.dispose());
  const count = (onValue: (value: number, n: number) => void) =>
    new Promise<number[]>((resolve, error) => {
      const values: number[] = [];
      const next = ({ data }: any) => {
        seen = data.count;
        onValue(seen, values.push(seen));
      };
      client.subscribe({ query: "subscription { count }" }, { next, error, complete: () => resolve(values) });
    });
  return { cable, client, ticking, count };
}

const oneTo = (last: number) => Array.from({ length: last }, (_, index) => index + 1);

// ---- ShareDB ----------------------------------------------------------------------------------------

for (const { peer, isFronted } of both) {
  test(`ShareDB applies every operation once over cuts: its Connection on a socket, ${peer}`, LIMIT, async (t) => {
    const backend = new ShareDB();
    const server = await serve(t, (socket) => {
      const stream = new WebSocketJSONStream(socket);
      stream.on("error", () => {});
      backend.listen(stream);
    });
    const { cable } = await wire(t, server, isFronted);
    const near = new Connection(new Socket(cable.url) as any);
    // ShareDB has no reconnect of its own: if its socket ends unexpectedly, the test binds it to the next.
    near.on("disconnected", ({ code }: any) => code === 1000 || (near as any).bindToSocket(new Socket(cable.url)));
    const far = new Connection(new WebSocket(addressOf(server)) as any);
    const failures: unknown[] = [];
    near.on("error", (error: unknown) => failures.push(error));
    after(t, () => [near, far].forEach((connection) => connection.close()));
    const [here, there] = [near.get("documents", "one"), far.get("documents", "one")];
    await call((done) => here.create({ sum: 0, list: [] }, done));
    await Promise.all([here, there].map((doc) => call((done) => doc.subscribe(done))));

    await cutInTheMiddle(cable, (n) => {
      for (const doc of [here, there]) doc.submitOp([{ p: ["sum"], na: 1 }, { p: ["list", 0], li: n }]);
    });
    await until(() => [here, there].every((doc) => doc.data.list.length === 200 && !doc.hasPending()));

    assert.deepEqual(here.data, there.data);
    assert.equal(here.data.sum, 200);
    assert.deepEqual(failures, []);
    assert.equal(Socket.opened.length > 1, !isFronted);
  });
}

const call = (run: (done: (error?: unknown) => void) => void) =>
  new Promise<void>((resolve, reject) => run((error) => (error ? reject(error) : resolve())));

// ---- connections ------------------------------------------------------------------------------------

/** A hundred steps of work, with the cable cut in the middle twice; the second time it stays cut for some of them. */
async function cutInTheMiddle(cable: Cable, step: (n: number) => void): Promise<void> {
  for (let n = 1; n <= 100; n++) {
    step(n);
    if (n === 30) cable.cut();
    if (n === 60) {
      await until(() => Socket.opened.at(-1)!.status === "attached");
      cable.refuse(true);
      cable.cut();
      await until(() => Socket.opened.at(-1)!.status !== "attached");
    }
    if (n === 80) cable.refuse(false);
    await new Promise(setImmediate);
  }
}

async function serve(t: TestContext, accept: (socket: WebSocket) => void, use: (server: WebSocketServer) => void = () => {}): Promise<WebSocketServer> {
  Socket.opened = [];
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
  server.on("connection", accept);
  use(server);
  await once(server, "listening");
  after(t, () => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  return server;
}

async function wire(t: TestContext, server: WebSocketServer, isFronted: boolean, options?: string[]) {
  const wired = await cableTo((server.address() as AddressInfo).port, isFronted, options);
  after(t, async () => {
    await until(() => Socket.opened.every(({ status }) => status === "ended"));
    await wired.close();
  });
  return wired;
}

/** Ends the newest first: a library whose server ends before it would begin again. */
function after(t: TestContext, end: () => unknown): void {
  const begun = ends.get(t) ?? [];
  if (!begun.length) t.after(async () => {
    for (const end of begun.reverse()) await end();
  });
  begun.push(end);
  ends.set(t, begun);
}

const ends = new WeakMap<TestContext, (() => unknown)[]>();
const addressOf = (server: WebSocketServer) => `ws://127.0.0.1:${(server.address() as AddressInfo).port}`;
