/** The helper with the real program, before a real server. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { after, test } from "node:test";
import { chaos, type Event, type Options, type ChaosProxy } from "@mainstay/chaos";
import WebSocket, { WebSocketServer } from "ws";
import { MAINSTAY } from "../../proof/gateway.js";

const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
server.on("connection", (socket) => socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary })).on("error", () => {}));
await once(server, "listening");
const upstream = `127.0.0.1:${(server.address() as AddressInfo).port}`;
after(() => {
  for (const socket of server.clients) socket.terminate();
  server.close();
});

const start = (options: Partial<Options> = {}) => chaos({ upstream, binary: MAINSTAY, ...options });

async function open(proxy: ChaosProxy): Promise<WebSocket> {
  const socket = new WebSocket(proxy.url("/ws"));
  socket.on("error", () => {});
  await once(socket, "open");
  return socket;
}

async function echoes(socket: WebSocket, text: string): Promise<void> {
  const answer = once(socket, "message");
  socket.send(text);
  assert.equal(String((await answer)[0]), text);
}

/** Waits for an event that satisfies the test. */
async function happened(proxy: ChaosProxy, isIt: (event: Event) => boolean): Promise<Event> {
  for (;;) {
    const event = (await proxy.timeline()).find(isIt);
    if (event) return event;
    await new Promise((done) => setTimeout(done, 10));
  }
}

test("connections pass, and the test sees them and what happened to them", async () => {
  const proxy = await start();
  const socket = await open(proxy);
  await echoes(socket, "hello");
  assert.deepEqual((await proxy.connections()).map(({ id }) => id), [1]);
  assert.equal(proxy.url("/ws"), `ws://127.0.0.1:${proxy.port}/ws`);
  const names = (await proxy.timeline()).map(({ event }) => event);
  assert.equal(names[0], "started");
  assert.ok(names.includes("opened"), String(names));
  await proxy.close();
});

test("a reset reaches the connections that are open, all or one", async () => {
  const proxy = await start();
  const [first, second, third] = [await open(proxy), await open(proxy), await open(proxy)];
  const one = once(second, "close");
  await proxy.reset(2);
  assert.deepEqual((await one)[0], 1006);
  await echoes(first, "still here");
  const others = [once(first, "close"), once(third, "close")];
  await proxy.reset();
  for (const closed of others) assert.equal((await closed)[0], 1006);
  await echoes(await open(proxy), "new connections pass");
  await proxy.close();
});

test("a fault strikes the connection that it names until it is lifted", async () => {
  const proxy = await start();
  const [first, second] = [await open(proxy), await open(proxy)];
  const stalled = await proxy.inject({ kind: "stall", connection: 1 });
  const answer = once(first, "message");
  first.send("waits");
  await echoes(second, "passes");
  assert.equal(await Promise.race([answer, echoes(second, "passes again").then(() => "nothing")]), "nothing");
  await proxy.lift(stalled);
  assert.equal(String((await answer)[0]), "waits");
  await proxy.inject({ kind: "black-hole", target: "new" });
  await proxy.liftAll();
  await echoes(await open(proxy), "nothing is left");
  await proxy.close();
});

test("rules and profiles hold from the start on, and the seed is known", async () => {
  const events: Event[] = [];
  const unset = { share: undefined } as object;
  const proxy = await start({ seed: 7, profile: ["elevator"], faults: [{ kind: "status", code: 503, "retry-after": 1, ...unset }], onEvent: (event) => events.push(event) });
  assert.equal(proxy.seed, 7);
  const socket = new WebSocket(proxy.url());
  const [error] = await once(socket, "error");
  assert.match(error.message, /503/);
  await happened(proxy, ({ fault }) => fault === "status");
  while (!events.some(({ fault }) => fault === "status")) await new Promise((done) => setTimeout(done, 10));
  assert.equal(events[0]!.event, "started");
  await proxy.close();
});

test("the URL is one that clients of this machine can use", async () => {
  const proxy = await start({ listen: "0.0.0.0:0" });
  assert.equal(proxy.url("ws"), `ws://127.0.0.1:${proxy.port}/ws`);
  assert.equal(proxy.url("/ws?a"), `ws://127.0.0.1:${proxy.port}/ws?a`);
  await echoes(await open(proxy), "hello");
  await proxy.close();
});

test("new connections go to another upstream, and open ones stay", async () => {
  const other = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  other.on("connection", (socket) => socket.send("other"));
  await once(other, "listening");
  const proxy = await start();
  const old = await open(proxy);
  await proxy.upstream(`127.0.0.1:${(other.address() as AddressInfo).port}`);
  const socket = new WebSocket(proxy.url());
  assert.equal(String((await once(socket, "message"))[0]), "other");
  await echoes(old, "hello");
  await proxy.close();
  other.close();
});

test("what the program refuses is an error in the program's words", async () => {
  await assert.rejects(start({ profile: "no-such-profile" }), /no-such-profile/);
  await assert.rejects(start({ upstream: "nowhere" }), /--upstream/);
  await assert.rejects(start({ seed: -1 }), /--seed.*must be a whole number from 0/);
  await assert.rejects(start({ faults: [{ every: "1s" } as any] }), /kind: is missing/);
  const proxy = await start();
  await assert.rejects(proxy.inject({ kind: "delay", latency: "soon" }), /latency/);
  await assert.rejects(proxy.inject({ kind: "bite" } as any), /bite/);
  await proxy.close();
});

test("the README's example runs with a server's address in place of its own", async () => {
  const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  const [, example] = /^```js\n(.*?)^```$/ms.exec(readme)!;
  const body = example!.replace(/^import .*$/m, "").replace("127.0.0.1:3000", upstream).replace("upstream:", `binary: ${JSON.stringify(MAINSTAY)}, upstream:`);
  const printed: Event[][] = [];
  const AsyncFunction = (async () => {}).constructor as FunctionConstructor;
  const names = { chaos, WebSocket: Quiet, console: { log: (events: Event[]) => printed.push(events) } };
  await new AsyncFunction(...Object.keys(names), body)(...Object.values(names));
  const faults = printed[0]!.filter(({ event }) => event === "fault").map(({ fault }) => fault);
  assert.deepEqual(faults, ["black-hole", "reset"]);
});

/** The connection of the example is reset before it is open, which is no event without a listener. */
class Quiet extends WebSocket {
  constructor(url: string) {
    super(url);
    this.on("error", () => {});
  }
}

test("a proxy that is disposed of is closed, and says so", async () => {
  const proxy = await start();
  const closed = once(await open(proxy), "close");
  await proxy[Symbol.asyncDispose]();
  await closed;
  await proxy.close();
  await assert.rejects(proxy.connections(), /this proxy is closed/);
});
