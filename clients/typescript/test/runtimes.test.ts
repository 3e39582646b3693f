/** The client in every runtime, over a real gateway and a cable that is cut twice in the middle. */

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { WebSocketServer } from "ws";
import { cableTo } from "./support.js";

const SMOKE = fileURLToPath(new URL("smoke.mjs", import.meta.url));

interface Run {
  stdout: Readable;
  ended: Promise<unknown>;
  stop(): void;
}

const inNode = (flags: string[], own: string[]) => (url: string) => run(process.execPath, [...flags, SMOKE, url, ...own]);
const runtimes: [name: string, start: ((url: string) => Run) | undefined][] = [
  ["Node with ws", inNode([], ["ws"])],
  ["Node's own WebSocket", inNode(["--experimental-websocket"], [])],
  ["a worker thread of Node", inWorker],
  ["Deno", installed("deno", ["run", "--allow-all", "--node-modules-dir=manual"])],
  ["Bun", installed("bun", ["run"])],
];

for (const [name, start] of runtimes) {
  const skip = start ? false : "npm has no program of it for this machine";
  test(`a hundred messages return once and in order over two cuts, and the end is one: ${name}`, { skip, timeout: 30_000 }, async (t) => {
    const echo = new WebSocketServer({ host: "127.0.0.1", port: 0 });
    await once(echo, "listening");
    t.after(() => echo.close());
    const { cable, close } = await cableTo((echo.address() as AddressInfo).port, true);
    t.after(close);
    echo.on("connection", (socket) =>
      socket.on("message", (data) => {
        // The echo of this message, and earlier ones under way, arrive only on the next connection.
        if (["20", "60"].includes(`${data}`)) cable.cut();
        socket.send(`${data}`);
      }),
    );

    const { stdout, ended, stop } = start!(`${cable.url}/`);
    t.after(stop);
    const lines: string[] = [];
    for await (const line of createInterface(stdout)) lines.push(line);

    const numbers = Array.from({ length: 100 }, (_, index) => `${index + 1}`);
    assert.deepEqual(lines.filter((line) => /^\d/.test(line)), numbers);
    assert.deepEqual(lines.filter((line) => !/^\d/.test(line)), ["the last one: delivered", "closed with 1000 after 3 connections"]);
    assert.deepEqual(await ended, [0, null]);
  });
}

function run(program: string, args: string[]): Run {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
  return { stdout: child.stdout, ended: once(child, "exit"), stop: () => child.kill("SIGKILL") };
}

function inWorker(url: string): Run {
  const worker = new Worker(SMOKE, { argv: [url, "ws"], execArgv: [], stdout: true });
  const ended = once(worker, "exit").then(([code]) => [code, null]);
  return { stdout: worker.stdout, ended, stop: () => worker.terminate() };
}

/** A runtime that npm carries. npm has no program of it for some machines. */
function installed(name: string, args: string[]): ((url: string) => Run) | undefined {
  try {
    const manifest = createRequire(import.meta.url).resolve(`${name}/package.json`);
    const program = join(dirname(manifest), "..", ".bin", name);
    execFileSync(program, ["--version"], { stdio: "ignore" });
    return (url) => run(program, [...args, SMOKE, url]);
  } catch {
    return;
  }
}
