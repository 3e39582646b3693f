/** Limits for clients that follow the protocol: idleness, age, and connections from one address. */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Session } from "@mainstay/fastify";
import WebSocket from "ws";
import { Addresses, type Aging, Lifetimes, networkOf, Parked } from "../dist/limits.js";
import { ack, END, endIn, goAway, refusalIn, REFUSE, resumeAt, WELCOME } from "./frames.js";
import { bytes, Peer, serve } from "./peer.js";

const until = async (isTrue: () => boolean) => {
  while (!isTrue()) await new Promise((resolve) => setImmediate(resolve));
};

/** Watches one session in virtual time, checked each tenth of a second. Returns the reports with their times. */
function watch(limits: { idle?: number; life?: number }, change: (session: { messages: number; connectionId: number | undefined }, now: number) => void, end = 60_000) {
  const session = { messages: 0, connectionId: 1 as number | undefined };
  const reports: [number, string][] = [];
  const lifetimes = new Lifetimes<Aging>(() => 0.5);
  lifetimes.watch(0, session, limits.idle, limits.life);
  for (let now = 0; now <= end; now += 100) {
    change(session, now);
    lifetimes.check(now, (_session, exceeded) => reports.push([now, exceeded]));
  }
  return reports;
}

test("a session is idle after the timeout without a message in either direction, and is reported once", () => {
  assert.deepEqual(watch({ idle: 5000 }, () => {}), [[5000, "idle"]]);
  assert.deepEqual(watch({ idle: 5000 }, (session, now) => void (now === 4000 && session.messages++)), [[9000, "idle"]]);
  assert.deepEqual(watch({ idle: 5000 }, (session, now) => void (now % 4000 || session.messages++), 59_000), []);
});

test("a parked session is not idle, and has the whole timeout again when its client is back", () => {
  const away = (session: { connectionId: number | undefined }, now: number) => {
    if (now === 2000) session.connectionId = undefined;
    if (now === 20_000) session.connectionId = 2;
  };
  assert.deepEqual(watch({ idle: 5000 }, away), [[25_000, "idle"]]);
});

test("an old connection is asked to move and reported 15 s later if it stays, and a new connection starts at age 0", () => {
  assert.deepEqual(watch({ life: 10_000 }, () => {}), [[10_000, "old"], [25_000, "overstayed"]]);
  const moves = (session: { connectionId: number | undefined }, now: number) => void (now === 11_000 && (session.connectionId = 2));
  assert.deepEqual(watch({ life: 10_000 }, moves, 30_000), [[10_000, "old"], [21_000, "old"]]);
});

test("lifetimes differ by up to a fifth, so that connections that were opened together do not leave together", () => {
  const ends = [0, 0.25, 0.5, 0.999].map((random) => {
    const lifetimes = new Lifetimes<Aging>(() => random);
    lifetimes.watch(0, { messages: 0, connectionId: 1 }, undefined, 10_000);
    let end = 0;
    for (let now = 0; !end; now += 100) lifetimes.check(now, () => (end = now));
    return end;
  });
  assert.deepEqual(ends, [8000, 9000, 10_000, 12_000]);
});

test("sessions without a limit are not watched, and forgotten sessions leave nothing behind", () => {
  const lifetimes = new Lifetimes<Aging>(() => 0.5);
  const session = { messages: 0, connectionId: 1 };
  lifetimes.watch(0, session);
  assert.equal(lifetimes.size, 0);
  lifetimes.watch(0, session, 1000);
  assert.deepEqual([lifetimes.size, lifetimes.interval], [1, 100]);
  lifetimes.forget(session);
  assert.equal(lifetimes.size, 0);
});

