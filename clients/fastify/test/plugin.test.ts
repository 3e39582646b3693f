import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { decode } from "@mainstay/client/protocol";
import Fastify from "fastify";
import { mainstay, type Session } from "@mainstay/fastify";
import { ack, auth, END, end, endIn, gap, goAway, PING, ping, PONG, pong, refusalIn, REFUSE, resumeAt, volatile } from "./frames.js";
import { bytes, hello, Peer, serve } from "./peer.js";

const echo = (session: Session) => void session.on("message", (data) => session.send(data));

test("a session that is cut and resumed loses and repeats no message, and its handler is not called again", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => {
    sessions.push(session);
    echo(session);
  });
  t.after(() => app.close());
  const key = bytes(16);
  const instance = bytes(8);
  const [first, welcome] = await Peer.attached(url, { key, instance });
  const { epoch, resumed, acknowledged, first: next } = welcome;
  assert.deepEqual({ epoch, resumed, acknowledged, next }, { epoch: 1, resumed: false, acknowledged: 0, next: 1 });
  first.write(ack(0), "one", new Uint8Array([1, 2]));
  assert.equal(await first.text(), "one");
  assert.deepEqual([...(await first.text())], [1, 2]);
  const [session] = sessions as [Session];
  const detached = once(session, "detached");
  await first.cut();
  await detached;
  assert.equal(session.state, "parked");
  assert.ok(await session.send("while you were away"));

  // The client acknowledges the first message only, so the second is written again.
  const back = once(session, "attached");
  const [second, again] = await Peer.attached(url, { key, instance, attempt: 2, resume: resumeAt(welcome.token, 1, 2, 1) });
  assert.deepEqual([again.epoch, again.resumed, again.acknowledged, again.first], [2, true, 2, 2]);
  assert.deepEqual(await back, [2]);
  assert.deepEqual([...(await second.text())], [1, 2]);
  assert.equal(await second.text(), "while you were away");
  assert.deepEqual([sessions.length, session.epoch, session.mode], [1, 2, "session"]);
  assert.match(session.id, /^[0-9a-f]{16}$/);
});

test("hooks run before every upgrade, and refuse a plain client with an HTTP response", async (t) => {
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { drainMs: 0 });
  const seen: string[] = [];
  app.addHook("onRequest", async (request, reply) => {
    seen.push(request.url);
    if (!request.headers["x-key"]) await reply.code(401).send();
  });
  app.get("/:room", { websocket: true, preHandler: async (request) => void seen.push(`to ${(request.params as any).room}`) }, (session, request) => {
    session.send(`hello ${(request.params as { room: string }).room} ${session.mode}`);
    echo(session);
  });
  await app.ready();
  await assert.rejects(app.injectWS("/kitchen"), /401/);
  let received: Promise<unknown[]> | undefined;
  const socket = await app.injectWS("/kitchen", { headers: { "x-key": "1" } }, { onInit: (ws) => (received = once(ws, "message")) });
  assert.equal(String((await received!)[0]), "hello kitchen plain");
  received = once(socket, "message");
  socket.send("ping");
  assert.equal(String((await received)[0]), "ping");
  socket.terminate();
  assert.deepEqual(seen, ["/kitchen", "/kitchen", "to kitchen"]);
});

