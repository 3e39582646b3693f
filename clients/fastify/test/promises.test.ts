/** The rows of the table in `docs/GUARANTEES.md` "What the origin asks for", one test each: what the plugin does for it. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { mainstay, type MainstayOptions, type Session, type SessionHandler } from "@mainstay/fastify";
import { connect } from "@mainstay/fastify/testing";
import type { Hello } from "@mainstay/client/protocol";
import Fastify, { type FastifyInstance } from "fastify";
import { type Action, Heartbeat } from "../dist/heartbeat.js";
import { Registry } from "../dist/registry.js";
import { bytes, frameOf, hello, Peer, randomFrom, serve } from "./peer.js";

const until = async (isTrue: () => boolean) => {
  while (!isTrue()) await new Promise((resolve) => setImmediate(resolve));
};

/** An application with one route, `/`, that nothing reaches but tests in this process. */
async function build(t: TestContext, handler: SessionHandler, options: MainstayOptions = {}): Promise<FastifyInstance> {
  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, options);
  app.get("/", { websocket: true }, handler);
  return app;
}

const echo: SessionHandler = async (session) => {
  for await (const data of session) await session.send(data);
};

/** A client's side of a heartbeat in virtual time: until when it lives, at most `end`. */
function life(interval: number, end: number, act: (beat: Heartbeat, now: number, action: Action | undefined) => void): { diedAt: number | undefined; evidence?: string } {
  const beat = new Heartbeat(0, interval, randomFrom(3));
  for (let now = 0; now <= end; now += 50) {
    act(beat, now, undefined);
    for (let action; (action = beat.timeout(now)); ) {
      if (action.is === "dead") return { diedAt: now, evidence: action.evidence };
      act(beat, now, action);
    }
  }
  return { diedAt: undefined };
}

test("R1 the heartbeat is armed at the opening: first beats are spread evenly over the interval, then +- 10 %, and a route has its own", async (t) => {
  const random = randomFrom(1);
  const firsts: number[] = [];
  const gaps: number[] = [];
  for (let i = 0; i < 10_000; i++) {
    const beat = new Heartbeat(0, 25_000, random);
    firsts.push(beat.dueAt);
    const probe = beat.timeout(beat.dueAt) as { nonce: number };
    beat.flushed(firsts.at(-1)!);
    beat.pong(firsts.at(-1)!, probe.nonce);
    gaps.push(beat.dueAt - firsts.at(-1)!);
  }
  assert.ok(firsts.every((at) => at >= 0 && at < 25_000));
  const tenths = Array.from({ length: 10 }, (_, tenth) => firsts.filter((at) => Math.floor(at / 2500) === tenth).length);
  assert.ok(tenths.every((count) => count > 850 && count < 1150), tenths.join());
  assert.ok(gaps.every((gap) => gap >= 22_500 && gap <= 27_500) && Math.max(...gaps) - Math.min(...gaps) > 4500);

  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { heartbeat: 30_000 });
  app.get("/slow", { websocket: true }, () => {});
  app.get("/quick", { websocket: true, mainstay: { heartbeat: 5000 } }, () => {});
  const url = (await app.listen({ port: 0, host: "127.0.0.1" })).replace("http", "ws");
  assert.equal((await Peer.attached(`${url}/slow`))[1][8], 30_000);
  assert.equal((await Peer.attached(`${url}/quick`))[1][8], 5000);
});

test("R2 a client gets an RFC 6455 Ping, and one of mainstay.v1 a beat that its script sees, both of 125 bytes at most", async (t) => {
  const { app, url } = await serve({ heartbeat: 100 }, () => {});
  t.after(() => app.close());
  const pings: number[] = [];
  const beats: number[] = [];
  const [peer] = await Peer.attached(url);
  peer.socket.on("ping", (data) => pings.push(data.length));
  peer.socket.on("message", (data: Buffer) => data[0] === 4 && beats.push(data.length));
  const plain = await new Peer(url, [], true).opened();
  const plainPings: number[] = [];
  plain.socket.on("ping", (data) => plainPings.push(data.length));
  await until(() => pings.length > 1 && beats.length > 1 && plainPings.length > 1);
  for (const length of [...pings, ...beats, ...plainPings]) assert.ok(length > 0 && length <= 125);
});

