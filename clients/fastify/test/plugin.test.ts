import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { decode } from "@mainstay/client/protocol";
import Fastify from "fastify";
import { mainstay, type Session } from "@mainstay/fastify";
import { bytes, hello, Peer, serve } from "./peer.js";

const echo = (session: Session) => void session.on("message", (data) => session.send(data));

test("a session echoes, is cut, and is resumed with nothing lost or doubled and its handler not called again", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => {
    sessions.push(session);
    echo(session);
  });
  t.after(() => app.close());
  const key = bytes(16);
  const instance = bytes(8);
  const [first, welcome] = await Peer.attached(url, { key, instance });
  assert.deepEqual(welcome.slice(3, 7), [1, false, 0, 1]);
  first.write([3, 0], "one", new Uint8Array([1, 2]));
  assert.equal(await first.text(), "one");
  assert.deepEqual([...(await first.text())], [1, 2]);
  const [session] = sessions as [Session];
  const detached = once(session, "detached");
  await first.cut();
  await detached;
  assert.equal(session.state, "parked");
  assert.ok(await session.send("while you were away"));

  // It says that it received the first message only, so the second is written again.
  const back = once(session, "attached");
  const [second, again] = await Peer.attached(url, { key, instance, attempt: 2, resume: [welcome[2], 1, 2, 1] });
  assert.deepEqual(again.slice(3, 7), [2, true, 2, 2]);
  assert.deepEqual(await back, [2]);
  assert.deepEqual([...(await second.text())], [1, 2]);
  assert.equal(await second.text(), "while you were away");
  assert.deepEqual([sessions.length, session.epoch, session.mode], [1, 2, "session"]);
  assert.match(session.id, /^[0-9a-f]{16}$/);
});

test("hooks run before every upgrade, and a refusal is an HTTP answer", async (t) => {
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { drain: 0 });
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
  let heard: Promise<unknown[]> | undefined;
  const socket = await app.injectWS("/kitchen", { headers: { "x-key": "1" } }, { onInit: (ws) => (heard = once(ws, "message")) });
  assert.equal(String((await heard!)[0]), "hello kitchen plain");
  heard = once(socket, "message");
  socket.send("ping");
  assert.equal(String((await heard)[0]), "ping");
  socket.terminate();
  assert.deepEqual(seen, ["/kitchen", "/kitchen", "to kitchen"]);
});

test("a page of another host may not use the visitor's cookies, and a list says whose pages may come at all", async (t) => {
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
    await app.register(mainstay, { drain: 0, ...(origins && { origins }) });
    app.get("/", { websocket: true }, echo);
    await app.ready();
    const what = JSON.stringify([origins, headers]);
    if (isAllowed) (await app.injectWS("/", { headers })).terminate();
    else await assert.rejects(app.injectWS("/", { headers }), /403/, what);
  }
});

test("plain routes, wsHandler and HEAD are served as before", async (t) => {
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { drain: 0 });
  app.route({ method: "GET", url: "/both", handler: async () => "http", wsHandler: (session) => void session.send("ws") });
  app.get("/only", { websocket: true }, echo);
  await app.ready();
  assert.equal((await app.inject("/both")).body, "http");
  assert.equal((await app.inject("/only")).statusCode, 404);
  assert.equal((await app.inject({ method: "HEAD", url: "/both" })).statusCode, 200);
  let heard: Promise<unknown[]> | undefined;
  const socket = await app.injectWS("/both", {}, { onInit: (ws) => (heard = once(ws, "message")) });
  assert.equal(String((await heard!)[0]), "ws");
  socket.terminate();
});