test("a page of another host may not use the user's cookies, and a list of origins allows only its pages", async (t) => {
  const cookie = "id=1";
  const here = "app.example";
  const cases: [NonNullable<Parameters<typeof mainstay>[1]["origins"]> | undefined, Record<string, string>, boolean][] = [
    [undefined, { host: here, cookie }, true],
    [undefined, { host: here, cookie, origin: "https://app.example" }, true],
    [undefined, { host: `${here}:8443`, cookie, origin: "https://app.example:8443" }, true],
    [undefined, { host: "10.0.0.1", "x-forwarded-host": here, cookie, origin: "https://app.example" }, true],
    [undefined, { host: here, origin: "https://evil.example" }, true],
    [undefined, { host: here, cookie, origin: "https://evil.example" }, false],
    [undefined, { host: here, authorization: "Basic eDp5", origin: "https://evil.example" }, false],
    [undefined, { host: here, cookie, origin: "https://app.example:8443" }, false],
    [undefined, { host: here, cookie, origin: "null" }, false],
    [undefined, { host: here, cookie, origin: "https://evil.example@app.example" }, false],
    ["any", { host: here, cookie, origin: "https://evil.example" }, true],
    [["https://app.example"], { host: here, origin: "https://app.example" }, true],
    [["https://app.example"], { host: here, origin: "http://app.example" }, false],
    [["https://app.example"], { host: here }, true],
  ];
  for (const [origins, headers, isAllowed] of cases) {
    const app = Fastify();
    t.after(() => app.close());
    await app.register(mainstay, { drainMs: 0, ...(origins && { origins }) });
    app.get("/", { websocket: true }, echo);
    await app.ready();
    const what = JSON.stringify([origins, headers]);
    if (isAllowed) (await app.injectWS("/", { headers })).terminate();
    else await assert.rejects(app.injectWS("/", { headers }), /403/, what);
  }
});

test("HTTP routes, wsHandler and HEAD are served as without the plugin", async (t) => {
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { drainMs: 0 });
  app.route({ method: "GET", url: "/both", handler: async () => "http", wsHandler: (session) => void session.send("ws") });
  app.get("/only", { websocket: true }, echo);
  await app.ready();
  assert.equal((await app.inject("/both")).body, "http");
  assert.equal((await app.inject("/only")).statusCode, 404);
  assert.equal((await app.inject({ method: "HEAD", url: "/both" })).statusCode, 200);
  let received: Promise<unknown[]> | undefined;
  const socket = await app.injectWS("/both", {}, { onInit: (ws) => (received = once(ws, "message")) });
  assert.equal(String((await received!)[0]), "ws");
  socket.terminate();
});

test("the server chooses sessions before plain WebSocket, then by the application's order, and always chooses one for a browser", async (t) => {
  const { app, url } = await serve({ subprotocols: ["chat.v2", "chat.v1"] }, echo);
  t.after(() => app.close());
  const chosen = async (...offers: string[]) => {
    const peer = await new Peer(url, offers, true).opened();
    peer.socket.terminate();
    return peer.socket.protocol;
  };
  assert.equal(await chosen("chat.v1", "mainstay.v1+chat.v1"), "mainstay.v1+chat.v1");
  assert.equal(await chosen("mainstay.v1+other", "chat.v1", "chat.v2"), "chat.v2");
  assert.equal(await chosen("mainstay.v1", "plain"), "mainstay.v1");
  assert.equal(await chosen("plain"), "plain");
  assert.equal(await chosen(), "");
});

test("a protocol error ends only its own connection, and the session is kept", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ accept: { messages: 2 }, maxMessage: 1000, openingDeadlineMs: 300 }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const code = async (...messages: Parameters<Peer["write"]>) => {
    const peer = await new Peer(url).opened();
    peer.write(...messages);
    return (await peer.closed).code;
  };
  assert.equal(await code("text before HELLO"), 4400);
  assert.equal(await code(ack(0)), 4400);
  assert.equal(await code(), 4412);
  const garbage = await new Peer(url).opened();
  garbage.socket.send(new Uint8Array([1, 255, 255]));
  assert.equal((await garbage.closed).code, 4400);
  const large = await new Peer(url).opened();
  large.socket.send("x".repeat(1001));
  assert.equal((await large.closed).code, 1009);
  assert.equal(sessions.length, 0);

  // Each error ends one connection of the same session, which survives all of them.
  const key = bytes(16);
  const instance = bytes(8);
  let [peer, welcome] = await Peer.attached(url, { key, instance });
  const offences: [number, (peer: Peer) => void][] = [
    [4400, (peer) => peer.write(hello())],
    [4400, (peer) => peer.write(ack(7))],
    [4400, (peer) => peer.socket.send(new Uint8Array(0))],
    [4400, (peer) => peer.socket.send(new Uint8Array([0x33]))],
    [4400, (peer) => peer.write(goAway("", 0, 0))],
    [4400, (peer) => peer.write("1", "2", "3")],
    [1009, (peer) => peer.write(new Uint8Array(1001))],
  ];
  let attempt = 1;
  for (const [code, offend] of offences) {
    peer.write(ack(0));
    offend(peer);
    assert.equal((await peer.closed).code, code);
    const received = 2 * +(attempt > 5);
    [peer, welcome] = await Peer.attached(url, { key, instance, attempt: ++attempt, resume: resumeAt(welcome.token, 0, Math.max(2, received), 1) });
    assert.equal(welcome.resumed, true, `resumed after offence ${attempt - 1}`);
  }
  assert.equal(sessions.length, 1);
});

