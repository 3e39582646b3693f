/** Options of a route, routes that are declared too early, and upgrades that a hook refuses. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test, type TestContext } from "node:test";
import { MainstaySocket, type Options } from "@mainstay/client";
import { mainstay, type MainstayOptions, type MainstayRouteOptions } from "@mainstay/fastify";
import Fastify, { type FastifyInstance } from "fastify";
import WebSocket from "ws";
import { reasonOf, refusalOf } from "../dist/refusal.js";
import { refusalIn, REFUSE } from "./frames.js";
import { hello, Peer } from "./peer.js";

async function build(t: TestContext, options: MainstayOptions = {}, lines: string[] = []): Promise<FastifyInstance> {
  const app = Fastify({ logger: { level: "info", stream: { write: (line: string) => void lines.push(line) } } });
  t.after(() => app.close());
  await app.register(mainstay, options);
  return app;
}

const listen = async (app: FastifyInstance) => (await app.listen({ port: 0, host: "127.0.0.1" })).replace("http", "ws");

test("a route's options override those of the registration, and apply to no other route", async (t) => {
  const app = await build(t, { heartbeatMs: 30_000, maxMessage: 100, subprotocols: ["a"], authenticate: () => null, openingDeadlineMs: 5000 });
  const own: MainstayRouteOptions = { heartbeatMs: 5000, maxMessage: 2000, resumeWindowMs: 0, subprotocols: ["b"], authenticate: () => "ann", keep: { messages: 1 } };
  let room: boolean[] = [];
  app.get("/own", { websocket: true, mainstay: own }, (session) => {
    if (session.mode === "session") room = [session.trySend("1"), session.trySend("2")];
  });
  app.get("/other", { websocket: true, mainstay: { authenticate: () => "ann" } }, () => {});
  app.get("/closed", { websocket: true }, () => {});
  const url = await listen(app);
  const welcome = async (path: string, protocol: string) => {
    const peer = await new Peer(url + path, [`mainstay.v1+${protocol}`, protocol]).opened();
    assert.equal(peer.socket.protocol, `mainstay.v1+${protocol}`);
    peer.write(hello());
    const frame = await peer.next();
    return [frame.resumeWindowMs, frame.heartbeatIntervalMs, frame.maxMessage];
  };
  assert.deepEqual(await welcome("/own", "b"), [0, 5000, 2000]);
  assert.deepEqual(room, [true, false]);
  assert.deepEqual(await welcome("/other", "a"), [120_000, 30_000, 100]);
  assert.equal((await new Peer(`${url}/closed`, ["a"], true).closed).code, 4501);

  // The larger limit of one route does not apply to another.
  for (const [path, size, passes] of [["/own", 2000, true], ["/own", 2001, false], ["/other", 101, false]] as const) {
    const peer = await new Peer(url + path, path === "/own" ? ["b"] : ["a"], true).opened();
    peer.write("x".repeat(size));
    if (passes) peer.socket.close();
    assert.equal((await peer.closed).code, passes ? 1005 : 1009, `${path} ${size}`);
  }
});

test("an invalid option of a route throws where the route is declared, in one line that names the route and the option", async (t) => {
  const app = await build(t);
  const cases: [unknown, RegExp][] = [
    [{ heartbeet: 1 }, /^TypeError: mainstay: route \/x: there is no option heartbeet; the options are /],
    [{ heartbeatMs: 1 }, /^RangeError: mainstay: route \/x: heartbeatMs must be a whole number between 100 and 3600000 ms, not 1$/],
    [{ keep: { message: 1 } }, /^TypeError: mainstay: route \/x: there is no option keep\.message; use messages and bytes$/],
    [{ drainMs: 0 }, /^TypeError: mainstay: route \/x: drainMs applies to all routes: set it where the plugin is registered$/],
    [{ maxSessions: 1 }, /maxSessions applies to all routes/],
    [{ maxPerIp: 1 }, /maxPerIp applies to all routes/],
    [{ prefix: "/a" }, /prefix applies to all routes/],
    [true, /^TypeError: mainstay: route \/x: mainstay must be an object of options$/],
    [null, /mainstay must be an object of options/],
  ];
  for (const [options, message] of cases) {
    assert.throws(() => app.get("/x", { websocket: true, mainstay: options as MainstayRouteOptions }, () => {}), (error) => message.test(String(error)), String(message));
  }
  assert.throws(() => app.get("/y", { mainstay: { heartbeatMs: 5000 } }, async () => ""), /route \/y: the option mainstay is for routes with websocket: true/);
  app.get("/z", { websocket: true, mainstay: {} }, () => {});
  app.route({ method: "GET", url: "/both", mainstay: { heartbeatMs: 5000 }, handler: async () => "", wsHandler: () => {} });
});

test("a route that was declared before the plugin was loaded fails at onReady, with an error that names the remedy", async () => {
  const early: [string, (app: FastifyInstance) => unknown][] = [
    ["beside an unawaited register", (app) => {
      app.register(mainstay);
      app.get("/x", { websocket: true }, () => {});
    }],
    ["before it", async (app) => {
      app.get("/x", { websocket: true }, () => {});
      await app.register(mainstay);
    }],
    ["with wsHandler", (app) => {
      app.register(mainstay);
      app.route({ method: "GET", url: "/x", handler: async () => "", wsHandler: () => {} });
    }],
    ["in a plugin that is registered before", (app) => {
      app.register(async (scope) => void scope.get("/x", { websocket: true }, () => {}));
      app.register(mainstay);
    }],
  ];
  for (const [what, declare] of early) {
    const app = Fastify();
    await declare(app);
    const message = /^Error: mainstay: route \/x was declared before the plugin was loaded: write "await app\.register\(mainstay\)" in front of it/;
    await assert.rejects(async () => app.ready(), (error) => message.test(String(error)), what);
    await app.close();
  }
});

test("routes that are declared after the plugin, and HTTP routes, pass the check", async (t) => {
  const app = Fastify();
  t.after(() => app.close());
  app.register(mainstay);
  app.register(async (scope) => void scope.get("/later", { websocket: true }, (session) => void session.send("hello")));
  app.after(() => void app.get("/after", { websocket: true }, (session) => void session.send("hello")));
  app.get("/http", async () => "http");
  await app.ready();
  for (const path of ["/later", "/after"]) {
    let received: Promise<unknown[]> | undefined;
    const socket = await app.injectWS(path, {}, { onInit: (ws) => (received = once(ws, "message")) });
    assert.equal(String((await received!)[0]), "hello");
    socket.terminate();
  }
});

test("the plugin works beside @fastify/websocket and beside itself in scopes of their own, and each route is called once", async (t) => {
  const foreign = (await import("@fastify/websocket" as string)).default;
  for (const isFirst of [true, false]) {
    const lines: string[] = [];
    const calls: string[] = [];
    const app = Fastify({ logger: { level: "warn", stream: { write: (line: string) => void lines.push(line) } } });
    t.after(() => app.close());
    const sockets = async (scope: FastifyInstance) => {
      await scope.register(foreign);
      scope.get("/socket", { websocket: true }, ((socket: WebSocket) => (calls.push("socket"), socket.send("a socket"))) as any);
    };
    if (isFirst) await app.register(sockets);
    for (const heartbeatMs of [5000, 6000]) {
      await app.register(async (scope) => {
        await scope.register(mainstay, { heartbeatMs });
        scope.get(`/${heartbeatMs}`, { websocket: true }, (session) => (calls.push(`session ${heartbeatMs}`), session.send(`${scope.mainstay.sessions.size} of ${heartbeatMs}`)));
      });
    }
    if (!isFirst) await app.register(sockets);
    const url = await listen(app);
    for (const [path, words] of [["/socket", "a socket"], ["/5000", "1 of 5000"], ["/6000", "1 of 6000"]] as const) {
      const peer = new Peer(url + path, [], true);
      assert.equal(await peer.text(), words);
      await peer.cut();
    }
    assert.deepEqual([calls, lines], [["socket", "session 5000", "session 6000"], []]);
  }
});

test("a second registration in the same scope fails with an error that names the remedy", async (t) => {
  const app = await build(t);
  await assert.rejects(async () => app.register(mainstay), /^Error: mainstay: the plugin is registered here already: give a route its own options/);
});

/** How often a hook went on after it had awaited its response. */
let awaited = 0;

