/** The clients that it is made for, over connections that break. */

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

test("the TypeScript session over connections that break at any moment: nothing is lost, doubled or reordered, both ways", async (t) => {
  const heard: unknown[] = [];
  let sessions = 0;
  const { app, url } = await serve({ keep: { messages: 64 }, accept: { messages: 64 } }, async (session) => {
    sessions++;
    for await (const data of session) {
      heard.push(data);
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
    // Now and then both ends get to read.
    if (random() < 0.1) await new Promise((resolve) => setImmediate(resolve));
  }
  await client.until(() => client.heard.length >= sent.length);
  assert.deepEqual([heard, client.heard], [sent, sent]);
  assert.equal(sessions, 1);
  assert.ok(client.connections > 20, `${client.connections} connections`);
  assert.deepEqual(client.gaps, []);
  client.stop();
});

test("the Rust client echoes, and resumes after its connection was cut", { skip: !process.env.MAINSTAY && "MAINSTAY names no client" }, async (t) => {
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
    // Said to nobody, and heard all the same.
    assert.ok(await sessions[0]!.send(`away ${number}`));
    assert.equal((await lines.next()).value, `away ${number}`);
    await back;
  }
  const closed = once(sessions[0]!, "closed");
  client.stdin.end();
  assert.deepEqual(await closed, [{ why: "ended", code: 1000, reason: "" }]);
  assert.deepEqual(await exit, [0, null]);
  assert.deepEqual([sessions.length, sessions[0]!.epoch], [1, 5]);
});

/** Breaks all connections that a server has, at its end. */
function cutter(app: FastifyInstance): () => void {
  const sockets = new Set<Socket>();
  app.server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  return () => sockets.forEach((socket) => socket.destroy());
}

/** A client's session on one connection after the other, without any wait. */
class Client {
  heard: unknown[] = [];
  gaps: unknown[] = [];
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
      for (let delivery; (delivery = this.session.deliver(performance.now())); ) this.heard.push(delivery.data);
      this.flush();
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      this.session.handleLost(id);
      this.dial();
    });
  }

  private flush(): void {
    for (let output; (output = this.session.pollTransmit(performance.now())); ) {
      if (output.kind !== "write") this.socket.close();
      else if (this.socket.readyState === 1) this.socket.send(output.data);
    }
    for (let event; (event = this.session.pollEvent()); ) if (["gap", "ended"].includes(event.type)) this.gaps.push(event);
  }
}
