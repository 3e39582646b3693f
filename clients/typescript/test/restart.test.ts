/** A backend that keeps state with each connection restarts behind a real gateway. */

import assert from "node:assert/strict";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";
import { MainstaySocket, type Outcome } from "@mainstay/client";
import { WebSocketServer } from "ws";
import { WebSocket } from "./session-server.js";
import { gateway, until } from "./support.js";

const LIMIT = { timeout: 60_000 };

/** Keeps the messages of each connection, answers each message, and forgets its clients when it restarts. */
class Backend {
  readonly connections: string[][] = [];
  private server: WebSocketServer | undefined;
  port = 0;

  async start(): Promise<void> {
    const server = new WebSocketServer({ port: this.port, host: "127.0.0.1" });
    server.on("connection", (socket) => {
      const mine: string[] = [];
      this.connections.push(mine);
      socket.on("message", (data) => {
        mine.push(String(data));
        socket.send(`got ${data}`);
      });
    });
    await once(server, "listening");
    this.port = (server.address() as AddressInfo).port;
    this.server = server;
  }

  /** With `code` it closes in order; without, as if its process died. */
  async stop(code?: number): Promise<void> {
    for (const client of this.server?.clients ?? []) code ? client.close(code) : client.terminate();
    await new Promise((done) => this.server?.close(done) ?? done(0));
  }
}

async function stage(t: TestContext, policy: string): Promise<{ backend: Backend; socket: MainstaySocket; log: string[] }> {
  const backend = new Backend();
  await backend.start();
  const front = await gateway(`ws://127.0.0.1:${backend.port}`, ["--on-backend-loss", policy]);
  const socket = new MainstaySocket(`ws://127.0.0.1:${front.port}`, [], { WebSocket });
  t.after(async () => {
    socket.suspend();
    await front.stop();
    await backend.stop();
  });
  const log: string[] = [];
  socket.on("gap", ({ fate }) => log.push(`gap ${fate?.cause}`));
  socket.on("open", () => log.push("open"));
  return { backend, socket, log };
}

for (const code of [undefined, 1012]) {
  test(`with renew, a backend that ${code ? `closes with ${code}` : "dies"} gets a login first on each connection, and each order at most once`, LIMIT, async (t) => {
    const { backend, socket, log } = await stage(t, "renew");
    socket.on("open", () => socket.send("login"));
    // The client reads what the backend sent before, and then the session ends.
    socket.on("message", () => {});
    const orders = new Map<string, Promise<Outcome>>();
    const order = () => {
      const text = `order ${orders.size + 1}`;
      orders.set(text, socket.send(text).delivered);
    };
    const timer = setInterval(order, 10);
    t.after(() => clearInterval(timer));
    const isServed = (connection: number) => backend.connections.length === connection && backend.connections.at(-1)!.length > 5;
    for (let restarts = 0; restarts < 3; restarts++) {
      await until(() => isServed(1 + restarts));
      await backend.stop(code);
      await backend.start();
    }
    await until(() => isServed(4) && log.length === 7);
    clearInterval(timer);
    const outcomes = new Map<string, Outcome>();
    for (const [text, outcome] of orders) outcomes.set(text, await outcome);
    const got = backend.connections.filter((messages) => messages.length);
    assert.ok(got.every(([first]) => first === "login"), JSON.stringify(got.map(([first]) => first)));
    const all = got.flat();
    for (const [text, outcome] of outcomes) {
      const times = all.filter((message) => message === text).length;
      if (outcome === "delivered") assert.equal(times, 1, text);
      else assert.ok(outcome === "unknown" && times <= 1, `${text} ${outcome} ${times}`);
    }
    const numbers = all.filter((message) => message !== "login").map((message) => Number(message.slice(6)));
    assert.deepEqual(numbers, numbers.toSorted((a, b) => a - b), "in order, also those sent again");
    assert.deepEqual([log[0], new Set(log)], ["open", new Set(["open", "gap replaced"])]);
    assert.equal(log.filter((entry) => entry === "open").length, log.filter((entry) => entry !== "open").length + 1);
  });
}

test("with keep, the session goes on, and the replacement is reported once and in its place", LIMIT, async (t) => {
  const { backend, socket, log } = await stage(t, "keep");
  socket.on("message", ({ data }) => log.push(data));
  // The backend would get unconfirmed messages again.
  assert.equal(await socket.send("1").delivered, "delivered");
  await until(() => log.includes("got 1"));
  await backend.stop();
  await backend.start();
  await until(() => log.includes("gap replaced"));
  const outcome = await socket.send("2").delivered;
  await until(() => log.includes("got 2"));
  assert.deepEqual([outcome, log], ["delivered", ["open", "got 1", "gap replaced", "got 2"]]);
});