/** Declares one route for each way in which an application refuses an upgrade. */
function refusing(app: FastifyInstance): void {
  const room = { type: "object", required: ["room"], properties: { room: { type: "string" } } };
  const handler = () => assert.fail("the handler is called");
  app.get("/onRequest", { websocket: true, onRequest: async (_request, reply) => reply.code(401).send({ message: "who are you?" }) }, handler);
  app.get("/callback", { websocket: true, onRequest: (_request, reply) => void reply.code(403).send() }, handler);
  app.get("/awaited", { websocket: true, onRequest: async (_request, reply) => (await reply.code(401).send("no"), void awaited++) }, handler);
  app.get("/thrown", { websocket: true, preHandler: async () => Promise.reject(Object.assign(new Error("gone for good"), { statusCode: 410 })) }, handler);
  app.get("/schema", { websocket: true, schema: { querystring: room } }, handler);
  app.get("/late", { websocket: true, onRequest: async (_request, reply) => reply.code(401).send(), onSend: async (_request, _reply, payload) => (await null, payload) }, handler);
  app.get("/busy", { websocket: true, onRequest: async (_request, reply) => reply.code(429).header("retry-after", "7").send() }, handler);
  app.get("/down", { websocket: true, onRequest: async (_request, reply) => reply.code(503).send() }, handler);
  app.get("/broken", { websocket: true, onRequest: async () => Promise.reject(new Error("a bug")) }, handler);
}