test("a difference of positions ends the session, and the client receives END", async (t) => {
  const { app, url } = await serve({}, echo);
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  peer.write(ping(1, 5, 0));
  assert.deepEqual(endIn(await peer.next()), [END, 4400, "positions differ"]);
  assert.equal((await peer.closed).code, 4400);
});

test("credentials are accepted, refused or not decided, only their owner resumes a session, and AUTH on a live session is answered", async (t) => {
  const { app, url } = await serve(
    {
      authenticate: async (credentials) => {
        if (String(credentials) === "broken") throw new Error("the database is away");
        if (String(credentials) === "wrong type") return 7 as any;
        return String(credentials).startsWith("user ") ? String(credentials).slice(5, 8) : null;
      },
    },
    (session) => void session.send(session.peer.principal),
  );
  t.after(() => app.close());
  const refused = await new Peer(url).opened();
  refused.write(hello({ credentials: "wrong" }));
  assert.deepEqual(refusalIn(await refused.next()), [REFUSE, 4501, false]);
  assert.equal((await refused.closed).code, 4501);
  const unjudged = await new Peer(url).opened();
  unjudged.write(hello({ credentials: "broken" }));
  assert.deepEqual(refusalIn(await unjudged.next()), [REFUSE, 4414, true]);
  assert.equal((await new Peer(url, [], true).closed).code, 4501);

  const [ann, welcome] = await Peer.attached(url, { credentials: "user ann" });
  assert.equal(await ann.text(), "ann");
  const results = [];
  for (const credentials of ["user ann again", "user bob", "wrong"]) {
    ann.write(auth(new TextEncoder().encode(credentials)));
    results.push((await ann.next()).accepted);
  }
  assert.deepEqual(results, [true, false, false]);
  await ann.cut();
  const [, thief] = await Peer.attached(url, { credentials: "user bob", resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.equal(thief.resumed, false);
});

test("an authenticate that takes too long refuses the client with 4414", async (t) => {
  const { app, url } = await serve({ openingDeadlineMs: 100, authenticate: () => new Promise(() => {}) }, echo);
  t.after(() => app.close());
  const peer = await new Peer(url).opened();
  peer.write(hello());
  assert.deepEqual(refusalIn(await peer.next()), [REFUSE, 4414, true]);
  assert.equal((await new Peer(url, [], true).closed).code, 4414);
});

test("a session is resumed only at the path where it was opened", async (t) => {
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { drainMs: 0 });
  app.get("/:room", { websocket: true }, () => {});
  const url = (await app.listen({ port: 0, host: "127.0.0.1" })).replace("http", "ws");
  const [peer, welcome] = await Peer.attached(`${url}/one`);
  await peer.cut();
  const [, elsewhere] = await Peer.attached(`${url}/two`, { resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.equal(elsewhere.resumed, false);
  const [, there] = await Peer.attached(`${url}/one?query`, { resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.equal(there.resumed, true);
});

test("a later attach of another instance fences the previous connection", async (t) => {
  const { app, url } = await serve({}, echo);
  t.after(() => app.close());
  const [first, welcome] = await Peer.attached(url);
  const instance = bytes(8);
  await Peer.attached(url, { instance, resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.deepEqual(await first.closed, { code: 4409, reason: `${Buffer.from(instance).toString("hex")} 0` });
});

test("send waits for room, trySend does not, and both return false once the session has ended", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ keep: { messages: 2 } }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [peer] = await Peer.attached(url, { window: { messages: 1, bytes: 1000 } });
  const [session] = sessions as [Session];
  assert.ok(session.trySend("1") && session.trySend("2") && !session.trySend("3"));
  const third = session.send("3");
  const fourth = session.send("4");
  assert.equal(await peer.text(), "1");
  peer.write(ack(1));
  assert.equal(await third, true);
  session.close(4500, "enough");
  assert.equal(await fourth, false);
  assert.equal(await session.send("5"), false);
  for (const [number, text] of [[2, "2"], [3, "3"]] as const) {
    assert.equal(await peer.text(), text);
    peer.write(ack(number));
  }
  assert.deepEqual(endIn(await peer.next()), [END, 4500, "enough"]);
  const closed = once(session, "closed");
  peer.write(end(4500, "", 3, 3));
  assert.deepEqual(await closed, [{ cause: "ended", code: 4500, reason: "enough" }]);
  assert.equal((await peer.closed).code, 1000);
  assert.equal(session.state, "closed");
});

test("abort sends END at once, drops messages that were not written, and ends a parked session immediately", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [peer] = await Peer.attached(url, { window: { messages: 1, bytes: 1000 } });
  const [session] = sessions as [Session];
  assert.ok(session.trySend("written") && session.trySend("not written"));
  const closed = once(session, "closed");
  session.abort(4500, "enough");
  assert.deepEqual([session.trySend("later"), await peer.text()], [false, "written"]);
  peer.write(ack(1));
  assert.deepEqual(endIn(await peer.next()), [END, 4500, "enough"]);
  peer.write(end(4500, "", 1, 1));
  assert.deepEqual(await closed, [{ cause: "ended", code: 4500, reason: "enough" }]);
  assert.equal((await peer.closed).code, 1000);

  const [away] = await Peer.attached(url);
  const detached = once(sessions[1]!, "detached");
  await away.cut();
  await detached;
  sessions[1]!.abort(4501, "revoked");
  assert.equal(sessions[1]!.state, "closed");

  const plain = await new Peer(url, [], true).opened();
  while (sessions.length < 3) await new Promise((resolve) => setImmediate(resolve));
  sessions[2]!.abort(4500, "enough");
  assert.deepEqual(await plain.closed, { code: 4500, reason: "enough" });
  assert.throws(() => session.abort(1005), /^RangeError: close code 1005/);
});

test("with dropOldest a full buffer drops the oldest messages, and the client receives the gap", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ keep: { messages: 2 }, dropOldest: true }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [peer, welcome] = await Peer.attached(url);
  const detached = once(sessions[0]!, "detached");
  await peer.cut();
  await detached;
  for (const text of ["1", "2", "3", "4", "5"]) assert.ok(sessions[0]!.trySend(text));
  const [back] = await Peer.attached(url, { resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.deepEqual(await back.next(), gap(1, 3));
  assert.deepEqual([await back.text(), await back.text()], ["4", "5"]);
});

test("for await yields every message, and ends with the session", async (t) => {
  const received: unknown[] = [];
  let finish!: () => void;
  const done = new Promise<void>((resolve) => (finish = resolve));
  const { app, url } = await serve({}, async (session) => {
    for await (const data of session) received.push(data);
    finish();
  });
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  peer.write("1", "2", end(1000, "bye", 0, 0));
  assert.deepEqual(await peer.next(), end(1000, "", 2, 2));
  await done;
  assert.deepEqual(received, ["1", "2"]);
  assert.equal((await peer.closed).code, 1000);
});

test("volatile messages and the client's own gaps reach the handler", async (t) => {
  const events: unknown[] = [];
  const { app, url } = await serve({}, (session) => {
    session.on("volatile", (data) => events.push(["volatile", data]));
    session.on("gap", (gap) => events.push(gap));
    session.on("message", (data) => {
      events.push(data);
      session.sendVolatile("seen");
    });
  });
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  peer.write(volatile("now"), gap(1, 2), "three");
  assert.deepEqual(await peer.next(), volatile("seen"));
  assert.deepEqual(events, [["volatile", "now"], { first: 1, count: 2 }, "three"]);
});

test("a handler that fails ends its own session and no other", async (t) => {
  const { app, url } = await serve({}, (_session, request) => {
    if (request.url.includes("now")) throw new Error("at once");
    if (request.url.includes("soon")) return Promise.reject(new Error("soon"));
    return;
  });
  t.after(() => app.close());
  const [other] = await Peer.attached(url);
  for (const how of ["now", "soon"]) {
    const [peer] = await Peer.attached(`${url}/?${how}`);
    let frame;
    while ((frame = await peer.next()).type !== END) peer.write(ack(0));
    assert.deepEqual(endIn(frame), [END, 1011, "internal error"], how);
  }
  other.write(ping(1, 0, 0));
  assert.deepEqual(await other.next(), pong(1, 0, 0));
});

test("above maxSessions a new client is asked to come back later, and a client with a session resumes it", async (t) => {
  const { app, url } = await serve({ maxSessions: 1 }, echo);
  t.after(() => app.close());
  const [peer, welcome] = await Peer.attached(url);
  const refused = await new Peer(url).opened();
  refused.write(hello());
  assert.deepEqual(await refused.next(), { type: REFUSE, code: 4413, temporary: true, delay: { earliestMs: 1000, latestMs: 30_000 } });
  assert.equal((await refused.closed).code, 4413);
  assert.equal((await new Peer(url, [], true).closed).code, 4413);
  await peer.cut();
  const [, again] = await Peer.attached(url, { resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.equal(again.resumed, true);
});

test("in a full server a new client takes the place of a session that has been parked for ten seconds", async (t) => {
  let skew = 0;
  const now = performance.now.bind(performance);
  t.mock.method(performance, "now", () => now() + skew);
  const sessions: Session[] = [];
  const { app, url } = await serve({ maxSessions: 2 }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [there] = await Peer.attached(url);
  const [away] = await Peer.attached(url);
  const closed = once(sessions[1]!, "closed");
  const detached = once(sessions[1]!, "detached");
  await away.cut();
  await detached;
  assert.equal((await Peer.greeted(url)).answer.code, 4413, "the client is probably reconnecting");
  skew = 10_000;
  await Peer.attached(url);
  assert.deepEqual((await closed)[0], { cause: "evicted", code: 1006, reason: "its place was needed" });
  there.write(ping(1, 0, 0));
  assert.deepEqual((await there.next()).type, PONG, "an attached session keeps its place");
  assert.equal((await Peer.greeted(url)).answer.code, 4413, "no session is parked");
});

test("plain clients count as sessions while they are connected", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ maxSessions: 1 }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const first = await new Peer(url, [], true).opened();
  while (!sessions.length) await new Promise((resolve) => setImmediate(resolve));
  assert.equal((await new Peer(url, [], true).closed).code, 4413);
  const closed = once(sessions[0]!, "closed");
  await first.cut();
  assert.deepEqual(await closed, [{ cause: "lost", code: 1006, reason: "the connection broke without a Close" }]);
  await Peer.attached(url);
});

test("messages that arrive together with HELLO are delivered, in order", async (t) => {
  const { app, url } = await serve({ authenticate: async () => "ann" }, echo);
  t.after(() => app.close());
  const peer = await new Peer(url).opened();
  const { _socket: tcp } = peer.socket as any;
  tcp.cork();
  peer.write(hello(), "1", "2");
  tcp.uncork();
  assert.deepEqual([await peer.text(), await peer.text()], ["1", "2"]);
});

test("messages that arrive before the handler listens wait, and are then delivered at once", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  peer.write(ack(0), "1", "2", ping(9, 2, 0));
  assert.deepEqual(await peer.next(), pong(9, 0, 0), "received, and not acknowledged");
  const received: unknown[] = [];
  await new Promise<void>((resolve) => sessions[0]!.on("message", (data) => received.push(data) === 2 && resolve()));
  assert.deepEqual(received, ["1", "2"]);
});

test("both kinds of client are probed, and their answers are measured", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ heartbeatMs: 100 }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const peer = new Peer(url);
  peer.socket.on("message", (data: Buffer<ArrayBuffer>) => {
    const frame = decode(data);
    if (frame?.type === PING) peer.write(pong(frame.nonce, 0, 0));
  });
  const pings = [once(peer.socket, "ping")];
  (await peer.opened()).write(hello());
  const plain = await new Peer(url, [], true).opened();
  pings.push(once(plain.socket, "ping"));
  for (const [nonce] of await Promise.all(pings)) assert.equal(nonce.length, 8);
  while (sessions.length < 2 || sessions.some((session) => session.rtt === undefined)) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(sessions.map((session) => session.mode).sort(), ["plain", "session"]);
});

test("a plain client's messages wait for a handler that listens late, and its end is reported", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ accept: { messages: 2 } }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const peer = await new Peer(url, ["chat"], true).opened();
  while (!sessions.length) await new Promise((resolve) => setImmediate(resolve));
  peer.write("1", "2", "3", "4", "5");
  const [session] = sessions as [Session];
  assert.deepEqual([session.mode, session.id, session.peer.subprotocol], ["plain", "", "chat"]);
  const received: unknown[] = [];
  await new Promise<void>((resolve) => session.on("message", (data) => received.push(data) === 5 && resolve()));
  assert.deepEqual(received, ["1", "2", "3", "4", "5"]);
  const closed = once(session, "closed");
  peer.socket.close(3001, "bye");
  assert.deepEqual(await closed, [{ cause: "ended", code: 3001, reason: "bye" }]);
});