test("R3 an answer belongs to its beat: a stale one confirms nothing newer, any byte is life, and round trips are measured", async (t) => {
  const beat = new Heartbeat(0, 25_000, () => 0);
  const first = beat.timeout(0) as { nonce: number };
  beat.flushed(0);
  beat.pong(40, first.nonce);
  assert.equal(beat.rtt, 40);
  let now = beat.dueAt;
  const second = beat.timeout(now) as { nonce: number };
  beat.flushed(now);
  beat.pong(now + 10, first.nonce);
  assert.equal(beat.rtt, 40, "a stale pong is no sample");
  assert.ok(beat.isProbing, "and answers nothing newer");
  beat.pong(now + 20, second.nonce + 1);
  assert.ok(beat.isProbing, "nor does one to a beat that never was");
  for (const end = now + 30_000; now < end; now += 1000) {
    beat.bytes(now);
    assert.notEqual(beat.timeout(now)?.is, "dead");
  }

  const { app, url } = await serve({ heartbeat: 100 }, () => {});
  t.after(() => app.close());
  await new Peer(url, [], true).opened();
  await until(() => [...app.mainstay.sessions].some((session) => session.rtt! > 0));
});

test("R4 a client that is gone or frozen is found within interval + deadline + 1 s, and one that transfers 100 MB at 1 Mbit/s never", () => {
  for (const interval of [1000, 5000, 25_000]) {
    const gone = life(interval, 120_000, (beat, now, action) => void (action?.is === "probe" && beat.flushed(now)));
    assert.deepEqual(gone.evidence, "silent");
    assert.ok(gone.diedAt! <= interval * 1.1 + 5000 + 1000, `${interval}: ${gone.diedAt}`);
  }
  // Takes nothing: the beat cannot leave.
  const stalled = life(25_000, 600_000, () => {});
  assert.equal(stalled.evidence, "stalled");
  assert.ok(stalled.diedAt! <= 27_500 + 20_000 + 1000, `${stalled.diedAt}`);
  // 800 s of a transfer: to the client beats wait behind it, from the client its answers do.
  const download = life(25_000, 800_000, (beat, now) => beat.progress(now));
  const upload = life(25_000, 800_000, (beat, now, action) => (action?.is === "probe" && beat.flushed(now), beat.bytes(now)));
  assert.deepEqual([download.diedAt, upload.diedAt], [undefined, undefined]);
});

test("R5 at the verdict the connection is gone at once, with one typed reason, and no closing handshake is waited for", async (t) => {
  const losses: unknown[] = [];
  const { app, url } = await serve({ heartbeat: 1000 }, (session) => {
    session.on("detached", (loss) => losses.push([loss, session.request.raw.socket.destroyed]));
    session.on("closed", ({ why, code }) => losses.push([why, code, session.request.raw.socket.destroyed]));
  });
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  const plain = await new Peer(url, [], true).opened();
  await until(() => app.mainstay.sessions.size === 2);
  for (const { socket } of [peer, plain]) socket.pause();
  await until(() => losses.length === 2);
  assert.deepEqual(new Set(losses), new Set([[{ code: 4408, reason: "silent: nothing came back after a heartbeat" }, true], ["lost", 4408, true]]));
  for (const { socket } of [peer, plain]) socket.terminate();
});

test("R6 a session whose connection is lost is parked, keeps what is sent and is resumed; a close is spread over a drain, where one is set", async (t) => {
  const app = await build(t, () => {});
  const client = await connect(app, "/");
  await client.detach();
  assert.equal(client.session.state, "parked");
  assert.ok(await client.session.send("kept"));
  await client.resume();
  assert.equal(await client.next(), "kept");

  const { app: draining, url } = await serve({ drain: 300 }, () => {});
  const [peer] = await Peer.attached(url);
  const closing = draining.close();
  assert.deepEqual(await peer.next(), [6, "the server is going away, come back", [0, 300], 300]);
  await peer.cut();
  await closing;
});

