/**
 * Real libraries, `mainstay connect` and the client of the live page over two nodes of a cluster: a client comes back to the other node,
 * and the node of its session is drained. `cargo xtask cluster libraries` starts an engine and runs this.
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { createInterface } from "node:readline";
import { test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { MainstaySocket } from "@mainstay/client";
import { GraphQLInt, GraphQLObjectType, GraphQLSchema } from "graphql";
import { createClient } from "graphql-ws";
import { useServer } from "graphql-ws/use/ws";
import { WebSocket, WebSocketServer } from "ws";
import { WebsocketProvider } from "y-websocket";
import * as Y from "yjs";
import { until } from "../typescript/test/support.js";
import { shareDocument } from "../typescript/test/yjs-server.js";
import { cableTo } from "./cable.js";

const { MAINSTAY: program = "mainstay", ENGINE_URL: engine = "" } = process.env;
const LIMIT = { timeout: 90_000 };

/** One `mainstay serve`. */
class Node {
  port = 0;
  private admin = 0;
  private child;
  private exited;

  constructor(flags: string[]) {
    const fixed = ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cluster", engine, ...flags];
    this.child = spawn(program, fixed, { stdio: ["ignore", "pipe", "inherit"] });
    this.exited = once(this.child, "exit");
  }

  async ready(): Promise<this> {
    for await (const line of createInterface(this.child.stdout)) {
      this.port ||= Number(/listening on ws:\/\/127\.0\.0\.1:(\d+)/.exec(line)?.[1]) || 0;
      this.admin ||= Number(/admin on http:\/\/127\.0\.0\.1:(\d+)/.exec(line)?.[1]) || 0;
      if (this.port && this.admin) break;
    }
    this.child.stdout.resume();
    return this;
  }

  async metric(name: string): Promise<number> {
    const text = await (await fetch(`http://127.0.0.1:${this.admin}/metrics`)).text();
    return Number(text.split("\n").find((line) => line.startsWith(`mainstay_${name} `))?.split(" ")[1]);
  }

  /** SIGTERM, and its end in order. */
  async drain(): Promise<void> {
    this.child.kill("SIGTERM");
    assert.deepEqual(await this.exited, [0, null]);
  }

  kill(): void {
    this.child.kill("SIGKILL");
  }
}

/** Two nodes of one cluster that know each other, and a cable that leads to either. */
async function two(t: TestContext, name: string, flags: string[]) {
  assert.ok(engine, "ENGINE_URL is the URL of an engine: cargo xtask cluster libraries");
  const made = [0, 1].map(() => new Node(["--cluster-name", name, ...flags]));
  t.after(() => made.forEach((node) => node.kill()));
  const [first, second] = (await Promise.all(made.map((node) => node.ready()))) as [Node, Node];
  for (const node of [first, second]) while ((await node.metric('nodes{state="alive"}')) < 1) await sleep(50);
  const cable = await cableTo(first.port);
  t.after(() => cable.close());
  /** From now on new connections reach the second node. */
  const lead = () => cable.upstream(`127.0.0.1:${second.port}`);
  return { first, second, cable, lead };
}

