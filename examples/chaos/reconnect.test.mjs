// Test my reconnect, with vitest.
import { chaos } from "@mainstay/chaos";
import { MainstaySocket } from "@mainstay/client";
import ReconnectingWebSocket from "reconnecting-websocket";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import WebSocket from "ws";
import { serve } from "./server.mjs";

const SOON = { timeout: 20_000 };
const open = [];
let server;
beforeAll(async () => open.push((server = await serve())));
afterAll(() => Promise.all(open.map((one) => one.close())));

// reconnecting-websocket with what a half-open connection needs: a server that is silent for 3 s is given up. The default wait
// is drawn once for all sockets of a process, so each gets its own.
function watched(url) {
  const socket = new ReconnectingWebSocket(url, [], { WebSocket, minReconnectionDelay: 500 + Math.random() * 2000 });
  let silence;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => socket.reconnect(), 3000);
  };
  for (const event of ["open", "message"]) socket.addEventListener(event, heard);
  return socket;
}

const clients = { "reconnecting-websocket": watched, "@mainstay/client": (url) => new MainstaySocket(url, [], { WebSocket }) };

async function start() {
  const proxy = await chaos({ upstream: server.address, seed: 7 });
  open.push(proxy);
  const count = async () => (await proxy.timeline()).filter(({ event }) => event === "handshake").length;
  const connections = (wanted) => vi.waitFor(async () => expect(await count()).toBeGreaterThanOrEqual(wanted), SOON);
  return { proxy, connections };
}

function follow(name, proxy) {
  const socket = clients[name](proxy.url("/feed"));
  open.push(socket);
  const seen = [];
  socket.addEventListener("message", ({ data }) => seen.push(Number(data)));
  return { seen, more: (from = seen.length) => vi.waitFor(() => expect(seen.length).toBeGreaterThan(from + 10), SOON) };
}

describe.each(Object.keys(clients))("%s", { concurrent: true, timeout: 60_000 }, (name) => {
  test("comes back after a reset and after a half-open connection, and sees nothing twice", async () => {
    const { proxy, connections } = await start();
    const { seen, more } = follow(name, proxy);
    await more();
    await proxy.reset();
    await connections(2);
    await more();
    await proxy.inject({ kind: "black-hole", target: "open" });
    await connections(3);
    await more();
    expect(seen).toEqual([...new Set(seen)].sort((a, b) => a - b));
    if (name === "@mainstay/client") expect(seen.at(-1) - seen[0], "and misses nothing").toBe(seen.length - 1);
  });

  test("twenty clients do not come back in lock-step", async () => {
    const { proxy, connections } = await start();
    await Promise.all(Array.from({ length: 20 }, () => follow(name, proxy).more(0)));
    await proxy.reset();
    await connections(40);
    const times = (await proxy.timeline()).filter(({ event }) => event === "handshake").map(({ at }) => at).slice(20);
    expect(Math.max(...times) - Math.min(...times)).toBeGreaterThan(0.3);
  });
});
