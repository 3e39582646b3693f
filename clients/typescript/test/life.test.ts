/** The life of the sockets as npm carries them, over real connections: how each begins, why one fails, and that a process ends. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import net, { type AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";
import { MainstaySocket, type Status } from "@mainstay/client";
import { MainstaySocket as PlainSocket } from "@mainstay/client/plain";
import { WebSocketServer } from "ws";
import { SessionServer, WebSocket } from "./session-server.js";
import { until } from "./support.js";

const LIMIT = { timeout: 40_000 };
const entries = [["@mainstay/client", MainstaySocket], ["@mainstay/client/plain", PlainSocket]] as const;

/** A plain server, and the messages of each of its connections. */
async function plain(t: TestContext, port = 0): Promise<{ url: string; port: number; received: string[][]; cut(): void }> {
  const server = new WebSocketServer({ port, host: "127.0.0.1" });
  const received: string[][] = [];
  server.on("connection", (socket) => {
    const mine: string[] = [];
    received.push(mine);
    socket.on("message", (data) => mine.push(String(data)));
  });
  await once(server, "listening");
  const cut = () => server.clients.forEach((client) => client.terminate());
  t.after(() => (cut(), server.close()));
  const { port: bound } = server.address() as AddressInfo;
  return { url: `ws://127.0.0.1:${bound}`, port: bound, received, cut };
}

