import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { mainstay } from "@mainstay/fastify";
import { connect } from "@mainstay/fastify/testing";
import Fastify, { type FastifyInstance } from "fastify";

/** Returns the TypeScript blocks of a guide. */
function blocks(guide: string): string[] {
  const text = readFileSync(new URL(`../../../docs/guides/${guide}.md`, import.meta.url), "utf8");
  return [...text.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, block]) => block!);
}

/** Runs a block unchanged, with these names in its scope. */
async function run(block: string, names: Record<string, unknown>): Promise<void> {
  const AsyncFunction = (async () => {}).constructor as FunctionConstructor;
  await new AsyncFunction(...Object.keys(names), block.replace(/^import .*$/gm, ""))(...Object.values(names));
}

/** Parses cookies as `@fastify/cookie` does. */
function withCookies(app: FastifyInstance): void {
  app.decorateRequest("cookies");
  app.addHook("onRequest", async (request) => {
    const pairs = (request.headers.cookie ?? "").split("; ").map((pair) => pair.split("="));
    (request as unknown as { cookies: object }).cookies = Object.fromEntries(pairs);
  });
}

test("the authentication guide: a hook checks a client's cookie, and authenticate its token", async (t) => {
  const [hook, token, fresh, renewed, ...rest] = blocks("authentication");
  assert.deepEqual(rest, []);
  const app = Fastify();
  t.after(() => app.close());
  withCookies(app);
  // The part of `@fastify/jwt` that the guide uses.
  const verify = (text: string) => {
    if (!text.startsWith("good ")) throw new Error("bad signature");
    return { sub: text.slice("good ".length) };
  };
  app.decorate("jwt", { verify });
  await run(hook!, { app });
  await run(token!, { app, mainstay });
  const headers = { cookie: "session=1" };
  const ada = await connect(app, "/me", { headers, credentials: "good ada" });
  assert.equal(await ada.next(), "you are ada");
  await assert.rejects(connect(app, "/me", { headers, credentials: "bad ada" }), /4501/);
  await assert.rejects(connect(app, "/me", { headers }), /4501/);
  await assert.rejects(connect(app, "/me", { credentials: "good ada" }), /4501.*401/);

  // The page's part, with a socket that records its calls.
  const listeners: Record<string, (event: object) => void> = {};
  const presented: unknown[] = [];
  let location = "";
  let closed = 0;
  class MainstaySocket {
    constructor(_url: string, _protocols: string[], { credentials }: { credentials: () => unknown }) {
      presented.push(credentials());
    }
    on(name: string, listener: (event: object) => void) {
      listeners[name] = listener;
    }
    authenticate(credentials: unknown) {
      presented.push(credentials);
    }
    close() {
      closed++;
    }
  }
  const ticks: (() => Promise<void>)[] = [];
  const names = { MainstaySocket, freshToken: () => "a token", location: { assign: (to: string) => (location = to) } };
  await run(`${fresh}${renewed}`, { ...names, setInterval: (tick: () => Promise<void>) => ticks.push(tick) });
  listeners.close!({ code: 1000 });
  assert.equal(location, "");
  listeners.close!({ code: 4501 });
  assert.equal(location, "/login");
  await ticks[0]!();
  assert.deepEqual(presented, ["a token", "a token"]);
  listeners.authenticated!({ accepted: true });
  listeners.authenticated!({ accepted: false });
  assert.equal(closed, 1);
});

test("the broadcast guide: a room reaches its members, and a list shows which members are here, away or gone", async (t) => {
  const [rooms, presence, ...rest] = blocks("broadcast");
  assert.deepEqual(rest, []);
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay);
  await run(rooms!, { app });
  const ann = await connect(app, "/chat/kitchen");
  const bob = await connect(app, "/chat/kitchen");
  ann.send("hello");
  assert.equal(await bob.next(), "hello");
  assert.deepEqual(ann.waiting, []);
  await app.inject({ method: "POST", url: "/announce", payload: { text: "to all" } });
  assert.deepEqual([await ann.next(), await bob.next()], ["to all", "to all"]);
  await ann.close();
  await bob.close();

  await run(presence!, { app });
  const watcher = await connect(app, "/chat/hall");
  assert.equal(await watcher.next(), '["here"]');
  const other = await connect(app, "/chat/hall");
  assert.equal(await watcher.next(), '["here","here"]');
  await other.detach();
  assert.equal(await watcher.next(), '["here","away"]');
  await other.resume();
  assert.equal(await watcher.next(), '["here","here"]');
  await other.close();
  assert.equal(await watcher.next(), '["here"]');
});
