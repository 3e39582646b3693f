/** One test for each row of the table in `docs/GUARANTEES.md` "R1 to R17": the plugin's part. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { mainstay, type MainstayOptions, type Session, type SessionHandler } from "@mainstay/fastify";
import { connect } from "@mainstay/fastify/testing";
import Fastify, { type FastifyInstance } from "fastify";
import { Heartbeat, type HeartbeatAction } from "../dist/heartbeat.js";
import { Registry } from "../dist/registry.js";
import { ack, END, endIn, goAway, refusalIn, REFUSE, resumeAt } from "./frames.js";
import { bytes, hello, Peer, randomFrom, serve } from "./peer.js";

const until = async (isTrue: () => boolean) => {
  while (!isTrue()) await new Promise((resolve) => setImmediate(resolve));
};

/** Returns an application with one route, `/`, which only tests in this process reach. */
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

/** Runs a heartbeat in virtual time until `endMs`. Returns when it calls the client dead. */
function life(interval: number, endMs: number, act: (beat: Heartbeat, now: number, action: HeartbeatAction | undefined) => void): { diedAt: number | undefined; evidence?: string } {
  const beat = new Heartbeat(0, interval, randomFrom(3));
  for (let now = 0; now <= endMs; now += 50) {
    act(beat, now, undefined);
    for (let action; (action = beat.handleTimeout(now)); ) {
      if (action.kind === "dead") return { diedAt: now, evidence: action.evidence };
      act(beat, now, action);
    }
  }
  return { diedAt: undefined };
}

test("R1 the heartbeat is armed at the opening: first probes are spread evenly over the interval, later ones +- 10 %, and a route sets its own interval", async (t) => {
  const random = randomFrom(1);
  const firsts: number[] = [];
  const gaps: number[] = [];
  for (let i = 0; i < 10_000; i++) {
    const beat = new Heartbeat(0, 25_000, random);
    firsts.push(beat.pollTimeout());
    const probe = beat.handleTimeout(beat.pollTimeout()) as { nonce: number };
    beat.handleFlushed(firsts.at(-1)!);
    beat.handlePong(firsts.at(-1)!, probe.nonce);
    gaps.push(beat.pollTimeout() - firsts.at(-1)!);
  }
  assert.ok(firsts.every((at) => at >= 0 && at < 25_000));
  const tenths = Array.from({ length: 10 }, (_, tenth) => firsts.filter((at) => Math.floor(at / 2500) === tenth).length);
  assert.ok(tenths.every((count) => count > 850 && count < 1150), tenths.join());
  assert.ok(gaps.every((gap) => gap >= 22_500 && gap <= 27_500) && Math.max(...gaps) - Math.min(...gaps) > 4500);

  const app = Fastify();
  t.after(() => app.close());
  await app.register(mainstay, { heartbeatMs: 30_000 });
  app.get("/slow", { websocket: true }, () => {});
  app.get("/quick", { websocket: true, mainstay: { heartbeatMs: 5000 } }, () => {});
  const url = (await app.listen({ port: 0, host: "127.0.0.1" })).replace("http", "ws");
  assert.equal((await Peer.attached(`${url}/slow`))[1].heartbeatIntervalMs, 30_000);
  assert.equal((await Peer.attached(`${url}/quick`))[1].heartbeatIntervalMs, 5000);
});