for (const [name, Socket] of entries) {
  test(`a greeting is made anew for each connection of a plain server, before the messages of open and those that wait: ${name}`, LIMIT, async (t) => {
    const server = await plain(t);
    let made = 0;
    const greeting = async () => [`hello ${++made}`, new Uint8Array([120])];
    const socket = new Socket(server.url, [], { WebSocket, greeting });
    t.after(() => socket.close());
    socket.on("open", () => socket.send("subscribe"));
    socket.send("1");
    await until(() => server.received[0]?.length === 4);
    server.cut();
    await until(() => socket.status !== "attached");
    socket.send("2");
    await until(() => server.received[1]?.length === 4);
    assert.deepEqual(server.received, [["hello 1", "x", "subscribe", "1"], ["hello 2", "x", "subscribe", "2"]]);
  });

  test(`a socket that starts closed dials when the application asks for it, and not because a page is visible: ${name}`, LIMIT, async (t) => {
    const server = await plain(t);
    const document = ((globalThis as any).document = Object.assign(new EventTarget(), { hidden: false }));
    t.after(() => delete (globalThis as any).document);
    const socket = new Socket(server.url, [], { WebSocket, startClosed: true });
    t.after(() => socket.close());
    socket.send("kept");
    await new Promise((done) => setTimeout(done, 50));
    document.dispatchEvent(new Event("visibilitychange"));
    await new Promise((done) => setTimeout(done, 50));
    assert.deepEqual([socket.status, server.received], ["suspended", []]);
    socket.reconnect();
    await until(() => server.received[0]?.length === 1);
    assert.deepEqual(server.received, [["kept"]]);
  });

  test(`the status reports why a connection cannot be opened, if the class reports it: ${name}`, LIMIT, async (t) => {
    const denying = http.createServer().on("upgrade", (_request, socket) => socket.end("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
    denying.listen(0, "127.0.0.1");
    await once(denying, "listening");
    t.after(() => denying.close());
    const { port } = denying.address() as AddressInfo;
    for (const [url, cause] of [["ws://127.0.0.1:9/", /ECONNREFUSED/], [`ws://127.0.0.1:${port}/`, /401/], [`wss://127.0.0.1:${port}/`, /SSL|EPROTO/]] as const) {
      const socket = new Socket(url, [], { WebSocket, maxRetries: 0 });
      const [{ code, reason }] = (await once(socket as any, "close")) as [CloseEvent];
      assert.equal(code, 1006);
      assert.match(reason, cause);
    }
  });

  test(`a hundred messages touch no timer for each: ${name}`, LIMIT, async (t) => {
    const server = await plain(t);
    const socket = new Socket(server.url, [], { WebSocket });
    t.after(() => socket.close());
    await once(socket as any, "open");
    await until(() => socket.status === "attached");
    const { setTimeout: original } = globalThis;
    let touched = 0;
    globalThis.setTimeout = ((...args: Parameters<typeof original>) => (touched++, original(...args))) as typeof original;
    for (let i = 0; i < 100; i++) socket.send("x");
    globalThis.setTimeout = original;
    assert.ok(touched <= 1, `${touched} timers`);
  });
}

test("a greeting begins each session, and is not sent again when it is resumed", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (connection, number) => (number === 2 ? connection.resume(2, 3, 1) : connection.welcome());
  server.onMessage = (connection) => connection.acknowledge();
  let made = 0;
  const socket = new MainstaySocket(server.url, [], { WebSocket, greeting: () => `hello ${++made}` });
  t.after(() => socket.close());
  socket.on("open", () => socket.send("subscribe"));
  socket.send("1");
  await until(() => server.connections[0]?.received.length === 3);
  server.connections[0]!.cut();
  await until(() => server.connections.length === 2 && socket.status === "attached");
  socket.send("2");
  await until(() => server.connections[1]!.received.length === 1);
  server.connections[1]!.cut();
  await until(() => server.connections[2]?.received.length === 2);
  assert.deepEqual(server.connections.map(({ received }) => received), [["hello 1", "subscribe", "1"], ["2"], ["hello 3", "subscribe"]]);
});

test("a greeting that throws is an error and another attempt", LIMIT, async (t) => {
  const server = await plain(t);
  let asked = 0;
  const greeting = () => {
    if (asked++ === 0) throw new SyntaxError("no token yet");
    return "hello";
  };
  const socket = new MainstaySocket(server.url, [], { WebSocket, greeting });
  t.after(() => socket.close());
  const errors: unknown[] = [];
  socket.on("error", ({ error }) => errors.push(error));
  await until(() => server.received[0]?.length === 1);
  assert.deepEqual([errors.map(String), server.received], [["SyntaxError: no token yet"], [["hello"]]]);
});

test("reconnect leaves with its code, dials at once and asks for the URL again", LIMIT, async (t) => {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  await once(server, "listening");
  t.after(() => server.close());
  const seen: string[] = [];
  server.on("connection", (peer, { url }) => {
    seen.push(`${url}`);
    peer.on("close", (code, reason) => seen.push(`${code} ${reason}`));
  });
  let room = 1;
  const socket = new MainstaySocket(() => `ws://127.0.0.1:${(server.address() as AddressInfo).port}/room/${room}`, [], { WebSocket });
  t.after(() => socket.close());
  await once(socket as any, "open");
  room = 2;
  socket.reconnect(4000, "another room");
  await until(() => seen.length === 3);
  assert.deepEqual(seen.toSorted(), ["/room/1", "/room/2", "4000 another room"]);
  socket.close();
  await once(socket as any, "close");
  socket.reconnect();
  assert.equal(socket.status satisfies Status, "ended");
});

test("a client that is there before its server meets it with an offer: no plain connection is made", LIMIT, async (t) => {
  const place = net.createServer().listen(0, "127.0.0.1");
  await once(place, "listening");
  const { port } = place.address() as AddressInfo;
  place.close();
  await once(place, "close");
  const sockets = Array.from({ length: 8 }, () => new MainstaySocket(`ws://127.0.0.1:${port}`, [], { WebSocket }));
  t.after(() => sockets.forEach((socket) => socket.close()));
  await until(() => sockets.every(({ status }) => status === "waiting"));
  const server = new WebSocketServer({ port, host: "127.0.0.1", handleProtocols: () => "mainstay.v1" });
  t.after(() => (server.clients.forEach((client) => client.terminate()), server.close()));
  const offered: string[] = [];
  server.on("connection", (_peer, { headers }) => offered.push(headers["sec-websocket-protocol"] ?? "none"));
  await until(() => offered.length >= 8);
  assert.deepEqual(new Set(offered), new Set(["plain,mainstay.v1"]));
});

/** Runs a module that holds one socket, and returns after how many milliseconds from its last line the process ended. */
async function endsAfter(entry: string, url: string, act: string, t: TestContext): Promise<number> {
  const client = new URL(`../dist/${entry}.js`, import.meta.url).href;
  const code = `
    import { MainstaySocket } from ${JSON.stringify(client)};
    import { WebSocket } from ${JSON.stringify(new URL("../../node_modules/ws/wrapper.mjs", import.meta.url).href)};
    const socket = new MainstaySocket(${JSON.stringify(url)}, [], { WebSocket });
    ${act}`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", code], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  const exited = once(child, "exit");
  const silent = exited.then(([code]) => assert.fail(`the process ended with ${code} and printed nothing`));
  await Promise.race([once(child.stdout, "data"), silent]);
  const from = performance.now();
  await exited;
  return performance.now() - from;
}

/** A server that answers the opening handshake, and HELLO if it comes, and is then frozen. */
async function frozen(t: TestContext, protocol: string): Promise<string> {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => protocol });
  await once(server, "listening");
  t.after(() => (server.clients.forEach((client) => client.terminate()), server.close()));
  server.on("connection", (peer) => {
    const freeze = () => (peer as any)._socket.pause();
    if (protocol === "plain") return freeze();
    peer.once("message", () => {
      const welcome = [2, 8, ...Array(8).fill(1), 24, ...Array(24).fill(2), 1, 0, 0, 1];
      peer.send(Uint8Array.from([...welcome, 0x80, 1, 0xd4, 0xc0, 0x80, 0, 0x61, 0xa8, 0x44, 0, 0x80, 0x10, 0, 0]));
      setTimeout(freeze, 20);
    });
  });
  return `ws://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

for (const [entry, protocol] of [["index", "mainstay.v1"], ["index", "plain"], ["plain", "plain"]] as const) {
  test(`a process ends soon after all sockets are closed, though its server is frozen: ${entry}, ${protocol}`, LIMIT, async (t) => {
    const url = await frozen(t, protocol);
    const took = await endsAfter(entry, url, 'socket.on("open", () => { console.log("open"); socket.close(); });', t);
    // `ws` waits half a minute by itself; the limits of the client are tested in virtual time.
    assert.ok(took < 20_000, `${took} ms`);
  });
}

test("a process ends at once if a socket is suspended, or was closed while it waited", LIMIT, async (t) => {
  for (const act of ["socket.suspend()", "socket.close()"]) {
    const took = await endsAfter("index", "ws://127.0.0.1:9/", `socket.on("status", ({ status }) => status === "waiting" && (console.log("waits"), ${act}));`, t);
    assert.ok(took < 20_000, `${act}: ${took} ms`);
  }
});
