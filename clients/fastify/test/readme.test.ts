import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { mainstay } from "@mainstay/fastify";
import { connect } from "@mainstay/fastify/testing";
import Fastify, { type FastifyInstance } from "fastify";
import { settingsOf } from "../dist/options.js";
import { Peer } from "./peer.js";

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8");

test("the README's example is the file that the tests run, and has at most 15 lines", () => {
  const example = read("examples/echo.mjs");
  assert.ok(read("README.md").includes("```js\n" + example + "```"));
  assert.ok(example.trimEnd().split("\n").length <= 15);
});

test("the README names every option with its default", () => {
  for (const [name, value] of Object.entries(settingsOf({}))) {
    const row = read("README.md").split("\n").find((line) => line.startsWith(`| \`${name}\``));
    assert.ok(row, name);
    if (typeof value === "number") assert.equal(row.split("|")[2]!.trim(), String(value), name);
  }
});

/** Returns the README's blocks of a language, in order. */
const blocks = (language: string) => [...read("README.md").matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, "gms"))].map(([, text]) => text!);

/** Runs a block unchanged, with its imports. */
async function run(text: string, app: FastifyInstance): Promise<void> {
  const body = text.replace(/^import .*$/gm, "");
  const names = { app, mainstay, connect, websocket: (await import("@fastify/websocket" as string)).default };
  const AsyncFunction = (async () => {}).constructor as FunctionConstructor;
  await new AsyncFunction(...Object.keys(names), body)(...Object.values(names));
}

test("every other example of the README runs unchanged, one after the other in one application", async (t) => {
  const [, moving, ...rest] = blocks("js");
  const mixed = Fastify();
  t.after(() => mixed.close());
  await run(moving!, mixed);
  const url = (await mixed.listen({ port: 0, host: "127.0.0.1" })).replace("http", "ws");
  for (const path of ["/old", "/new"]) {
    const peer = new Peer(url + path, [], true);
    assert.equal(await peer.text(), "hello");
    await peer.cut();
  }

  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay);
  // Parses cookies as @fastify/cookie does.
  app.decorateRequest("cookies");
  app.addHook("onRequest", async (request) => {
    (request as any).cookies = Object.fromEntries((request.headers.cookie ?? "").split("; ").map((pair) => pair.split("=")));
  });
  assert.equal(rest.length, 6);
  const testing = rest.pop()!;
  for (const text of rest) await run(text, app);
  const headers = { cookie: "session=1" };
  const [ann, bob] = [await connect(app, "/chat/kitchen", { headers }), await connect(app, "/chat/kitchen", { headers })];
  ann.send("hello");
  assert.equal(await bob.next(), "hello");
  assert.deepEqual(ann.waiting, []);
  await app.inject({ method: "POST", url: "/announce", headers, payload: { text: "to all" } });
  assert.deepEqual([await ann.next(), await bob.next()], ["to all", "to all"]);
  assert.match((await app.inject({ url: "/metrics", headers })).body, /^mainstay_sessions 2$/m);
  await assert.rejects(connect(app, "/prices"), /4501: 401 Unauthorized: log in first/);
  await connect(app, "/prices", { headers });
  await run(testing, app);
});