test("the subprotocol: sessions win over plain, the application's order counts, a browser always gets a choice", async (t) => {
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

test("what a client breaks concerns its own connection: the session is kept", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ accept: { messages: 2 }, maxMessage: 1000, openingDeadline: 300 }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const code = async (...messages: Parameters<Peer["write"]>) => {
    const peer = await new Peer(url).opened();
    peer.write(...messages);
    return (await peer.closed).code;
  };
  assert.equal(await code("text before HELLO"), 4400);
  assert.equal(await code([3, 0]), 4400);
  assert.equal(await code(), 4412);
  const garbage = await new Peer(url).opened();
  garbage.socket.send(new Uint8Array([1, 255, 255]));
  assert.equal((await garbage.closed).code, 4400);
  const large = await new Peer(url).opened();
  large.socket.send("x".repeat(1001));
  assert.equal((await large.closed).code, 1009);
  assert.equal(sessions.length, 0);

  // Each on a connection of one session, which survives all of them.
  const key = bytes(16);
  const instance = bytes(8);
  let [peer, welcome] = await Peer.attached(url, { key, instance });
  const offences: [number, (peer: Peer) => void][] = [
    [4400, (peer) => peer.write(hello())],
    [4400, (peer) => peer.write([3, 7])],
    [4400, (peer) => peer.socket.send(new Uint8Array(0))],
    [4400, (peer) => peer.socket.send(new Uint8Array([0x33]))],
    [4400, (peer) => peer.write([6, "", [0, 0], 0])],
    [4400, (peer) => peer.write("1", "2", "3")],
    [1009, (peer) => peer.write(new Uint8Array(1001))],
  ];
  let attempt = 1;
  for (const [code, offend] of offences) {
    peer.write([3, 0]);
    offend(peer);
    assert.equal((await peer.closed).code, code);
    const taken = 2 * +(attempt > 5);
    [peer, welcome] = await Peer.attached(url, { key, instance, attempt: ++attempt, resume: [welcome[2], 0, Math.max(2, taken), 1] });
    assert.equal(welcome[4], true, `resumed after offence ${attempt - 1}`);
  }
  assert.equal(sessions.length, 1);
});

test("positions that differ end the session, and the client is told", async (t) => {
  const { app, url } = await serve({}, echo);
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  peer.write([4, 1, 5, 0]);
  assert.deepEqual((await peer.next()).slice(0, 3), [8, 4400, "positions differ"]);
  assert.equal((await peer.closed).code, 4400);
});

test("credentials: accepted, refused, not judged; only their owner resumes; AUTH on the live session", async (t) => {
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
  assert.deepEqual((await refused.next()).slice(0, 3), [12, 4501, false]);
  assert.equal((await refused.closed).code, 4501);
  const unjudged = await new Peer(url).opened();
  unjudged.write(hello({ credentials: "broken" }));
  assert.deepEqual((await unjudged.next()).slice(0, 3), [12, 4414, true]);
  assert.equal((await new Peer(url, [], true).closed).code, 4501);

  const [ann, welcome] = await Peer.attached(url, { credentials: "user ann" });
  assert.equal(await ann.text(), "ann");
  const results = [];
  for (const credentials of ["user ann again", "user bob", "wrong"]) {
    ann.write([9, new TextEncoder().encode(credentials)]);
    results.push((await ann.next())[1]);
  }
  assert.deepEqual(results, [true, false, false]);
  await ann.cut();
  const [, thief] = await Peer.attached(url, { credentials: "user bob", resume: [welcome[2], 0, 0, 1] });
  assert.equal(thief[4], false);
});

test("a verdict that does not come in time means not now", async (t) => {
  const { app, url } = await serve({ openingDeadline: 100, authenticate: () => new Promise(() => {}) }, echo);
  t.after(() => app.close());
  const peer = await new Peer(url).opened();
  peer.write(hello());
  assert.deepEqual((await peer.next()).slice(0, 3), [12, 4414, true]);
  assert.equal((await new Peer(url, [], true).closed).code, 4414);
});

test("a session is resumed only at the path where it was opened", async (t) => {
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { drain: 0 });
  app.get("/:room", { websocket: true }, () => {});
  const url = (await app.listen({ port: 0, host: "127.0.0.1" })).replace("http", "ws");
  const [peer, welcome] = await Peer.attached(`${url}/one`);
  await peer.cut();
  const [, elsewhere] = await Peer.attached(`${url}/two`, { resume: [welcome[2], 0, 0, 1] });
  assert.equal(elsewhere[4], false);
  const [, there] = await Peer.attached(`${url}/one?query`, { resume: [welcome[2], 0, 0, 1] });
  assert.equal(there[4], true);
});

test("a later attach of another instance fences the connection before it", async (t) => {
  const { app, url } = await serve({}, echo);
  t.after(() => app.close());
  const [first, welcome] = await Peer.attached(url);
  const instance = bytes(8);
  await Peer.attached(url, { instance, resume: [welcome[2], 0, 0, 1] });
  assert.deepEqual(await first.closed, { code: 4409, reason: `${Buffer.from(instance).toString("hex")} 0` });
});

