/** Mainstay's own clients, over connections that break. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import type { Socket } from "node:net";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { ClientSession, decode } from "@mainstay/client/protocol";
import type { FastifyInstance } from "fastify";
import WebSocket from "ws";
import type { Session } from "@mainstay/fastify";
import { bytes, randomFrom, serve } from "./peer.js";

test("the TypeScript session over connections that break at any moment loses, repeats and reorders nothing in either direction", async (t) => {
  const received: unknown[] = [];
  let sessions = 0;
  const { app, url } = await serve({ keep: { messages: 64 }, accept: { messages: 64 } }, async (session) => {
    sessions++;
    for await (const data of session) {
      received.push(data);
      await session.send(data);
    }
  });
  t.after(() => app.close());
  const cuts = cutter(app);
  const random = randomFrom(7);
  const client = new Client(url);
  const sent: string[] = [];
  for (let number = 1; number <= 3000; number++) {
    const text = `message ${number}`;
    await client.send(text);
    sent.push(text);
    if (random() < 0.01) client.cut();
    if (random() < 0.01) cuts();
    // Sometimes both ends have time to read.
    if (random() < 0.1) await new Promise((resolve) => setImmediate(resolve));
  }
  await client.until(() => client.received.length >= sent.length);
  assert.deepEqual([received, client.received], [sent, sent]);
  assert.equal(sessions, 1);
  assert.ok(client.connections > 20, `${client.connections} connections`);
  assert.deepEqual(client.events, []);
  client.stop();
});

test("the Rust client echoes, and resumes after its connection was cut", { skip: !process.env.MAINSTAY && "the variable MAINSTAY names no program" }, async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => {
    sessions.push(session);
    session.on("message", (data) => session.send(data));
  });
  t.after(() => app.close());
  const cut = cutter(app);
  const client = spawn(process.env.MAINSTAY!, ["connect", url], { stdio: ["pipe", "pipe", "inherit"] });
  const exit = once(client, "exit");
  const lines = createInterface(client.stdout)[Symbol.asyncIterator]();
  for (let number = 1; number <= 20; number++) {
    client.stdin.write(`line ${number}\n`);
    assert.equal((await lines.next()).value, `line ${number}`);
    if (number % 5) continue;
    const back = once(sessions[0]!, "attached");
    cut();
    // The client is away, and gets the message when it is back.
    assert.ok(await sessions[0]!.send(`away ${number}`));
    assert.equal((await lines.next()).value, `away ${number}`);
    await back;
  }
  const closed = once(sessions[0]!, "closed");
  client.stdin.end();
  assert.deepEqual(await closed, [{ cause: "ended", code: 1000, reason: "" }]);
  assert.deepEqual(await exit, [0, null]);
  assert.deepEqual([sessions.length, sessions[0]!.epoch], [1, 5]);
});

/** Returns a function that breaks all connections of a server. */
function cutter(app: FastifyInstance): () => void {
  const sockets = new Set<Socket>();
  app.server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  return () => sockets.forEach((socket) => socket.destroy());
}

/** A client's session that reconnects at once whenever its connection breaks. */
class Client {
  received: unknown[] = [];
  /** The events other than `attached`. */
  events: unknown[] = [];
  connections = 0;
  private session = new ClientSession({}, bytes);
  private socket!: WebSocket;
  private isStopped = false;
  private timer = setInterval(() => this.flush(), 50);

  constructor(private url: string) {
    this.dial();
  }

  async send(text: string): Promise<void> {
    await this.until(() => this.session.send(text) > 0);
    this.flush();
  }

  async until(isTrue: () => boolean): Promise<void> {
    while (!isTrue()) await new Promise((resolve) => setImmediate(resolve));
  }

  cut(): void {
    this.socket.terminate();
  }

  stop(): void {
    this.isStopped = true;
    clearInterval(this.timer);
    this.socket.terminate();
  }

  private dial(): void {
    if (this.isStopped) return;
    const id = ++this.connections;
    const socket = (this.socket = new WebSocket(this.url, ["mainstay.v1"]));
    socket.on("open", () => {
      this.session.handleOpened(performance.now(), id);
      this.flush();
    });
    socket.on("message", (data: Buffer<ArrayBuffer>, isBinary) => {
      this.session.handleFrame(id, decode(isBinary ? data : data.toString()));
      for (let delivery; (delivery = this.session.deliver(performance.now())); ) this.received.push(delivery.data);
      this.flush();
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      this.session.handleLost(id);
      this.dial();
    });
  }

  private flush(): void {
    if (this.socket.readyState !== 1) return;
    for (let event; (event = this.session.pollEvent()); ) if (event.type !== "attached") this.events.push(event);
    for (let output; (output = this.session.pollTransmit(performance.now())); ) {
      if (output.id !== this.connections) continue;
      if (output.kind === "write") this.socket.send(output.data);
      else this.socket.close();
    }
  }
}
