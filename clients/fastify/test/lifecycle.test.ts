/** Promises over many connections, and while the server closes. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import type { Session } from "@mainstay/fastify";
import { ack, GO_AWAY, goAway, refusalIn, REFUSE, resumeAt } from "./frames.js";
import { bytes, hello, Peer, serve } from "./peer.js";

test("over a thousand reconnects the handler is called once, listeners stay, each message arrives once, and the heap does not grow", async (t) => {
  const received: unknown[] = [];
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => {
    sessions.push(session);
    session.on("message", (data) => {
      received.push(data);
      session.send(data);
    });
  });
  t.after(() => app.close());
  const key = bytes(16);
  const instance = bytes(8);
  let token: Uint8Array<ArrayBuffer> | undefined;
  const heaps: number[] = [];
  const back: unknown[] = [];
  const listeners = () => [sessions[0]!.listenerCount("message"), sessions[0]!.eventNames().length];
  let before: number[] | undefined;
  for (let cycle = 1; cycle <= 1000; cycle++) {
    const [peer, welcome] = await Peer.attached(url, { key, instance, attempt: cycle, resume: token && resumeAt(token, cycle - 1, cycle - 1, cycle) });
    token = welcome.token;
    peer.write(ack(cycle - 1), `message ${cycle}`);
    back.push(await peer.text());
    before ??= listeners();
    // Every second connection is replaced while it is alive.
    if (cycle % 2) await peer.cut();
    else peer.socket.on("close", () => peer.socket.terminate());
    if (cycle % 250 === 0) {
      await new Promise((resolve) => setImmediate(resolve));
      globalThis.gc!();
      heaps.push(process.memoryUsage().heapUsed);
    }
  }
  const all = Array.from({ length: 1000 }, (_, i) => `message ${i + 1}`);
  assert.deepEqual([received, back], [all, all]);
  assert.deepEqual([sessions.length, sessions[0]!.epoch, listeners()], [1, 1000, before]);
  // A leak of the connections' objects would be 4.5 MB: 6 KB for each.
  assert.ok(heaps.at(-1)! - heaps[0]! < 2_000_000, `heap after each 250: ${heaps.map((heap) => Math.round(heap / 1000))} KB`);
});

test("a closing server asks sessions to leave and waits for them, refuses new clients, and closes the remaining connections with 1012", async () => {
  const ends: unknown[] = [];
  const { app, url } = await serve({ drainMs: 400 }, (session) => void session.on("closed", ({ cause }) => ends.push([session.mode, cause])));
  const [leaver] = await Peer.attached(url);
  const [stayer] = await Peer.attached(url);
  const [parked] = await Peer.attached(url);
  await parked.cut();
  const plain = await new Peer(url, [], true).opened();
  const half = await new Peer(url).opened();
  const closing = app.close();
  assert.deepEqual(await leaver.next(), goAway("the server is going away, come back", 400, 400));
  assert.ok(ends.some((end) => String(end) === "session,evicted"), "a parked session ends, because its client cannot come back");
  await leaver.cut();
  half.write(hello());
  assert.deepEqual(refusalIn(await half.next()), [REFUSE, 4413, true]);
  const refused = new Peer(url);
  const [, response] = await once(refused.socket, "unexpected-response");
  assert.equal(response.statusCode, 503);
  assert.equal((await plain.closed).code, 1012);
  assert.equal((await stayer.closed).code, 1012);
  await closing;
  assert.deepEqual(ends.map(String).sort(), ["plain,ended", "session,evicted", "session,evicted", "session,evicted"]);
});

test("a client that never answers the Close does not keep the server from closing", async () => {
  const { app, url } = await serve({}, () => {});
  const [peer] = await Peer.attached(url);
  peer.socket.pause();
  await app.close();
  peer.socket.terminate();
});

test("close() finishes after a new client got 503, even if nothing else keeps the process alive", async () => {
  const script = `
    import { mainstay } from "@mainstay/fastify";
    import Fastify from "fastify";
    const app = Fastify();
    await app.register(mainstay, { drainMs: 200 });
    app.get("/", { websocket: true }, (session) => {});
    console.log(await app.listen({ port: 0 }));
    process.once("SIGTERM", async () => {
      await app.close();
      console.log("closed");
    });`;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", script], {
    cwd: fileURLToPath(new URL("..", import.meta.url)),
    stdio: ["ignore", "pipe", "inherit"],
  });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  const url = `ws://127.0.0.1:${new URL((await lines.next()).value).port}/`;
  const [peer] = await Peer.attached(url);
  child.kill("SIGTERM");
  while ((await peer.next()).type !== GO_AWAY);
  const [, response] = await once(new Peer(url).socket, "unexpected-response");
  assert.equal(response.statusCode, 503);
  response.destroy();
  assert.equal((await peer.closed).code, 1012);
  assert.equal((await lines.next()).value, "closed");
});

test("the example echoes, and its process exits by itself after SIGTERM", async () => {
  const path = fileURLToPath(new URL("../examples/echo.mjs", import.meta.url));
  const child = spawn(process.execPath, [path], { env: { ...process.env, PORT: "0" }, stdio: ["ignore", "pipe", "inherit"] });
  const [line] = (await once(createInterface(child.stdout), "line")) as [string];
  const url = `ws://127.0.0.1:${new URL(line).port}/echo`;
  const [peer] = await Peer.attached(url);
  peer.write(ack(0), "hi");
  assert.equal(await peer.text(), "hi");
  const [away] = await Peer.attached(url);
  // A parked session alone must not keep the process alive.
  await away.cut();
  child.kill("SIGTERM");
  let frame;
  while ((frame = await peer.next()).type !== GO_AWAY);
  assert.equal(frame.reason, "the server is going away, come back");
  await peer.cut();
  assert.deepEqual(await once(child, "exit"), [0, null]);
});