test("R7 the state is explicit: whatever happens, a session is attached, parked or over, and over is for good", () => {
  const random = randomFrom(7);
  const config = { heartbeat: 1000, resumeWindow: 5000, keep: { messages: 4, bytes: 1000 }, accept: { messages: 4, bytes: 1000 }, dropOldest: false };
  const seen = new Set<string>();
  for (let round = 0; round < 300; round++) {
    const registry = new Registry(0, { sessions: 3, tombstones: 3 }, config, bytes);
    const [key, instance] = [bytes(16), bytes(8)];
    let [now, connection, attempt] = [0, 0, 0];
    const answer = registry.hello(now, ++connection, "", frameOf(hello({ key, instance, attempt: ++attempt })) as Hello);
    assert.ok(!answer.refuse);
    const { session } = answer;
    const state = () => (session.over ? "over" : session.connection === undefined ? "parked" : "attached");
    for (let step = 0, before = state(); step < 40; step++) {
      now += random() * 2000;
      const act = Math.floor(random() * 7);
      if (act === 0) session.lost(now, connection);
      else if (act === 1) registry.hello(now, ++connection, "", frameOf(hello({ key, instance, attempt: ++attempt })) as Hello);
      else if (act === 2) session.close(now, 1000, "");
      else if (act === 3) session.evict("no room");
      else if (act === 4) session.send("x");
      else if (act === 5) session.timeout(now);
      else while (session.connection !== undefined && session.transmit(now, session.connection) !== undefined);
      const after = state();
      seen.add(`${before} ${after}`);
      assert.ok(before !== "over" || after === "over");
      assert.ok(after !== "over" || !session.send("more"));
      before = after;
    }
  }
  assert.deepEqual([...seen].sort(), ["attached attached", "attached over", "attached parked", "over over", "parked attached", "parked over", "parked parked"].filter((pair) => seen.has(pair)));
  assert.ok(["attached parked", "attached over", "parked over"].every((pair) => seen.has(pair)), [...seen].join());
});

test("R8 a pause of this process is no evidence about a client: it reads and asks first, and judges within a deadline of waking", () => {
  const beat = new Heartbeat(0, 25_000, () => 0);
  beat.timeout(0);
  beat.flushed(0);
  const woke = 600_000;
  assert.deepEqual(beat.timeout(woke), { is: "drain" });
  const probe = beat.timeout(woke) as { is: string; nonce: number };
  assert.equal(probe.is, "probe");
  beat.flushed(woke);
  assert.equal(beat.timeout(woke + 4900), undefined);
  assert.equal(beat.timeout(woke + 5000)?.is, "drain", "what is readable is read before the verdict");
  assert.deepEqual(beat.timeout(woke + 5000), { is: "dead", evidence: "silent" });
});

test("R9 never two live connections in one session: a later one fences the one before it at once", async (t) => {
  const { app, url } = await serve({}, () => {});
  t.after(() => app.close());
  const [key, instance] = [bytes(16), bytes(8)];
  const [first, welcome] = await Peer.attached(url, { key, instance });
  const [second, again] = await Peer.attached(url, { key, instance, attempt: 2, resume: [welcome[2], 0, 0, 1] });
  assert.deepEqual([again[3], again[4]], [2, true]);
  assert.equal((await first.closed).code, 4409);
  const [session] = [...app.mainstay.sessions] as [Session];
  assert.ok(session.trySend("to the newest alone"));
  assert.equal(await second.text(), "to the newest alone");
  assert.equal(app.mainstay.sessions.size, 1);
});

test("R10 handlers belong to the session: 1,000 reconnects, one call, the same listeners, each message once, a flat heap", async (t) => {
  const heard: unknown[] = [];
  let calls = 0;
  const app = await build(t, (session) => {
    calls++;
    session.on("message", (data) => {
      heard.push(data);
      session.send(data);
    });
  });
  const client = await connect(app, "/");
  const listeners = () => [client.session.listenerCount("message"), client.session.eventNames().length];
  const before = listeners();
  const back: unknown[] = [];
  const heaps: number[] = [];
  for (let cycle = 1; cycle <= 1000; cycle++) {
    client.send(`message ${cycle}`);
    if (cycle % 2) back.push(await client.next());
    // Every other connection is replaced while it lives.
    if (cycle % 4 < 2) await client.detach();
    await client.resume();
    if (cycle % 2 === 0) back.push(await client.next());
    if (cycle % 250) continue;
    globalThis.gc!();
    heaps.push(process.memoryUsage().heapUsed);
  }
  const all = Array.from({ length: 1000 }, (_, i) => `message ${i + 1}`);
  assert.deepEqual([heard, back], [all, all]);
  assert.deepEqual([calls, client.session.epoch, listeners()], [1, 1001, before]);
  // A leak of a connection's objects would be 4.5 MB: 6 KB each.
  assert.ok(heaps.at(-1)! - heaps[0]! < 2_000_000, heaps.join());
});

