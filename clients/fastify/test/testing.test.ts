/** The test kit for applications' handlers. Everything here runs without a network. */

import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { mainstay, type MainstayOptions, type SessionHandler } from "@mainstay/fastify";
import { connect, RefusedError } from "@mainstay/fastify/testing";
import Fastify, { type FastifyInstance } from "fastify";

async function build(t: TestContext, handler: SessionHandler, options: MainstayOptions = {}): Promise<FastifyInstance> {
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, options);
  app.get("/chat", { websocket: true }, handler);
  return app;
}

const echo: SessionHandler = async (session) => {
  for await (const data of session) await session.send(typeof data === "string" ? data.toUpperCase() : data);
};

test("over a lost connection the messages of both ends arrive once, and the handler is called once", async (t) => {
  let calls = 0;
  const app = await build(t, (session, request) => (calls++, echo.call(app, session, request)));
  const client = await connect(app, "/chat");
  client.send("one");
  client.send(new Uint8Array([1, 2]));
  assert.equal(await client.next(), "ONE");
  assert.deepEqual(await client.next(), Buffer.from([1, 2]));
  await client.detach();
  assert.equal(client.session.state, "parked");
  client.send("while away");
  await client.session.send("from the server");
  assert.equal(await client.resume(), true);
  assert.deepEqual([await client.next(), await client.next()], ["from the server", "WHILE AWAY"]);
  assert.equal(await client.resume(), true, "a live connection is replaced");
  client.send("last");
  assert.equal(await client.next(), "LAST");
  assert.deepEqual([calls, client.session.epoch, client.gaps, client.waiting], [1, 3, [], []]);
  await client.close(1000, "bye");
  assert.deepEqual([client.end, client.session.state], [{ code: 1000, reason: "bye" }, "closed"]);
  await assert.rejects(client.next(), /the session has ended: 1000 bye/);
});

test("an expired session ends with the cause expired, and its client comes back to a new session with one exact gap", async (t) => {
  const ends: string[] = [];
  const app = await build(t, (session) => {
    session.on("message", () => {});
    session.on("closed", ({ cause }) => ends.push(cause));
  });
  const client = await connect(app, "/chat");
  client.send("delivered");
  const { session } = client;
  while (app.mainstay.stats().messages.in < 1) await new Promise((resolve) => setImmediate(resolve));
  await client.detach();
  await session.send("never seen");
  client.send("never sent");
  await client.expire();
  assert.deepEqual([ends, session.state], [["expired"], "closed"]);
  assert.equal(await client.resume(), false);
  assert.notEqual(client.session, session);
  assert.equal(client.gaps.length, 1);
  const [{ delivered, unknown, last, lost, cause }] = client.gaps as [any];
  assert.deepEqual({ delivered, unknown, last, lost, cause }, { delivered: 1, unknown: 1, last: 2, lost: { first: 1, count: 1 }, cause: "expired" });
  await client.expire();
  await client.expire();
  assert.deepEqual(ends, ["expired", "expired"]);
});

test("hooks, credentials and subprotocols work as for any client, and a refusal is an error with its code", async (t) => {
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { subprotocols: ["chat"], authenticate: (credentials) => (String(credentials) === "secret" ? "ann" : null) });
  app.addHook("onRequest", async (request, reply) => {
    if (!request.headers.cookie) return reply.code(401).send();
  });
  app.get("/chat", { websocket: true }, (session) => void session.send(`${session.peer.principal} ${session.peer.subprotocol}`));
  const options = { headers: { cookie: "id=1" }, credentials: "secret", subprotocol: "chat" };
  const client = await connect(app, "/chat", options);
  assert.equal(await client.next(), "ann chat");
  const refused = (code: number, message: RegExp) => (error: unknown) => error instanceof RefusedError && error.code === code && message.test(error.message);
  await assert.rejects(connect(app, "/chat", { ...options, headers: {} }), refused(4501, /^refused with 4501: 401 Unauthorized$/));
  await assert.rejects(connect(app, "/chat", { ...options, credentials: "wrong" }), refused(4501, /the credentials were refused/));
  await assert.rejects(connect(app, "/nowhere", options), /404/);
});

test("rooms and volatile messages reach the test client, and a session that the server ends is closed for it", async (t) => {
  const app = await build(t, (session) => session.join("all"));
  const client = await connect(app, "/chat");
  app.mainstay.to("all").send("hello");
  app.mainstay.to("all").sendVolatile("now");
  assert.deepEqual([await client.nextVolatile(), await client.next()], ["now", "hello"]);
  client.session.close(4500, "enough");
  await assert.rejects(client.next(), /the session has ended: 4500 enough/);
  assert.throws(() => client.send("more"), /the session has ended/);
});
