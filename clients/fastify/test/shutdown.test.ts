/** Real processes that receive real signals while clients are attached. */

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { mainstay } from "@mainstay/fastify";
import Fastify from "fastify";
import { Peer } from "./peer.js";

const folder = fileURLToPath(new URL("..", import.meta.url));

/** Starts a server in its own process, and returns once it listens. */
async function start(t: TestContext, args: string[]): Promise<{ child: ChildProcess; url: string; output: string[] }> {
  const child = spawn(process.execPath, args, { cwd: folder, env: { ...process.env, PORT: "0" }, stdio: ["ignore", "pipe", "pipe"] });
  t.after(() => child.kill("SIGKILL"));
  const output: string[] = [];
  createInterface(child.stderr!).on("line", (line) => output.push(line));
  const lines = createInterface(child.stdout!);
  const [line] = (await once(lines, "line")) as [string];
  lines.on("line", (line) => output.push(line));
  return { child, url: `ws://127.0.0.1:${new URL(line).port}/echo`, output };
}

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  test(`the READMEs' server exits with 0 and without output at ${signal}, whatever its clients do`, async (t) => {
    const { child, url, output } = await start(t, ["examples/echo.mjs"]);
    const [session] = await Peer.attached(url);
    const plain = await new Peer(url, [], true).opened();
    const [stuck] = await Peer.attached(url);
    stuck.socket.pause();
    const silent = await new Peer(url).opened();
    const [away] = await Peer.attached(url);
    await away.cut();
    const exit = once(child, "exit");
    child.kill(signal);
    assert.deepEqual([(await session.closed).code, (await plain.closed).code, (await silent.closed).code], [1012, 1012, 1012]);
    assert.deepEqual([await exit, output], [[0, null], []]);
    stuck.socket.terminate();
  });
}

test("no step of a close waits for more than 200 ms, so that a process manager that kills early finds no client left", async (t) => {
  // fastify-cli ends the process after 500 ms.
  const script = `
    import { mainstay } from "@mainstay/fastify";
    import Fastify from "fastify";
    const app = Fastify();
    const { setTimeout: real } = globalThis;
    let isClosing = false;
    let longest = 0;
    // Only timers that fired were waited for.
    globalThis.setTimeout = (call, delay, ...args) => {
      const wasClosing = isClosing;
      return real(() => {
        if (wasClosing) longest = Math.max(longest, delay);
        call(...args);
      }, delay);
    };
    await app.register(mainstay);
    app.get("/echo", { websocket: true }, (session) => {});
    console.log(await app.listen({ port: 0 }));
    process.once("SIGTERM", async () => { isClosing = true; await app.close(); console.log("longest " + longest); });`;
  const { child, url, output } = await start(t, ["--input-type=module", "--eval", script]);
  const [stuck] = await Peer.attached(url);
  stuck.socket.pause();
  const exit = once(child, "exit");
  child.kill("SIGTERM");
  assert.deepEqual(await exit, [0, null]);
  const longest = Number(output[0]?.split(" ")[1]);
  assert.ok(longest > 0 && longest <= 200, output.join());
  stuck.socket.terminate();
});

test("a drainMs above Fastify's pluginTimeout is refused with the largest possible value, and a smaller one is accepted", async () => {
  const register = async (drainMs: number, pluginTimeout?: number) => {
    const app = Fastify(pluginTimeout === undefined ? {} : { pluginTimeout });
    await app.register(mainstay, { drainMs });
    await app.close();
  };
  await register(9500);
  await register(0, 100);
  await register(600_000, 0);
  await register(30_000, 31_000);
  const message =
    /^RangeError: mainstay: drainMs must be at most 9500 ms, not 30000: Fastify gives plugins 10000 ms to close; for more, set pluginTimeout in Fastify\(\{ pluginTimeout \}\)$/;
  await assert.rejects(() => register(30_000), message);
  await assert.rejects(() => register(1, 400), /drainMs must be at most 0 ms/);
});