test("R11 nothing outlives its owner: after 1,000 sessions and connections there is no timer and no memory of them", async (t) => {
  const app = await build(t, echo, { idleTimeout: 60_000, maxLifetime: 60_000, maxPerIp: 10, tombstones: 10 });
  const cycle = async () => {
    const client = await connect(app, "/");
    client.session.join("room");
    await client.close();
    const plain = await app.injectWS("/");
    plain.terminate();
    await until(() => app.mainstay.sessions.size === 0);
  };
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
  const none = timers();
  for (let i = 0; i < 100; i++) await cycle();
  globalThis.gc!();
  const heap = process.memoryUsage().heapUsed;
  for (let i = 0; i < 400; i++) await cycle();
  globalThis.gc!();
  assert.ok(process.memoryUsage().heapUsed - heap < 1_500_000, `${process.memoryUsage().heapUsed - heap} bytes`);
  const { sessions, rooms, queueBytes, connections } = app.mainstay.stats();
  assert.deepEqual({ sessions, rooms, queueBytes }, { sessions: { attached: 0, parked: 0, plain: 0 }, rooms: 0, queueBytes: 0 });
  await until(() => app.mainstay.stats().connections === 0);
  assert.ok(connections >= 0 && timers() <= none, `${timers()} timers, ${none} before`);
});