test("send waits for room, trySend gives back, and both say when the session is over", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ keep: { messages: 2 } }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [peer] = await Peer.attached(url, { window: [1, 1000] });
  const [session] = sessions as [Session];
  assert.ok(session.trySend("1") && session.trySend("2") && !session.trySend("3"));
  const third = session.send("3");
  const fourth = session.send("4");
  assert.equal(await peer.text(), "1");
  peer.write([3, 1]);
  assert.equal(await third, true);
  session.close(4500, "enough");
  assert.equal(await fourth, false);
  assert.equal(await session.send("5"), false);
  for (const [number, text] of [[2, "2"], [3, "3"]] as const) {
    assert.equal(await peer.text(), text);
    peer.write([3, number]);
  }
  assert.deepEqual((await peer.next()).slice(0, 3), [8, 4500, "enough"]);
  const closed = once(session, "closed");
  peer.write([8, 4500, "", 3, 3]);
  assert.deepEqual(await closed, [{ why: "ended", code: 4500, reason: "enough" }]);
  assert.equal((await peer.closed).code, 1000);
  assert.equal(session.state, "over");
});

test("a full buffer drops the oldest where it is told to, and the client is told of the gap", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ keep: { messages: 2 }, dropOldest: true }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [peer, welcome] = await Peer.attached(url);
  const detached = once(sessions[0]!, "detached");
  await peer.cut();
  await detached;
  for (const text of ["1", "2", "3", "4", "5"]) assert.ok(sessions[0]!.trySend(text));
  const [back] = await Peer.attached(url, { resume: [welcome[2], 0, 0, 1] });
  assert.deepEqual(await back.next(), [7, 1, 3, 1]);
  assert.deepEqual([await back.text(), await back.text()], ["4", "5"]);
});

test("for await gets every message, and ends with the session", async (t) => {
  const heard: unknown[] = [];
  let end!: () => void;
  const done = new Promise<void>((resolve) => (end = resolve));
  const { app, url } = await serve({}, async (session) => {
    for await (const data of session) heard.push(data);
    end();
  });
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  peer.write("1", "2", [8, 1000, "bye", 0, 0]);
  assert.deepEqual((await peer.next()).slice(0, 5), [8, 1000, "", 2, 2]);
  await done;
  assert.deepEqual(heard, ["1", "2"]);
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
  peer.write([11, "now"], [7, 1, 2, 1], "three");
  assert.deepEqual(await peer.next(), [11, "seen"]);
  assert.deepEqual(events, [["volatile", "now"], { first: 1, count: 2 }, "three"]);
});

test("a handler that fails ends its session, and nobody else's", async (t) => {
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
    while ((frame = await peer.next())[0] !== 8) peer.write([3, 0]);
    assert.deepEqual(frame.slice(0, 3), [8, 1011, "internal error"], how);
  }
  other.write([4, 1, 0, 0]);
  assert.deepEqual(await other.next(), [5, 1, 0, 0]);
});

test("one session more than there may be is told to come back, and who has one resumes it", async (t) => {
  const { app, url } = await serve({ maxSessions: 1 }, echo);
  t.after(() => app.close());
  const [peer, welcome] = await Peer.attached(url);
  const refused = await new Peer(url).opened();
  refused.write(hello());
  assert.deepEqual(await refused.next(), [12, 4413, true, [1000, 30_000]]);
  assert.equal((await refused.closed).code, 4413);
  assert.equal((await new Peer(url, [], true).closed).code, 4413);
  await peer.cut();
  const [, again] = await Peer.attached(url, { resume: [welcome[2], 0, 0, 1] });
  assert.equal(again[4], true);
});

test("in a full server a newcomer takes the place of who has been away for ten seconds", async (t) => {
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
  assert.equal((await Peer.attached(url))[1][1], 4413, "it is on the way back");
  skew = 10_000;
  await Peer.attached(url);
  assert.deepEqual((await closed)[0], { why: "evicted", code: 1006, reason: "its place was needed" });
  there.write([4, 1, 0, 0]);
  assert.deepEqual((await there.next())[0], 5, "who is there keeps its place");
  assert.equal((await Peer.attached(url))[1][1], 4413, "nobody is away");
});

test("plain clients count as sessions, while they are there", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ maxSessions: 1 }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const first = await new Peer(url, [], true).opened();
  while (!sessions.length) await new Promise((resolve) => setImmediate(resolve));
  assert.equal((await new Peer(url, [], true).closed).code, 4413);
  const closed = once(sessions[0]!, "closed");
  await first.cut();
  assert.deepEqual(await closed, [{ why: "lost", code: 1006, reason: "the connection broke without a Close" }]);
  await Peer.attached(url);
});

test("what comes in one piece with HELLO is handed over, in order", async (t) => {
  const { app, url } = await serve({ authenticate: async () => "somebody" }, echo);
  t.after(() => app.close());
  const peer = await new Peer(url).opened();
  const { _socket: tcp } = peer.socket as any;
  tcp.cork();
  peer.write(hello(), "1", "2");
  tcp.uncork();
  assert.deepEqual([await peer.text(), await peer.text()], ["1", "2"]);
});