test("a handler's arguments are typed, with and without route parameters", async () => {
  const app = Fastify();
  await app.register(mainstay);
  app.get<{ Params: { room: string } }>("/:room", { websocket: true }, (session, request) => {
    const [room, epoch]: [string, number] = [request.params.room, session.epoch];
    session.on("attached", (again) => again + epoch + room.length);
    session.on("closed", ({ cause }) => cause === "expired");
    // @ts-expect-error: a session is not a socket.
    session.readyState;
    // @ts-expect-error: there is no such event.
    session.on("open", () => {});
  });
  app.route({ method: "GET", url: "/route", websocket: true, handler: (session) => session.trySend("x") });
  app.get("/http", async (request) => request.url);
});

test("options are checked at registration, and an error is one line that names the option and its range", async () => {
  const cases: [object, RegExp][] = [
    [{ heartbeatMs: 5 }, /^mainstay: heartbeatMs must be a whole number between 100 and 3600000 ms, not 5$/],
    [{ heartbeatMs: "25s" }, /heartbeatMs .* not 25s/],
    [{ resumeWindowMs: -1 }, /resumeWindowMs .* between 0 and 86400000 ms/],
    [{ keep: { messages: 0 } }, /keep\.messages .* between 1 and/],
    [{ keep: { message: 1 } }, /no option keep\.message; use messages and bytes$/],
    [{ accept: 5 }, /accept must be an object/],
    [{ maxMessage: Infinity }, /maxMessage .* bytes, not Infinity/],
    [{ authenticate: "yes" }, /authenticate must be a function/],
    [{ origins: ["example.com"] }, /origins must be "same-host", "any", or a list/],
    [{ dropOldest: 1 }, /dropOldest must be true or false/],
    [{ subprotocols: ["a b"] }, /subprotocols must be a list/],
    [{ hartbeat: 1 }, /there is no option hartbeat; the options are heartbeatMs, resumeWindowMs, .*websocket$/],
    ...["heartbeat", "resumeWindow", "openingDeadline", "drain", "idleTimeout", "maxLifetime"].map((old): [object, RegExp] => [{ [old]: 5000 }, new RegExp(`^mainstay: there is no option ${old}; use ${old}Ms$`)]),
    [{ heartbeatms: 5000 }, /there is no option heartbeatms; use heartbeatMs$/],
  ];
  for (const [options, message] of cases) {
    const app = Fastify();
    await assert.rejects(async () => app.register(mainstay, options), (error: Error) => message.test(error.message) && !error.message.includes("\n"));
  }
});

test("registering beside @fastify/websocket in one scope fails with an error that names the remedy", async () => {
  const app = Fastify();
  // The types of @fastify/websocket would declare that every handler gets a socket.
  const name = "@fastify/websocket";
  await app.register((await import(name)).default);
  await assert.rejects(async () => app.register(mainstay), /^Error: mainstay: the plugin registers @fastify\/websocket itself: remove your registration/);
});
