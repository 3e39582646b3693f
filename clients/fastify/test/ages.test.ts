/** Limits on clients that break no rule: silence, age, and how many one address may have. */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Session } from "@mainstay/fastify";
import WebSocket from "ws";
import { Addresses, type Aging, Lifetimes, networkOf, Parked } from "../dist/limits.js";
import { bytes, Peer, serve } from "./peer.js";

const until = async (isTrue: () => boolean) => {
  while (!isTrue()) await new Promise((resolve) => setImmediate(resolve));
};

/** One session in virtual time, looked at each tenth of a second; gives when what was said of it. */
function watch(limits: { idle?: number; life?: number }, change: (session: { messages: number; connectionId: number | undefined }, now: number) => void, end = 60_000) {
  const session = { messages: 0, connectionId: 1 as number | undefined };
  const said: [number, string][] = [];
  const lifetimes = new Lifetimes<Aging>(() => 0.5);
  lifetimes.watch(0, session, limits.idle, limits.life);
  for (let now = 0; now <= end; now += 100) {
    change(session, now);
    lifetimes.look(now, (_session, verdict) => said.push([now, verdict]));
  }
  return said;
}

test("a session is idle when neither direction carried a message for so long, and is told of once", () => {
  assert.deepEqual(watch({ idle: 5000 }, () => {}), [[5000, "idle"]]);
  assert.deepEqual(watch({ idle: 5000 }, (session, now) => void (now === 4000 && session.messages++)), [[9000, "idle"]]);
  assert.deepEqual(watch({ idle: 5000 }, (session, now) => void (now % 4000 || session.messages++), 59_000), []);
});

test("a session whose client is away is not idle, and gets the whole time when it is back", () => {
  const away = (session: { connectionId: number | undefined }, now: number) => {
    if (now === 2000) session.connectionId = undefined;
    if (now === 20_000) session.connectionId = 2;
  };
  assert.deepEqual(watch({ idle: 5000 }, away), [[25_000, "idle"]]);
});

test("an old connection is asked to move, and closed 15 s later if it is still there; a new one is young", () => {
  assert.deepEqual(watch({ life: 10_000 }, () => {}), [[10_000, "old"], [25_000, "overstayed"]]);
  const moves = (session: { connectionId: number | undefined }, now: number) => void (now === 11_000 && (session.connectionId = 2));
  assert.deepEqual(watch({ life: 10_000 }, moves, 30_000), [[10_000, "old"], [21_000, "old"]]);
});

test("ages differ by a fifth either way, so that connections made together do not leave together", () => {
  const ends = [0, 0.25, 0.5, 0.999].map((random) => {
    const lifetimes = new Lifetimes<Aging>(() => random);
    lifetimes.watch(0, { messages: 0, connectionId: 1 }, undefined, 10_000);
    let end = 0;
    for (let now = 0; !end; now += 100) lifetimes.look(now, () => (end = now));
    return end;
  });
  assert.deepEqual(ends, [8000, 9000, 10_000, 12_000]);
});

test("sessions without a limit are not looked at, and those that are over are forgotten", () => {
  const lifetimes = new Lifetimes<Aging>(() => 0.5);
  const session = { messages: 0, connectionId: 1 };
  lifetimes.watch(0, session);
  assert.equal(lifetimes.size, 0);
  lifetimes.watch(0, session, 1000);
  assert.deepEqual([lifetimes.size, lifetimes.interval], [1, 100]);
  lifetimes.forget(session);
  assert.equal(lifetimes.size, 0);
});

test("one IPv6 client is a /64, and a mapped address is the IPv4 address that it is", () => {
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

test("an idle session ends with 4500, an idle plain client is closed with it, and a route may say otherwise", async (t) => {
  const { app, url } = await serve({ idleTimeout: 1000 }, (session) => void session.on("message", (data) => session.send(data)));
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  const plain = await new Peer(url, [], true).opened();
  assert.deepEqual((await peer.next()).slice(0, 3), [8, 4500, "no message for too long"]);
  assert.deepEqual(await plain.closed, { code: 4500, reason: "no message for too long" });
  assert.equal(app.mainstay.stats().sentAway.idle, 2);
});

test("an old connection is told to move and its session goes on over another; an old plain one is closed with 1012", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({ maxLifetime: 1000 }, (session) => void sessions.push(session));
  t.after(() => app.close());
  const key = bytes(16);
  const instance = bytes(8);
  const [peer, welcome] = await Peer.attached(url, { key, instance });
  const plain = await new Peer(url, [], true).opened();
  peer.write([3, 0]);
  assert.deepEqual(await peer.next(), [6, "this connection is old, come back", [0, 5000], 15_000]);
  const [, again] = await Peer.attached(url, { key, instance, attempt: 2, resume: [welcome[2], 0, 0, 1] });
  assert.equal(again[4], true);
  assert.equal((await plain.closed).code, 1012);
  assert.equal(sessions.filter(({ mode }) => mode === "session").length, 1);
});

test("an address has so many connections; one more is told to come back later, whoever resumes gets in", async (t) => {
  const { app, url } = await serve({ maxPerIp: 2 }, () => {});
  t.after(() => app.close());
  const key = bytes(16);
  const instance = bytes(8);
  const [, welcome] = await Peer.attached(url, { key, instance });
  const plain = await new Peer(url, [], true).opened();
  assert.deepEqual(await new Peer(url, [], true).closed, { code: 4413, reason: "too many connections from this address, come back later" });
  assert.deepEqual((await Peer.attached(url))[1].slice(0, 3), [12, 4413, true]);
  // Its old connection is half open, and counts.
  const [, again] = await Peer.attached(url, { key, instance, attempt: 2, resume: [welcome[2], 0, 0, 1] });
  assert.equal(again[4], true);
  assert.equal(app.mainstay.stats().refused.address, 2);
  await plain.cut();
  await until(() => app.mainstay.stats().connections === 1);
  assert.equal((await Peer.attached(url))[1][0], 2, "there is room again");
});

test("connections that say nothing of themselves are not collected beyond twice the limit", async (t) => {
  const { app, url } = await serve({ maxPerIp: 2, openingDeadline: 60_000 }, () => {});
  t.after(() => app.close());
  for (let i = 0; i < 4; i++) await new Peer(url).opened();
  assert.equal((await new Peer(url).closed).code, 4413);
});

test("behind a proxy that is trusted its clients are told apart", async (t) => {
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

test("an address that parks more sessions than it may loses the one that is away for the longest", async (t) => {
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