test("R12 memory is bounded whatever a client does not read: its sender waits, a room gives it up, and others go on", async (t) => {
  const bound = { messages: 1024, bytes: 100_000 };
  const { app, url } = await serve({ keep: bound, accept: bound }, (session) => {
    session.join("all");
    // Waits for nobody, as the shortest echo does.
    session.on("message", (data) => void session.send(data));
  });
  t.after(() => app.close());
  const [deaf] = await Peer.attached(url, { window: [1024, 10_000_000] });
  let [sent, taken, most] = [0, 0, 0];
  deaf.socket.on("message", (data: Buffer, isBinary) => {
    if (isBinary && data[0] === 3) taken = data[1]! < 64 ? data[1]! : ((data[1]! & 63) << 8) | data[2]!;
  });
  // It sends 20 MB as fast as it may, and acknowledges nothing that comes back.
  const text = "x".repeat(10_000);
  for (let idle = 0; sent < 2000 && idle < 500; idle++) {
    for (; sent - taken < 8 && sent < 2000; idle = 0) deaf.write(text), sent++;
    most = Math.max(most, app.mainstay.stats().queueBytes);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.ok(sent < 60 && most <= 220_000, `${sent} sent, ${most} bytes kept`);
  const [reader] = await Peer.attached(url);
  reader.write("hello");
  assert.equal(await reader.text(), "hello");
  assert.equal(app.mainstay.to("all").send("y".repeat(90_000)).closed, 1);
  assert.equal((await reader.text()).length, 90_000);
});

test("R13 exactly once and in order within the resume window, however connections break; outside it one gap says what became of each message", async (t) => {
  const random = randomFrom(13);
  const heard: unknown[] = [];
  const app = await build(t, async (session) => {
    for await (const data of session) {
      heard.push(data);
      await session.send(`echo of ${String(data)}`);
    }
  });
  const client = await connect(app, "/");
  const sent: string[] = [];
  const back: unknown[] = [];
  for (let number = 1; number <= 1000; number++) {
    sent.push(`message ${number}`);
    client.send(sent.at(-1)!);
    if (random() < 0.2) await client.detach();
    if (random() < 0.2) await client.resume();
    if (client.session.state !== "attached") continue;
    while (back.length < number) back.push(await client.next());
  }
  if (client.session.state !== "attached") await client.resume();
  while (back.length < sent.length) back.push(await client.next());
  assert.deepEqual([heard, back], [sent, sent.map((text) => `echo of ${text}`)]);
  assert.deepEqual([client.gaps, client.waiting], [[], []]);

  await client.detach();
  await client.session.send("lost 1");
  await client.session.send("lost 2");
  client.send("never sent");
  await client.expire();
  assert.equal(await client.resume(), false);
  const [gap, ...more] = client.gaps;
  assert.deepEqual([gap!.delivered, gap!.unknown, gap!.last, gap!.lost!.count, more], [1000, 1000, 1001, 2, []]);
});

test("R14 a handler without a word about connections serves its client through every fault, and so does a plain route", async (t) => {
  const app = await build(t, async (session) => {
    let count = 0;
    for await (const data of session) await session.send(`${++count}: ${String(data)}`);
  });
  const client = await connect(app, "/");
  for (let number = 1; number <= 60; number++) {
    if (number % 3 === 0) await client.detach();
    client.send("tick");
    if (number % 3 === 0 || number % 3 === 1) await client.resume();
    assert.equal(await client.next(), `${number}: tick`);
  }
  assert.deepEqual([client.gaps, client.end], [[], undefined]);
});

test("R15 who costs and says nothing is sent away: idle sessions with 4500, old connections to another, and an address has so many", async (t) => {
  const { app, url } = await serve({ idleTimeout: 1000, maxPerIp: 2, maxSessions: 3 }, () => {});
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  const plain = await new Peer(url, [], true).opened();
  assert.equal((await new Peer(url, [], true).closed).code, 4413);
  assert.deepEqual((await peer.next()).slice(0, 3), [8, 4500, "no message for too long"]);
  assert.equal((await plain.closed).code, 4500);

  const { app: full, url: there } = await serve({ maxSessions: 1 }, () => {});
  t.after(() => full.close());
  await Peer.attached(there);
  assert.deepEqual((await Peer.attached(there))[1].slice(0, 3), [12, 4413, true]);

  const { app: aging, url: old } = await serve({ maxLifetime: 1000 }, () => {});
  t.after(() => aging.close());
  const [mover] = await Peer.attached(old);
  assert.deepEqual(await mover.next(), [6, "this connection is old, come back", [0, 5000], 15_000]);
});

test("R16 the client hears heartbeats and is told their interval at every attach, so that changing it needs no release of clients", async (t) => {
  for (const heartbeat of [100, 60_000]) {
    const { app, url } = await serve({ heartbeat }, () => {});
    t.after(() => app.close());
    const [peer, welcome] = await Peer.attached(url);
    assert.equal(welcome[8], heartbeat);
    if (heartbeat > 100) continue;
    let beats = 0;
    peer.socket.on("message", (data: Buffer) => void (data[0] === 4 && beats++));
    await until(() => beats > 2);
  }
});

test("R17 one line registers it, hooks run before every upgrade, closing sends everybody away, and the example of 15 lines is what runs", async (t) => {
  const example = fileURLToPath(new URL("../examples/echo.mjs", import.meta.url));
  const text = readFileSync(example, "utf8");
  assert.ok(text.trimEnd().split("\n").length <= 15);
  assert.equal(text.match(/^.*\bmainstay\b.*register|register.*\bmainstay\b.*$/gm)?.length, 1);
  const child = spawn(process.execPath, [example], { env: { ...process.env, PORT: "0" }, stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  const [line] = (await once(createInterface(child.stdout), "line")) as [string];
  const [peer] = await Peer.attached(`ws://127.0.0.1:${new URL(line).port}/echo`);
  peer.write([3, 0], "hi");
  assert.equal(await peer.text(), "hi");
  const exit = once(child, "exit");
  child.kill("SIGTERM");
  assert.equal((await peer.closed).code, 1012);
  assert.deepEqual(await exit, [0, null]);

  let upgrades = 0;
  const app = await build(t, echo);
  app.addHook("onRequest", async () => void upgrades++);
  const client = await connect(app, "/");
  await client.detach();
  await client.resume();
  assert.equal(upgrades, 2);
});