const REFUSALS: [path: string, status: number, code: number, temporary: boolean, reason: RegExp][] = [
  ["/onRequest", 401, 4501, false, /^401 Unauthorized: who are you\?$/],
  ["/callback", 403, 4501, false, /^403 Forbidden$/],
  ["/awaited", 401, 4501, false, /^401 Unauthorized$/],
  ["/thrown", 410, 4501, false, /^410 Gone: gone for good$/],
  ["/schema", 400, 4501, false, /^400 Bad Request: querystring must have required property 'room'$/],
  ["/late", 401, 4501, false, /^401 Unauthorized$/],
  ["/busy", 429, 4413, true, /^429 Too Many Requests$/],
  ["/down", 503, 4413, true, /^503 Service Unavailable$/],
  ["/broken", 500, 4414, true, /^500 Internal Server Error: a bug$/],
];

test("the status of a hook or a schema reaches a client of mainstay.v1 as a REFUSE, and a plain client as an HTTP response", async (t) => {
  const lines: string[] = [];
  const app = await build(t, {}, lines);
  refusing(app);
  const url = await listen(app);
  for (const [path, status, code, temporary, reason] of REFUSALS) {
    lines.length = 0;
    const peer = await new Peer(url + path).opened();
    const frame = await peer.next();
    assert.deepEqual(refusalIn(frame), [REFUSE, code, temporary], path);
    if (path === "/busy") assert.deepEqual(frame.delay, { earliestMs: 7000, latestMs: 10_500 });
    const closed = await peer.closed;
    assert.equal(closed.code, code, path);
    assert.match(closed.reason, reason);
    const logged = lines.map((line) => JSON.parse(line)).filter(({ msg }) => msg === "an upgrade was refused");
    assert.deepEqual(logged.map(({ statusCode, reqId }) => [statusCode, typeof reqId]), [[status, "string"]]);
    if (status < 500) assert.ok(!lines.some((line) => line.includes("stack")), lines.join(""));

    const plain = new Peer(url + path, [], true);
    const [, response] = await once(plain.socket, "unexpected-response");
    assert.equal(response.statusCode, status, path);
    response.resume();
    await plain.cut();
  }
  assert.equal(app.mainstay.stats().refused.hook, REFUSALS.length);
  assert.equal(awaited, 2, "a hook that awaits its response goes on");
  assert.equal(app.mainstay.sessions.size, 0);
});