/** A backend on a free port. */
async function backend(t: TestContext, prepare: (server: WebSocketServer) => void): Promise<string> {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  await once(server, "listening");
  prepare(server);
  t.after(() => {
    for (const client of server.clients) client.terminate();
    server.close();
  });
  return `ws://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** The class that a library gets, and all its sockets. */
function classFor(): { Socket: typeof MainstaySocket; opened: MainstaySocket[] } {
  const opened: MainstaySocket[] = [];
  class Socket extends MainstaySocket {
    constructor(url: string | URL, protocols?: string | string[]) {
      super(url, protocols, { closeOnGap: true, WebSocket: WebSocket as any });
      opened.push(this);
    }
  }
  return { Socket: Socket as any, opened };
}

test("Yjs: a session goes on at the other node without an event; a drain ends it, and y-websocket goes on with another", LIMIT, async (t) => {
  const doc = new Y.Doc();
  const upstream = await backend(t, (server) => server.on("connection", shareDocument(doc)));
  const { first, second, cable, lead } = await two(t, "yjs", ["--upstream", upstream, "--profile", "yjs"]);
  const { Socket, opened } = classFor();
  const [here, there] = [new Y.Doc(), new Y.Doc()];
  const near = new WebsocketProvider(cable.url(""), "room", here, { WebSocketPolyfill: Socket as any, disableBc: true });
  // A plain client: each loss of a connection is its own affair.
  const far = new WebsocketProvider(cable.url(""), "room", there, { WebSocketPolyfill: WebSocket as any, disableBc: true });
  t.after(() => {
    for (const provider of [near, far]) {
      provider.destroy();
      provider.doc.destroy();
    }
  });
  await until(() => near.synced && far.synced);
  const statuses: string[] = [];
  near.on("status", ({ status }) => statuses.push(status));
  const numbers = (doc: Y.Doc) => doc.getArray("numbers").toArray() as string[];
  let edits = 0;
  const edit = () => {
    edits++;
    here.getArray("numbers").push([`here ${edits}`]);
    there.getArray("numbers").push([`there ${edits}`]);
  };
  const converge = () => until(() => numbers(here).length === 2 * edits && numbers(there).length === 2 * edits);

  for (let n = 0; n < 40; n++) {
    edit();
    await sleep(5);
    if (n === 20) {
      await lead();
      await cable.reset();
    }
  }
  await converge();
  assert.deepEqual([statuses, opened.length, opened[0]!.stats.connections], [[], 1, 2]);
  assert.equal(await second.metric("relays"), 1);

  const drained = first.drain();
  for (let n = 0; n < 40; n++) {
    edit();
    await sleep(50);
  }
  await drained;
  await until(() => near.synced && far.synced);
  await converge();
  assert.deepEqual(numbers(here), numbers(there));
  assert.equal(new Set(numbers(here)).size, 2 * edits);
  assert.deepEqual([statuses, opened.length], [["disconnected", "connecting", "connected"], 2]);
});

test("GraphQL: a subscription goes on at the other node, every value once; after a drain graphql-ws begins it again, once", LIMIT, async (t) => {
  const type = GraphQLInt;
  async function* ticks() {
    for (let ticks = 1; ; ticks++) {
      await sleep(20);
      yield { ticks };
    }
  }
  const schema = new GraphQLSchema({
    query: new GraphQLObjectType({ name: "Query", fields: { none: { type } } }),
    subscription: new GraphQLObjectType({ name: "Subscription", fields: { ticks: { type, subscribe: ticks } } }),
  });
  const upstream = await backend(t, (server) => useServer({ schema }, server));
  const { first, second, cable, lead } = await two(t, "graphql", ["--upstream", upstream, "--profile", "graphql-transport-ws"]);
  const { Socket, opened } = classFor();
  const client = createClient({ url: cable.url(""), webSocketImpl: Socket, retryAttempts: Infinity, shouldRetry: () => true, retryWait: () => sleep(100) });
  t.after(() => client.dispose());
  const values: number[] = [];
  const ended: unknown[] = [];
  client.subscribe<{ ticks: number }>({ query: "subscription { ticks }" }, { next: ({ data }) => values.push(data!.ticks), error: (error) => ended.push(error), complete: () => ended.push("complete") });
  await until(() => values.length > 20);
  await lead();
  await cable.reset();
  await until(() => opened[0]!.stats.connections === 2);
  const atTheOther = values.length;
  await until(() => values.length > atTheOther + 20);
  assert.deepEqual(values, values.map((_, index) => index + 1));
  assert.equal(await second.metric("relays"), 1);

  await first.drain();
  await until(() => opened.length === 2);
  await until(() => values.lastIndexOf(1) > 0 && values.length > values.lastIndexOf(1) + 20);
  const again = values.lastIndexOf(1);
  assert.deepEqual(values, values.map((_, index) => (index < again ? index + 1 : index - again + 1)));
  assert.deepEqual([ended, opened.length], [[], 2]);
});

test("mainstay connect: every line comes back once and in order, over the other node and a drain, if sessions may move", LIMIT, async (t) => {
  const { first, second, cable, lead } = await two(t, "connect", ["--movable"]);
  const child = spawn(program, ["connect", cable.url("/echo")], { stdio: ["pipe", "pipe", "pipe"] });
  t.after(() => child.kill("SIGKILL"));
  const lines: string[] = [];
  createInterface(child.stdout).on("line", (line) => lines.push(line));
  let report = "";
  child.stderr.on("data", (text) => (report += text));
  const exited = once(child, "exit");
  let sent = 0;
  const send = async (count: number) => {
    for (const end = sent + count; sent < end; await sleep(10)) child.stdin.write(`${++sent}\n`);
    await until(() => lines.length === sent);
  };
  await send(30);
  await lead();
  await cable.reset();
  await send(30);
  assert.equal(await second.metric("relays"), 1);
  const drained = first.drain();
  await send(100);
  await drained;
  await send(30);
  child.stdin.end();
  assert.deepEqual(await exited, [0, null]);
  assert.deepEqual(lines, Array.from({ length: sent }, (_, index) => `${index + 1}`));
  assert.ok(/session resumed, no message was lost/.test(report) && !/gap/i.test(report), report);
});

test("the live page: its client gets every tick once, over the other node and a drain, if sessions may move", LIMIT, async (t) => {
  const { first, second, cable, lead } = await two(t, "page", ["--movable"]);
  const socket = new MainstaySocket(cable.url("/pulse"), [], { WebSocket: WebSocket as any });
  t.after(() => socket.close());
  const ticks: number[] = [];
  const gaps: unknown[] = [];
  socket.on("message", ({ data }: any) => {
    const { type, n } = JSON.parse(data);
    if (type === "tick") ticks.push(n);
  });
  socket.on("gap", (gap) => gaps.push(gap));
  const pass = (count: number, from = ticks.length) => until(() => ticks.length >= from + count);
  await pass(3);
  await lead();
  await cable.reset();
  await pass(3);
  assert.equal(await second.metric("relays"), 1);
  await first.drain();
  await pass(3);
  assert.deepEqual(ticks, ticks.map((_, index) => ticks[0]! + index));
  assert.deepEqual(gaps, []);
  assert.equal(await second.metric('attaches_total{outcome="resumed"}'), 1);
});