test("a /64 of IPv6 counts as one client, and a mapped address as its IPv4 address", () => {
  assert.equal(networkOf("192.0.2.7"), "192.0.2.7");
  assert.equal(networkOf("::ffff:192.0.2.7"), "192.0.2.7");
  assert.equal(networkOf("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
  assert.equal(networkOf("2001:0db8:1:2::9"), "2001:db8:1:2::/64");
  assert.equal(networkOf("2001:db8::9"), "2001:db8:0:0::/64");
  assert.equal(networkOf("fe80::1%eth0"), "fe80:0:0:0::/64");
  assert.equal(networkOf("::1"), "0:0:0:0::/64");
  assert.equal(networkOf(""), "");
});

test("addresses and parked sessions leave nothing behind", () => {
  const addresses = new Addresses();
  assert.deepEqual([addresses.enter("a"), addresses.enter("a"), addresses.enter("b")], [1, 2, 1]);
  for (const address of ["a", "a", "b"]) addresses.leave(address);
  assert.deepEqual((addresses as any).counts.size, 0);
  const parked = new Parked<string>();
  assert.deepEqual([parked.enter("1", "a", 2), parked.enter("2", "a", 2), parked.enter("3", "a", 2), parked.enter("4", "b", 2)], [undefined, undefined, "1", undefined]);
  for (const session of ["1", "2", "3", "4", "5"]) parked.leave(session);
  assert.deepEqual([(parked as any).addresses.size, (parked as any).places.size], [0, 0]);
});

test("an idle session ends with 4500, and an idle plain client is closed with 4500", async (t) => {
  const { app, url } = await serve({ idleTimeoutMs: 1000 }, (session) => void session.on("message", (data) => session.send(data)));
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  const plain = await new Peer(url, [], true).opened();
  assert.deepEqual(endIn(await peer.next()), [END, 4500, "no message for too long"]);
  assert.deepEqual(await plain.closed, { code: 4500, reason: "no message for too long" });
  assert.equal(app.mainstay.stats().sentAway.idle, 2);
});

test("an old connection is asked to move and its session goes on over another, and an old plain connection is closed with 1012", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ maxLifetimeMs: 1000 }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const key = bytes(16);
  const instance = bytes(8);
  const [peer, welcome] = await Peer.attached(url, { key, instance });
  const plain = await new Peer(url, [], true).opened();
  peer.write(ack(0));
  assert.deepEqual(await peer.next(), goAway("this connection is old, come back", 5000, 15_000));
  const [, again] = await Peer.attached(url, { key, instance, attempt: 2, resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.equal(again.resumed, true);
  assert.equal((await plain.closed).code, 1012);
  assert.equal(sessions.filter(({ mode }) => mode === "session").length, 1);
});

test("a connection above maxPerIp is asked to come back later, unless it resumes a session", async (t) => {
  const { app, url } = await serve({ maxPerIp: 2 }, () => {});
  t.after(() => app.close());
  const key = bytes(16);
  const instance = bytes(8);
  const [, welcome] = await Peer.attached(url, { key, instance });
  const plain = await new Peer(url, [], true).opened();
  assert.deepEqual(await new Peer(url, [], true).closed, { code: 4413, reason: "too many connections from this address, come back later" });
  assert.deepEqual(refusalIn((await Peer.greeted(url)).answer), [REFUSE, 4413, true]);
  // The client's old connection is half open, and counts.
  const [, again] = await Peer.attached(url, { key, instance, attempt: 2, resume: resumeAt(welcome.token, 0, 0, 1) });
  assert.equal(again.resumed, true);
  assert.equal(app.mainstay.stats().refused.address, 2);
  await plain.cut();
  await until(() => app.mainstay.stats().connections === 1);
  assert.equal((await Peer.greeted(url)).answer.type, WELCOME, "there is room again");
});

test("connections that send no HELLO are refused above twice maxPerIp", async (t) => {
  const { app, url } = await serve({ maxPerIp: 2, openingDeadlineMs: 60_000 }, () => {});
  t.after(() => app.close());
  for (let i = 0; i < 4; i++) await new Peer(url).opened();
  assert.equal((await new Peer(url).closed).code, 4413);
});

test("the clients of a trusted proxy count as different addresses", async (t) => {
  const { app, url } = await serve({ maxPerIp: 1 }, () => {}, { trustProxy: true });
  t.after(() => app.close());
  const open = async (address: string) => {
    const socket = new WebSocket(url, { headers: { "x-forwarded-for": address } });
    const count = app.mainstay.sessions.size;
    let code: unknown;
    socket.on("close", (closed) => (code = closed));
    await until(() => code !== undefined || app.mainstay.sessions.size > count);
    return code ?? "open";
  };
  assert.deepEqual([await open("192.0.2.1"), await open("192.0.2.2"), await open("192.0.2.1")], ["open", "open", 4413]);
});

test("an address with more parked sessions than maxParkedPerIp loses the one that was parked first", async (t) => {
  const ends: string[] = [];
  const { app, url } = await serve({ maxParkedPerIp: 2 }, (session) => void session.on("closed", ({ reason }) => ends.push(`${session.id} ${reason}`)));
  t.after(() => app.close());
  const ids: string[] = [];
  for (let number = 1; number <= 3; number++) {
    const [peer] = await Peer.attached(url);
    ids.push([...app.mainstay.sessions].at(-1)!.id);
    await peer.cut();
    await until(() => app.mainstay.stats().sessions.attached === 0);
  }
  assert.deepEqual(ends, [`${ids[0]} its place was needed`]);
  assert.deepEqual([app.mainstay.sessions.size, app.mainstay.stats().evicted.full], [2, 1]);
});
