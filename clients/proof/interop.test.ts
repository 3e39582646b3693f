/** Each client against each server, directly and through the gateway, and the examples of the README unchanged. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import net from "node:net";
import { createInterface } from "node:readline";
import { after, test } from "node:test";
import { MainstaySocket, type Options } from "@mainstay/client";
import { WebSocket as NodeSocket } from "ws";
import { cableTo } from "./cable.js";
import { MAINSTAY, Server } from "./gateway.js";

const WebSocket = NodeSocket as unknown as NonNullable<Options["WebSocket"]>;
const inWorkspace = (path: string) => new URL(`../../${path}`, import.meta.url).pathname;
const ends: (() => unknown)[] = [];
after(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});
// A run that is aborted leaves nothing behind either.
process.on("SIGTERM", () => process.exit(1));
process.on("exit", () => ends.forEach((end) => end()));

/** The example of the README for axum, at its fixed port. */
async function axum(): Promise<number> {
  return program(inWorkspace("target/debug/examples/echo"), [], 8080);
}

/** The example of the README for Fastify. */
async function fastify(port: number): Promise<number> {
  return program(process.execPath, [inWorkspace("clients/fastify/examples/echo.mjs")], port, { PORT: String(port) });
}

async function program(command: string, args: string[], port: number, environment = {}): Promise<number> {
  const child = spawn(command, args, { stdio: "ignore", env: { ...process.env, ...environment } });
  ends.push(() => child.kill("SIGKILL"));
  for (let tries = 0; !(await listens(port)); tries++) {
    assert.ok(child.exitCode === null && tries < 400, `${command} does not listen on ${port}`);
    await new Promise((done) => setTimeout(done, 50));
  }
  return port;
}

const listens = (port: number) =>
  new Promise<boolean>((resolve) => {
    const socket = net.connect(port, "127.0.0.1", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

async function gatewayTo(port: number): Promise<number> {
  const server = await Server.start(MAINSTAY, ["serve", "--listen", "127.0.0.1:0", "--upstream", `ws://127.0.0.1:${port}`]);
  ends.push(() => server.kill());
  return server.port;
}

/** The TypeScript client sends 60 messages over a cable that is cut twice, and each comes back once and in order. */
async function typescript(port: number): Promise<void> {
  const cable = await cableTo(port);
  const socket = new MainstaySocket(cable.url("/echo"), [], { WebSocket });
  const received: unknown[] = [];
  const gaps: unknown[] = [];
  socket.on("gap", (gap) => gaps.push(gap.fate));
  const all = new Promise<void>((resolve) => socket.on("message", ({ data }) => received.push(data) === 60 && resolve()));
  for (let n = 0; n < 60; n++) {
    socket.send(`${n}`);
    if (n % 20 === 19) await new Promise<void>((resolve) => socket.on("message", ({ data }) => data === `${n - 10}` && resolve()));
    if (n === 19 || n === 39) await cable.reset();
  }
  await all;
  assert.deepEqual(received, Array.from({ length: 60 }, (_, n) => `${n}`));
  assert.deepEqual([gaps, socket.mode, socket.stats.connections], [[], "session", 3]);
  await socket[Symbol.asyncDispose]();
  await cable.close();
}

/** The Rust client does the same by `mainstay connect`. */
async function rust(port: number): Promise<void> {
  const cable = await cableTo(port);
  const child = spawn(MAINSTAY, ["connect", cable.url("/echo")], { stdio: ["pipe", "pipe", "ignore"] });
  const lines: string[] = [];
  const input = createInterface(child.stdout).on("line", (line) => lines.push(line));
  const came = async (count: number) => {
    while (lines.length < count) await once(input, "line");
  };
  for (let n = 0; n < 60; n++) {
    child.stdin.write(`${n}\n`);
    if (n % 20 === 19) await came(n - 9);
    if (n === 19 || n === 39) await cable.reset();
  }
  await came(60);
  child.stdin.end();
  const [code] = await once(child, "close");
  assert.deepEqual([lines, code], [Array.from({ length: 60 }, (_, n) => `${n}`), 0]);
  await cable.close();
}

test("the TypeScript and the Rust client, against the README's axum server and its Fastify server, directly and through the gateway", async (t) => {
  const servers = { axum: await axum(), fastify: await fastify(await freePort()) };
  for (const [name, port] of Object.entries(servers)) {
    const fronted = await gatewayTo(port);
    await t.test(`TypeScript, ${name}`, () => typescript(port));
    await t.test(`TypeScript, gateway, ${name}`, () => typescript(fronted));
    await t.test(`Rust, ${name}`, () => rust(port));
    await t.test(`Rust, gateway, ${name}`, () => rust(fronted));
  }
  for (const readme of ["README.md", "README.zh-CN.md"]) await t.test(`the client of ${readme}`, () => shownClient(readme));
});

/** The README's client, unchanged, against the README's axum server. */
async function shownClient(readme: string): Promise<void> {
  const shown = /```ts\n(import { MainstaySocket }[^]*?)```/.exec(readFileSync(inWorkspace(readme), "utf8"))?.[1];
  assert.ok(shown, readme);
  // Node 20 has no WebSocket of its own without a flag.
  const code = `${shown}\nsocket.close();`;
  const args = ["--experimental-websocket", "--input-type=module", "--eval", code];
  const child = spawn(process.execPath, args, { cwd: inWorkspace("clients/proof"), stdio: ["ignore", "pipe", "inherit"] });
  let printed = "";
  child.stdout.on("data", (chunk) => (printed += chunk));
  const [status] = await once(child, "close");
  assert.deepEqual([printed.split("\n").sort(), status], [["", "delivered", "hello"], 0]);
}

test("the README shows the examples as they run, in about fifteen lines", () => {
  const bare = (code: string) => code.replace(/^\/\/!.*\n/gm, "").replace(/\s+/g, "").replace(/,([)}])/g, "$1");
  for (const readme of ["README.md", "README.zh-CN.md"]) {
    const text = readFileSync(inWorkspace(readme), "utf8");
    for (const [tag, path] of [["rust,no_run", "crates/mainstay/examples/echo.rs"], ["ts", "clients/fastify/examples/echo.mjs"]] as const) {
      const shown = new RegExp(`\`\`\`${tag}\n([^]*?)\`\`\``).exec(text)?.[1] ?? "";
      assert.equal(bare(shown), bare(readFileSync(inWorkspace(path), "utf8")), `${readme}, ${path}`);
      const lines = shown.split("\n").filter((line) => line.trim() && !/^(use|import) /.test(line));
      assert.ok(lines.length <= 15, `${readme}, ${path}: ${lines.length} lines`);
    }
  }
});
