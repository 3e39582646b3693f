/** Real processes that get real signals, with clients attached. */

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

/** A server in a process of its own, when it listens. */
async function start(t: TestContext, args: string[]): Promise<{ child: ChildProcess; url: string; said: string[] }> {
  const child = spawn(process.execPath, args, { cwd: folder, env: { ...process.env, PORT: "0" }, stdio: ["ignore", "pipe", "pipe"] });
  t.after(() => child.kill("SIGKILL"));
  const said: string[] = [];
  createInterface(child.stderr!).on("line", (line) => said.push(line));
  const lines = createInterface(child.stdout!);
  const [line] = (await once(lines, "line")) as [string];
  lines.on("line", (line) => said.push(line));
  return { child, url: `ws://127.0.0.1:${new URL(line).port}/echo`, said };
}

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  test(`the READMEs' server ends with 0 and says nothing at ${signal}, whatever its clients do`, async (t) => {
    const { child, url, said } = await start(t, ["examples/echo.mjs"]);
    const [session] = await Peer.attached(url);
    const plain = await new Peer(url, [], true).opened();
    const [deaf] = await Peer.attached(url);
    deaf.socket.pause();
    const silent = await new Peer(url).opened();
    const [away] = await Peer.attached(url);
    await away.cut();
    const exit = once(child, "exit");
    child.kill(signal);
    assert.deepEqual([(await session.closed).code, (await plain.closed).code, (await silent.closed).code], [1012, 1012, 1012]);
    assert.deepEqual([await exit, said], [[0, null], []]);
    deaf.socket.terminate();
  });
}

test("a process manager that kills early finds nobody left: no step of a close waits for more than a fifth of a second", async (t) => {
  // fastify-cli ends the process after 500 ms.
  const script = `
    import { mainstay } from "@mainstay/fastify";
    import Fastify from "fastify";
    const app = Fastify();
    const { setTimeout: real } = globalThis;
    let isClosing = false;
    let longest = 0;
    // What it waited for is what fired.
    globalThis.setTimeout = (call, delay, ...args) => {
      const isOfClosing = isClosing;
      return real(() => {
        if (isOfClosing) longest = Math.max(longest, delay);
        call(...args);
      }, delay);
    };
    await app.register(mainstay);
    app.get("/echo", { websocket: true }, (session) => {});
    console.log(await app.listen({ port: 0 }));
    process.once("SIGTERM", async () => { isClosing = true; await app.close(); console.log("longest " + longest); });`;
  const { child, url, said } = await start(t, ["--input-type=module", "--eval", script]);
  const [deaf] = await Peer.attached(url);
  deaf.socket.pause();
  const exit = once(child, "exit");
  child.kill("SIGTERM");
  assert.deepEqual(await exit, [0, null]);
  const longest = Number(said[0]?.split(" ")[1]);
  assert.ok(longest > 0 && longest <= 200, said.join());
  deaf.socket.terminate();
});

test("a drain that Fastify would cut off is refused in words, and one that fits is taken", async () => {
  const register = async (drain: number, pluginTimeout?: number) => {
    const app = Fastify(pluginTimeout === undefined ? {} : { pluginTimeout });
    await app.register(mainstay, { drain });
    await app.close();
  };
  await register(9500);
  await register(0, 100);
  await register(600_000, 0);
  await register(30_000, 31_000);
  const words =
    /^RangeError: mainstay: drain must be at most 9500 ms, not 30000: Fastify gives plugins 10000 ms to close; for more, set pluginTimeout in Fastify\(\{ pluginTimeout \}\)$/;
  await assert.rejects(() => register(30_000), words);
  await assert.rejects(() => register(1, 400), /drain must be at most 0 ms/);
});