test("an application's error handler receives its errors as usual, and its response becomes a REFUSE", async (t) => {
  const app = await build(t);
  const seen: string[] = [];
  app.setErrorHandler((error: Error, _request, reply) => {
    seen.push(error.message);
    return reply.code(error.message === "expired" ? 401 : 503).send({ message: `handled: ${error.message}` });
  });
  app.get("/:what", { websocket: true, onRequest: async (request) => Promise.reject(Object.assign(new Error((request.params as any).what), { statusCode: 400 })) }, () => {});
  const url = await listen(app);
  assert.deepEqual(await new Peer(`${url}/expired`).closed, { code: 4501, reason: "401 Unauthorized: handled: expired" });
  assert.deepEqual(await new Peer(`${url}/away`).closed, { code: 4413, reason: "503 Service Unavailable: handled: away" });
  assert.deepEqual(seen, ["expired", "away"]);
});

test("the TypeScript client stops when a hook answers 401, and keeps reconnecting after 503", async (t) => {
  const app = await build(t);
  refusing(app);
  const url = await listen(app);
  const open = (path: string) => {
    const socket = new MainstaySocket(url + path, [], { WebSocket: WebSocket as unknown as NonNullable<Options["WebSocket"]> });
    t.after(() => socket.suspend());
    return socket;
  };
  const stopped = open("/onRequest");
  const code = await new Promise((resolve) => stopped.on("close", (event: any) => resolve(event.code)));
  assert.equal(code, 4501);
  const going = open("/down");
  let closes = 0;
  going.on("close", () => closes++);
  await new Promise<void>((resolve) => going.on("status", (event: any) => event.code && resolve()));
  assert.equal(closes, 0);
});

test("an HTTP status becomes a temporary or a final refusal, with a reason that fits into a Close", () => {
  const none = { earliestMs: 0, latestMs: 0 };
  assert.equal(refusalOf(200), undefined);
  assert.equal(refusalOf(302), undefined);
  assert.deepEqual(refusalOf(401), { code: 4501, temporary: false, delay: none });
  for (const status of [408, 425, 500, 502, 504]) assert.deepEqual(refusalOf(status), { code: 4414, temporary: true, delay: none });
  assert.deepEqual(refusalOf(429, 2), { code: 4413, temporary: true, delay: { earliestMs: 2000, latestMs: 3000 } });
  assert.deepEqual(refusalOf(503, "Wed, 21 Oct 2026 07:28:00 GMT"), { code: 4413, temporary: true, delay: none });
  assert.equal(reasonOf(401, "{broken"), "401 Unauthorized");
  assert.equal(reasonOf(401, '{"message":"Unauthorized"}'), "401 Unauthorized");
  assert.equal(reasonOf(499, undefined), "499");
  for (let length = 90; length < 130; length++) {
    const reason = reasonOf(400, JSON.stringify({ message: "x".repeat(length) + "长".repeat(20) }));
    assert.ok(Buffer.byteLength(reason) <= 123 && !reason.includes("\ufffd"), reason);
  }
});

test("the Close of a refused plain client carries the reason", async (t) => {
  const app = await build(t, { authenticate: () => null });
  app.get("/", { websocket: true }, () => {});
  app.get("/busy", { websocket: true, mainstay: { authenticate: () => Promise.reject(new Error("no database")) } }, () => {});
  const url = await listen(app);
  assert.deepEqual(await new Peer(url, [], true).closed, { code: 4501, reason: "the credentials were refused" });
  assert.deepEqual(await new Peer(`${url}/busy`, [], true).closed, { code: 4414, reason: "the credentials cannot be judged now, come back" });
  const session = await new Peer(url).opened();
  session.write(hello());
  assert.deepEqual(await session.closed, { code: 4501, reason: "the credentials were refused" });
});
