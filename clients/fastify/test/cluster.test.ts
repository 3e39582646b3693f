/** Real processes behind one port, as `node:cluster` and pm2 run them. */

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import WebSocket from "ws";
import { ack, resumeAt } from "./frames.js";
import { bytes, Peer } from "./peer.js";

/** Four processes for all tests. The last test stops them. */
let url: string;
let parent: ChildProcess;

before(async () => {
  const free = createServer().listen(0, "127.0.0.1");
  await once(free, "listening");
  const { port } = free.address() as { port: number };
  free.close();
  const env = { ...process.env, PORT: String(port), OPTIONS: JSON.stringify({ heartbeatMs: 200 }) };
  parent = spawn(process.execPath, [fileURLToPath(new URL("cluster-server.mjs", import.meta.url))], { env, stdio: ["ignore", "pipe", "inherit"] });
  const [line] = (await once(createInterface(parent.stdout!), "line")) as [string];
  url = line.replace("http", "ws");
});

after(() => void parent.kill("SIGTERM"));

/** One client over many connections. */
class Client {
  key = bytes(16);
  instance = bytes(8);
  token: Uint8Array<ArrayBuffer> | undefined;
  peer!: Peer;
  isResumed = false;
  private attempt = 0;

  constructor(private url: string) {}

  /** Attaches, with the client's counts so far: acknowledged and sent messages. */
  async attach(acknowledged = 0, sent = 0): Promise<this> {
    const { key, instance, token, url } = this;
    const [peer, welcome] = await Peer.attached(url, { key, instance, attempt: ++this.attempt, ...(token && { resume: resumeAt(token, acknowledged, sent, sent + 1) }) });
    this.peer = peer;
    this.token = welcome.token;
    this.isResumed = welcome.resumed;
    return this;
  }

  async ask(text: string, acknowledged: number): Promise<string> {
    this.peer.write(ack(acknowledged), text);
    return this.peer.text();
  }
}

test("a client that comes back to any of four processes resumes its session, whichever process has it, and keeps its address", async () => {
  const client = await new Client(url).attach();
  const first = await client.ask("who", 0);
  assert.match(first, / 127\.0\.0\.1$/);
  for (let count = 1; count <= 12; count++) {
    await client.peer.cut();
    await client.attach(count, count);
    assert.ok(client.isResumed, `reconnect ${count}`);
    assert.equal(await client.ask("who", count), first);
  }
  // The sessions of other clients are in other processes.
  const answers = new Set<string>();
  for (let i = 0; i < 8; i++) answers.add(await (await new Client(url).attach()).ask("who", 0));
  assert.ok(answers.size > 1, [...answers].join());
});

test("large messages, binary messages and heartbeats pass unchanged between the processes", async () => {
  const clients = [];
  for (let i = 0; i < 4; i++) {
    const client = await new Client(url).attach();
    await client.ask("hello", 0);
    await client.peer.cut();
    clients.push(await client.attach(1, 1));
  }
  for (const { peer } of clients) {
    const pings: number[] = [];
    const beats: number[] = [];
    peer.socket.on("ping", (data) => pings.push(data.length));
    peer.socket.on("message", (data: Buffer) => data[0] === 4 && beats.push(data.length));
    const text = "é".repeat(400_000);
    peer.write(ack(1), text);
    assert.equal(await peer.text(), text);
    const data = new Uint8Array(500_000).fill(7);
    peer.write(ack(2), data);
    assert.deepEqual(new Uint8Array(await peer.text()), data);
    while (pings.length < 2 || beats.length < 2) await new Promise((resolve) => setImmediate(resolve));
    assert.ok(pings.every((length) => length === 8));
  }
});

test("a client whose process died gets a fresh session, as after any restart", async () => {
  for (let i = 0; i < 3; i++) {
    const client = await new Client(url).attach();
    assert.equal(await client.ask("hello", 0), "hello");
    client.peer.write("exit");
    await client.peer.closed;
    await client.attach(1, 2);
    assert.equal(client.isResumed, false);
    assert.equal(await client.ask("again", 0), "again");
  }
});

test("an upgrade that a hook refuses is refused in every process", async () => {
  const socket = new WebSocket(url, ["mainstay.v1"], { headers: { cookie: "bad" } });
  const [code] = await once(socket, "close");
  assert.equal(code, 4501);
});

test("a parent process stops its workers and itself while connections are relayed", async () => {
  const clients = [];
  for (let i = 0; i < 6; i++) {
    const client = await new Client(url).attach();
    await client.ask("hello", 0);
    await client.peer.cut();
    clients.push(await client.attach(1, 1));
  }
  const exit = once(parent, "exit");
  parent.kill("SIGTERM");
  const codes = await Promise.all(clients.map(async ({ peer }) => (await peer.closed).code));
  assert.deepEqual(new Set(codes), new Set([1012]));
  assert.deepEqual(await exit, [0, null]);
});