test("what came before a handler listens waits for it, and then comes at once", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  peer.write([3, 0], "1", "2", [4, 9, 2, 0]);
  assert.deepEqual(await peer.next(), [5, 9, 0, 0], "taken, and not received");
  const heard: unknown[] = [];
  await new Promise<void>((resolve) => sessions[0]!.on("message", (data) => heard.push(data) === 2 && resolve()));
  assert.deepEqual(heard, ["1", "2"]);
});

test("both kinds of client are probed, and their answers are measured", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ heartbeat: 100 }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const peer = new Peer(url);
  peer.socket.on("message", (data: Buffer<ArrayBuffer>) => {
    const frame = decode(data);
    if (frame && "nonce" in frame) peer.write([5, frame.nonce, 0, 0]);
  });
  const pings = [once(peer.socket, "ping")];
  (await peer.opened()).write(hello());
  const plain = await new Peer(url, [], true).opened();
  pings.push(once(plain.socket, "ping"));
  for (const [nonce] of await Promise.all(pings)) assert.equal(nonce.length, 8);
  while (sessions.length < 2 || sessions.some((session) => session.rtt === undefined)) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(sessions.map((session) => session.mode).sort(), ["plain", "session"]);
});

test("what a plain client sends waits for a handler that listens late, and its end is told", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ accept: { messages: 2 } }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const peer = await new Peer(url, ["chat"], true).opened();
  while (!sessions.length) await new Promise((resolve) => setImmediate(resolve));
  peer.write("1", "2", "3", "4", "5");
  const [session] = sessions as [Session];
  assert.deepEqual([session.mode, session.id, session.peer.subprotocol], ["plain", "", "chat"]);
  const heard: unknown[] = [];
  const all = new Promise<void>((resolve) => session.on("message", (data) => heard.push(data) === 5 && resolve()));
  await all;
  assert.deepEqual(heard, ["1", "2", "3", "4", "5"]);
  const closed = once(session, "closed");
  peer.socket.close(3001, "bye");
  assert.deepEqual(await closed, [{ why: "ended", code: 3001, reason: "bye" }]);
});

test("a handler's arguments have types, with and without parameters of the route", async () => {
  const app = Fastify();
  await app.register(mainstay);
  app.get<{ Params: { room: string } }>("/:room", { websocket: true }, (session, request) => {
    const [room, epoch]: [string, number] = [request.params.room, session.epoch];
    session.on("attached", (again) => again + epoch + room.length);
    session.on("closed", ({ why }) => why === "expired");
    // @ts-expect-error: it is not a socket.
    session.readyState;
    // @ts-expect-error: there is no such event.
    session.on("open", () => {});
  });
  app.route({ method: "GET", url: "/route", websocket: true, handler: (session) => session.trySend("x") });
  app.get("/http", async (request) => request.url);
});

test("options are checked at registration, in one line that names the field and its bound", async () => {
  const cases: [object, RegExp][] = [
    [{ heartbeat: 5 }, /^mainstay: heartbeat must be a whole number between 100 and 3600000 ms, not 5$/],
    [{ heartbeat: "25s" }, /heartbeat .* not 25s/],
    [{ resumeWindow: -1 }, /resumeWindow .* between 0 and 86400000 ms/],
    [{ keep: { messages: 0 } }, /keep\.messages .* between 1 and/],
    [{ keep: { message: 1 } }, /no option keep\.message$/],
    [{ accept: 5 }, /accept must be an object/],
    [{ maxMessage: Infinity }, /maxMessage .* bytes, not Infinity/],
    [{ authenticate: "yes" }, /authenticate must be a function/],
    [{ origins: ["example.com"] }, /origins must be "same-host", "any", or a list/],
    [{ dropOldest: 1 }, /dropOldest must be true or false/],
    [{ subprotocols: ["a b"] }, /subprotocols must be a list/],
    [{ hartbeat: 1 }, /there is no option hartbeat/],
  ];
  for (const [options, message] of cases) {
    const app = Fastify();
    await assert.rejects(async () => app.register(mainstay, options), (error: Error) => message.test(error.message) && !error.message.includes("\n"));
  }
});

test("registering over @fastify/websocket says what to do", async () => {
  const app = Fastify();
  // Its types would say that every handler gets a socket.
  const name = "@fastify/websocket";
  await app.register((await import(name)).default);
  await assert.rejects(async () => app.register(mainstay), /^Error: mainstay: registers @fastify\/websocket itself: take yours out/);
});