test("R2 every client gets an RFC 6455 Ping, and a client of mainstay.v1 also a PING that its script sees, both of at most 125 bytes", async (t) => {
  const { app, url } = await serve({ heartbeatMs: 100 }, () => {});
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

test("R3 an answer belongs to its probe: a stale answer answers no newer probe, any byte is a sign of life, and round trips are measured", async (t) => {
  const beat = new Heartbeat(0, 25_000, () => 0);
  const first = beat.handleTimeout(0) as { nonce: number };
  beat.handleFlushed(0);
  beat.handlePong(40, first.nonce);
  assert.equal(beat.rtt, 40);
  let now = beat.pollTimeout();
  const second = beat.handleTimeout(now) as { nonce: number };
  beat.handleFlushed(now);
  beat.handlePong(now + 10, first.nonce);
  assert.equal(beat.rtt, 40, "a stale answer is no sample");
  assert.ok(beat.isProbing, "a stale answer answers no newer probe");
  beat.handlePong(now + 20, second.nonce + 1);
  assert.ok(beat.isProbing, "an unknown nonce answers no probe");
  for (const end = now + 30_000; now < end; now += 1000) {
    beat.handleBytes(now);
    assert.notEqual(beat.handleTimeout(now)?.kind, "dead");
  }

  const { app, url } = await serve({ heartbeatMs: 100 }, () => {});
  t.after(() => app.close());
  await new Peer(url, [], true).opened();
  await until(() => [...app.mainstay.sessions].some((session) => session.rtt! > 0));
});

test("R4 a client that is gone or frozen is found within interval + deadline + 1 s, and a client that transfers 100 MB at 1 Mbit/s is never called dead", () => {
  for (const interval of [1000, 5000, 25_000]) {
    const gone = life(interval, 120_000, (beat, now, action) => void (action?.kind === "probe" && beat.handleFlushed(now)));
    assert.deepEqual(gone.evidence, "silent");
    assert.ok(gone.diedAt! <= interval * 1.1 + 5000 + 1000, `${interval}: ${gone.diedAt}`);
  }
  // The client accepts no bytes: the probe cannot leave.
  const stalled = life(25_000, 600_000, () => {});
  assert.equal(stalled.evidence, "stalled");
  assert.ok(stalled.diedAt! <= 27_500 + 20_000 + 1000, `${stalled.diedAt}`);
  // A transfer of 800 s: towards the client, probes wait behind it; from the client, answers do.
  const download = life(25_000, 800_000, (beat, now) => beat.handleWriteProgress(now));
  const upload = life(25_000, 800_000, (beat, now, action) => (action?.kind === "probe" && beat.handleFlushed(now), beat.handleBytes(now)));
  assert.deepEqual([download.diedAt, upload.diedAt], [undefined, undefined]);
});

test("R5 a dead client's connection is dropped at once with one typed reason, and without waiting for a closing handshake", async (t) => {
  const losses: unknown[] = [];
  const { app, url } = await serve({ heartbeatMs: 1000 }, (session) => {
    session.on("detached", (loss) => losses.push([loss, session.request.raw.socket.destroyed]));
    session.on("closed", ({ cause, code }) => losses.push([cause, code, session.request.raw.socket.destroyed]));
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

test("R6 a session whose connection is lost parks, keeps messages and is resumed, and closing spreads the clients over drainMs", async (t) => {
  const app = await build(t, () => {});
  const client = await connect(app, "/");
  await client.detach();
  assert.equal(client.session.state, "parked");
  assert.ok(await client.session.send("kept"));
  await client.resume();
  assert.equal(await client.next(), "kept");

  const { app: draining, url } = await serve({ drainMs: 300 }, () => {});
  const [peer] = await Peer.attached(url);
  const closing = draining.close();
  assert.deepEqual(await peer.next(), goAway("the server is going away, come back", 300, 300));
  await peer.cut();
  await closing;
});

test("R7 the state is explicit: a session is attached, parked or closed, and a closed session stays closed", () => {
  const random = randomFrom(7);
  const config = { heartbeatMs: 1000, resumeWindowMs: 5000, keep: { messages: 4, bytes: 1000 }, accept: { messages: 4, bytes: 1000 }, dropOldest: false };
  const seen = new Set<string>();
  for (let round = 0; round < 300; round++) {
    const registry = new Registry(0, { sessions: 3, tombstones: 3 }, config, bytes);
    const [key, instance] = [bytes(16), bytes(8)];
    let [now, connection, attempt] = [0, 0, 0];
    const answer = registry.handleHello(now, ++connection, "", hello({ key, instance, attempt: ++attempt }));
    assert.ok(answer.kind === "attached");
    const { session } = answer;
    const state = () => (session.closed ? "closed" : session.connection === undefined ? "parked" : "attached");
    for (let step = 0, before = state(); step < 40; step++) {
      now += random() * 2000;
      const act = Math.floor(random() * 7);
      if (act === 0) session.handleLost(now, connection);
      else if (act === 1) registry.handleHello(now, ++connection, "", hello({ key, instance, attempt: ++attempt }));
      else if (act === 2) session.close(now, 1000, "");
      else if (act === 3) session.evict("no room");
      else if (act === 4) session.send("x");
      else if (act === 5) session.handleTimeout(now);
      else while (session.connection !== undefined && session.pollTransmit(now, session.connection) !== undefined);
      const after = state();
      seen.add(`${before} ${after}`);
      assert.ok(before !== "closed" || after === "closed");
      assert.ok(after !== "closed" || !session.send("more"));
      before = after;
    }
  }
  assert.deepEqual([...seen].sort(), ["attached attached", "attached closed", "attached parked", "closed closed", "parked attached", "parked closed", "parked parked"].filter((pair) => seen.has(pair)));
  assert.ok(["attached parked", "attached closed", "parked closed"].every((pair) => seen.has(pair)), [...seen].join());
});

test("R8 a pause of this process is no evidence about a client: after it the heartbeat reads and probes first, and decides within one deadline", () => {
  const beat = new Heartbeat(0, 25_000, () => 0);
  beat.handleTimeout(0);
  beat.handleFlushed(0);
  const woke = 600_000;
  assert.deepEqual(beat.handleTimeout(woke), { kind: "drain" });
  const probe = beat.handleTimeout(woke) as { kind: string; nonce: number };
  assert.equal(probe.kind, "probe");
  beat.handleFlushed(woke);
  assert.equal(beat.handleTimeout(woke + 4900), undefined);
  assert.equal(beat.handleTimeout(woke + 5000)?.kind, "drain", "what is readable is read first");
  assert.deepEqual(beat.handleTimeout(woke + 5000), { kind: "dead", evidence: "silent" });
});

test("R9 a session never has two live connections: a later one fences the previous one at once", async (t) => {
  const { app, url } = await serve({}, () => {});
  t.after(() => app.close());
  const [key, instance] = [bytes(16), bytes(8)];
  const [first, welcome] = await Peer.attached(url, { key, instance });
  const [second, again] = await Peer.attached(url, { key, instance, attempt: 2, resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.deepEqual([again.epoch, again.resumed], [2, true]);
  assert.equal((await first.closed).code, 4409);
  const [session] = [...app.mainstay.sessions] as [Session];
  assert.ok(session.trySend("to the newest alone"));
  assert.equal(await second.text(), "to the newest alone");
  assert.equal(app.mainstay.sessions.size, 1);
});

test("R10 handlers belong to the session: over 1,000 reconnects one call, the same listeners, each message once, and no growth of the heap", async (t) => {
  const received: unknown[] = [];
  let calls = 0;
  const app = await build(t, (session) => {
    calls++;
    session.on("message", (data) => {
      received.push(data);
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
    // Every second connection is replaced while it is alive.
    if (cycle % 4 < 2) await client.detach();
    await client.resume();
    if (cycle % 2 === 0) back.push(await client.next());
    if (cycle % 250) continue;
    globalThis.gc!();
    heaps.push(process.memoryUsage().heapUsed);
  }
  const all = Array.from({ length: 1000 }, (_, i) => `message ${i + 1}`);
  assert.deepEqual([received, back], [all, all]);
  assert.deepEqual([calls, client.session.epoch, listeners()], [1, 1001, before]);
  // A leak of the connections' objects would be 4.5 MB: 6 KB for each.
  assert.ok(heaps.at(-1)! - heaps[0]! < 2_000_000, heaps.join());
});

test("R11 nothing outlives its owner: after 1,000 sessions and connections no timer and no memory of them is left", async (t) => {
  const app = await build(t, echo, { idleTimeoutMs: 60_000, maxLifetimeMs: 60_000, maxPerIp: 10, tombstones: 10 });
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

test("R12 memory is bounded for a client that reads nothing: senders wait, a room ends its session, and other clients go on", async (t) => {
  const bound = { messages: 1024, bytes: 100_000 };
  const { app, url } = await serve({ keep: bound, accept: bound }, (session) => {
    session.join("all");
    // Does not wait for `send`, as the shortest echo.
    session.on("message", (data) => void session.send(data));
  });
  t.after(() => app.close());
  const [stuck] = await Peer.attached(url, { window: { messages: 1024, bytes: 10_000_000 } });
  let [sent, acknowledged, most] = [0, 0, 0];
  stuck.socket.on("message", (data: Buffer, isBinary) => {
    if (isBinary && data[0] === 3) acknowledged = data[1]! < 64 ? data[1]! : ((data[1]! & 63) << 8) | data[2]!;
  });
  // The client sends 20 MB as fast as its window allows, and acknowledges no echo.
  const text = "x".repeat(10_000);
  for (let idle = 0; sent < 2000 && idle < 500; idle++) {
    for (; sent - acknowledged < 8 && sent < 2000; idle = 0) stuck.write(text), sent++;
    most = Math.max(most, app.mainstay.stats().queueBytes);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.ok(sent < 60 && most <= 220_000, `${sent} sent, ${most} bytes kept`);
  const [reader] = await Peer.attached(url);
  reader.write("hello");
  assert.equal(await reader.text(), "hello");
  assert.equal(app.mainstay.to("all").send("y".repeat(90_000)).disconnected, 1);
  assert.equal((await reader.text()).length, 90_000);
});

test("R13 exactly once and in order within the resume window, however connections break; after it one gap reports what became of each message", async (t) => {
  const random = randomFrom(13);
  const received: unknown[] = [];
  const app = await build(t, async (session) => {
    for await (const data of session) {
      received.push(data);
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
  assert.deepEqual([received, back], [sent, sent.map((text) => `echo of ${text}`)]);
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

test("R14 a handler that never mentions connections serves its client through every fault", async (t) => {
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

test("R15 idle sessions end with 4500, old connections are asked to move, and connections of one address are limited", async (t) => {
  const { app, url } = await serve({ idleTimeoutMs: 1000, maxPerIp: 2, maxSessions: 3 }, () => {});
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  const plain = await new Peer(url, [], true).opened();
  assert.equal((await new Peer(url, [], true).closed).code, 4413);
  assert.deepEqual(endIn(await peer.next()), [END, 4500, "no message for too long"]);
  assert.equal((await plain.closed).code, 4500);

  const { app: full, url: there } = await serve({ maxSessions: 1 }, () => {});
  t.after(() => full.close());
  await Peer.attached(there);
  assert.deepEqual(refusalIn((await Peer.greeted(there)).answer), [REFUSE, 4413, true]);

  const { app: aging, url: old } = await serve({ maxLifetimeMs: 1000 }, () => {});
  t.after(() => aging.close());
  const [mover] = await Peer.attached(old);
  assert.deepEqual(await mover.next(), goAway("this connection is old, come back", 5000, 15_000));
});

test("R16 the server announces the heartbeat interval at every attach, so that a change needs no release of clients", async (t) => {
  for (const heartbeatMs of [100, 60_000]) {
    const { app, url } = await serve({ heartbeatMs }, () => {});
    t.after(() => app.close());
    const [peer, welcome] = await Peer.attached(url);
    assert.equal(welcome.heartbeatIntervalMs, heartbeatMs);
    if (heartbeatMs > 100) continue;
    let beats = 0;
    peer.socket.on("message", (data: Buffer) => void (data[0] === 4 && beats++));
    await until(() => beats > 2);
  }
});

test("R17 one line registers the plugin, hooks run before every upgrade, closing closes every connection, and the tests run the example of 15 lines", async (t) => {
  const example = fileURLToPath(new URL("../examples/echo.mjs", import.meta.url));
  const text = readFileSync(example, "utf8");
  assert.ok(text.trimEnd().split("\n").length <= 15);
  assert.equal(text.match(/^.*\bmainstay\b.*register|register.*\bmainstay\b.*$/gm)?.length, 1);
  const child = spawn(process.execPath, [example], { env: { ...process.env, PORT: "0" }, stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  const [line] = (await once(createInterface(child.stdout), "line")) as [string];
  const [peer] = await Peer.attached(`ws://127.0.0.1:${new URL(line).port}/echo`);
  peer.write(ack(0), "hi");
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
