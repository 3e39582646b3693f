/** The sockets as npm carries them, against servers of every kind. */

import assert from "node:assert/strict";
import { getEventListeners, once } from "node:events";
import net from "node:net";
import { after, test } from "node:test";
import { MainstaySocket, type Options, QueueFullError, type SocketEvents } from "@mainstay/client";
import { MainstaySocket as PlainSocket } from "@mainstay/client/plain";
import { WebSocket as NodeSocket, WebSocketServer, type ServerOptions } from "ws";
import { encode, encodeData, Type } from "../src/wire.js";

const WebSocket = NodeSocket as unknown as NonNullable<Options["WebSocket"]>;
const servers: WebSocketServer[] = [];
const rejections: unknown[] = [];
process.on("unhandledRejection", (reason) => rejections.push(reason));
after(() => {
  for (const server of servers) {
    for (const client of server.clients) client.terminate();
    server.close();
  }
  assert.deepEqual(rejections, [], "no rejection goes unhandled");
});

async function serve(onConnection: (socket: NodeSocket) => void, options: ServerOptions = {}): Promise<string> {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", ...options });
  servers.push(server);
  server.on("connection", onConnection);
  await once(server, "listening");
  return `ws://127.0.0.1:${(server.address() as net.AddressInfo).port}/`;
}

const echo = (socket: NodeSocket) => socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));

function next<Name extends keyof SocketEvents>(socket: PlainSocket, type: Name): Promise<SocketEvents[Name]> {
  return new Promise((resolve) => {
    const off = socket.on(type, (event) => {
      off();
      resolve(event);
    });
  });
}

test("a socket has the members of WebSocket", async () => {
  const url = await serve(echo);
  const socket = new MainstaySocket(url, [], { WebSocket });
  assert.deepEqual([MainstaySocket.CONNECTING, MainstaySocket.OPEN, MainstaySocket.CLOSING, MainstaySocket.CLOSED], [0, 1, 2, 3]);
  assert.deepEqual([socket.CONNECTING, socket.OPEN, socket.CLOSING, socket.CLOSED, socket.readyState], [0, 1, 2, 3, 0]);
  assert.deepEqual([socket.url, socket.extensions, socket.protocol, socket.binaryType], [url, "", "", "blob"]);
  const order: string[] = [];
  socket.onopen = () => order.push("open");
  socket.addEventListener("open", () => order.push("open listener"));
  const received = new Promise<unknown>((resolve) => (socket.onmessage = ({ data }) => resolve(data)));
  socket.send("before it is open");
  assert.equal(await received, "before it is open");
  assert.deepEqual([order, socket.readyState, socket.mode], [["open", "open listener"], 1, "plain"]);
  const closed = next(socket, "close");
  socket.close(4001, "done");
  assert.equal(socket.readyState, 2);
  const { code, reason } = await closed;
  assert.deepEqual([code, reason, socket.readyState], [4001, "done", 3]);
});

test("binary messages arrive as the type of binaryType, whatever type was sent", async () => {
  const socket = new MainstaySocket(await serve(echo), [], { WebSocket });
  const bytes = Uint8Array.of(0, 1, 2, 255);
  socket.binaryType = "arraybuffer";
  for (const sent of [bytes, bytes.buffer, new DataView(bytes.buffer, 1, 2), new Blob([bytes])]) {
    const message = next(socket, "message");
    socket.send(sent);
    const { data } = await message;
    assert.ok(data instanceof ArrayBuffer);
    const expected = sent instanceof DataView ? bytes.slice(1, 3) : bytes;
    assert.deepEqual(new Uint8Array(data), expected);
  }
  socket.binaryType = "blob";
  const message = next(socket, "message");
  socket.send(bytes);
  const { data } = await message;
  assert.ok(data instanceof Blob);
  assert.deepEqual(new Uint8Array(await data.arrayBuffer()), bytes);
  await socket[Symbol.asyncDispose]();
});

test("a Blob keeps its place among the messages", async () => {
  const socket = new MainstaySocket(await serve(echo), [], { WebSocket });
  socket.binaryType = "arraybuffer";
  const received: unknown[] = [];
  const all = new Promise<void>((resolve) => socket.on("message", ({ data }) => received.push(typeof data === "string" ? data : "blob") === 3 && resolve()));
  socket.send("first");
  socket.send(new Blob(["second"]));
  socket.send("third");
  await all;
  assert.deepEqual(received, ["first", "blob", "third"]);
  socket.close();
});

test("the application may change bytes after it has sent them", async () => {
  const socket = new MainstaySocket(await serve(echo), [], { WebSocket });
  socket.binaryType = "arraybuffer";
  const bytes = Uint8Array.of(1, 2, 3);
  const message = next(socket, "message");
  socket.send(bytes);
  bytes.fill(9);
  assert.deepEqual(new Uint8Array((await message).data), Uint8Array.of(1, 2, 3));
  socket.close();
});

test("an option out of its range is refused, by name and bound", () => {
  const ping = { message: "ping", matches: () => true, intervalMs: 0 };
  for (const [options, name] of [
    [{ connectTimeoutMs: -1 }, "connectTimeoutMs"],
    [{ silenceLimitMs: NaN }, "silenceLimitMs"],
    [{ ping }, "ping.intervalMs"],
    [{ keep: { messages: 0, bytes: 1000 } }, "keep.messages"],
  ] as [Options, string][]) {
    assert.throws(() => new MainstaySocket("ws://127.0.0.1:9/", [], options), { name: "RangeError", message: new RegExp(`^${name.replace(/[[\].]/g, "\\$&")} is .*: at least 1`) });
  }
});

test("an option of a wrong type is refused by its name", () => {
  const make = (options: object) => () => new MainstaySocket("ws://127.0.0.1:9/", [], { WebSocket, ...options });
  for (const name of ["greeting", "shouldReconnectOnClose"]) assert.throws(make({ [name]: "hello" }), { name: "TypeError", message: `${name} is no function` });
  for (const maxRetries of [-1, NaN]) assert.throws(make({ maxRetries }), { name: "RangeError", message: `maxRetries is ${maxRetries}: at least 0` });
});

test("functions for url, subprotocols and credentials are called before each attempt, and one that throws is an error and another attempt", async () => {
  const offered: string[] = [];
  const url = await serve((socket) => socket.close(1012), { handleProtocols: (names) => (offered.push([...names].join()), "app") });
  const asked: number[] = [];
  const socket = new MainstaySocket(
    async () => {
      asked.push(asked.length);
      if (asked.length === 2) throw new Error("no token now");
      return `${url}?attempt=${asked.length}`;
    },
    () => ["app"],
    { WebSocket, credentials: () => "secret" },
  );
  const failed = next(socket, "error");
  await next(socket, "open");
  assert.equal(socket.protocol, "app");
  assert.match(socket.url, /attempt=1$/);
  assert.equal((await failed).error?.message, "no token now");
  socket.reconnect();
  await next(socket, "open");
  assert.match(socket.url, /attempt=3$/);
  assert.deepEqual(offered.slice(0, 2), ["app,mainstay.v1+app", "app"], "a plain server is asked once whether it is one");
  socket.close();
});

for (const Socket of [MainstaySocket, PlainSocket]) {
  test(`a message without room is an event, or an error that send throws with that option: ${Socket === PlainSocket ? "plain" : "sessions"}`, async () => {
    const closedPort = "ws://127.0.0.1:9/";
    const socket = new Socket(closedPort, [], { WebSocket, keep: { messages: 2, bytes: 1000 } });
    const failed = next(socket, "error");
    const sent = ["1", "2", "3"].map((text) => socket.send(text));
    const { error } = await failed;
    assert.ok(error instanceof QueueFullError);
    assert.equal(error.data, "3");
    if (sent[2]) assert.equal(await sent[2].delivered, "not-delivered");
    socket.suspend();
    const throwing = new Socket(closedPort, [], { WebSocket, keep: { messages: 2, bytes: 1000 }, whenFull: "throw" });
    for (const text of ["1", "2"]) throwing.send(text);
    assert.throws(() => throwing.send("3"), QueueFullError);
    throwing.suspend();
  });
}

test("a message without room may wait for it", async () => {
  const url = await serve(echo);
  const waiting = new MainstaySocket(url, [], { WebSocket, keep: { messages: 2, bytes: 1000 }, whenFull: "wait" });
  const received: unknown[] = [];
  waiting.on("message", ({ data }) => received.push(data));
  const sent = ["1", "2", "3", "4", "5"].map((text) => waiting.send(text));
  let accepted = false;
  void sent[4]!.accepted.then(() => (accepted = true));
  await Promise.resolve();
  assert.equal(accepted, false);
  await Promise.all(sent.map((message) => message.accepted));
  while (received.length < 5) await next(waiting, "message");
  assert.deepEqual(received, ["1", "2", "3", "4", "5"]);
  waiting.close();
});

test("waiting messages are accepted before the socket closes, a Blob too", async () => {
  const received: string[] = [];
  const url = await serve((socket) => socket.on("message", (data) => received.push(String(data))));
  const socket = new MainstaySocket(url, [], { WebSocket, keep: { messages: 1, bytes: 1000 }, whenFull: "wait" });
  for (const message of ["1", "2", new Blob(["3"])]) socket.send(message);
  const closed = next(socket, "close");
  socket.close();
  assert.equal(socket.readyState, 2);
  const late = socket.send("late");
  await late.accepted;
  assert.equal(await late.delivered, "not-delivered");
  await closed;
  while (received.length < 3) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(received, ["1", "2", "3"]);
});

test("accepted settles for every message that waits, at the end too", async () => {
  const socket = new MainstaySocket(await ending(), [], { WebSocket, keep: { messages: 1, bytes: 1000 }, whenFull: "wait" });
  socket.send("kept");
  const waits = socket.send("waits");
  await Promise.all([waits.accepted, waits.accepted]);
  assert.equal(await waits.delivered, "not-delivered");
});

test("the outcome towards a plain peer is unknown, for the last messages before a close too", async () => {
  const url = await serve(echo);
  const socket = new MainstaySocket(url, [], { WebSocket });
  assert.equal(await socket.send("x").delivered, "unknown");
  socket.close();
  const brief = new MainstaySocket(url, [], { WebSocket });
  const { delivered } = brief.send("hello and goodbye");
  brief.close();
  assert.equal(await delivered, "unknown");
});

test("messages that wait for a server that refuses are not delivered", async () => {
  const socket = new MainstaySocket(await ending(), [], { WebSocket });
  const sent = Array.from({ length: 17 }, (_, number) => socket.send(`${number}`));
  const outcomes = await Promise.all(sent.map(({ delivered }) => delivered));
  assert.deepEqual(outcomes, Array(17).fill("not-delivered"));
  assert.equal(await socket.send("later").delivered, "not-delivered");
});

test("an abort signal closes in order", async () => {
  const abort = new AbortController();
  const socket = new MainstaySocket(await serve(echo), [], { WebSocket, signal: abort.signal });
  await next(socket, "open");
  const closed = next(socket, "close");
  abort.abort();
  assert.equal((await closed).code, 1000);
  assert.equal((await next(new MainstaySocket(socket.url, [], { WebSocket, signal: abort.signal }), "close")).code, 1000);
});

test("after its end a socket listens to nothing", async () => {
  const { signal } = new AbortController();
  const socket = new MainstaySocket(await serve(echo), [], { WebSocket, signal });
  await next(socket, "open");
  assert.equal(getEventListeners(signal, "abort").length, 1);
  const closed = next(socket, "close");
  socket.close();
  await closed;
  await Promise.resolve();
  assert.equal(getEventListeners(signal, "abort").length, 0);
});

test("a server that never answers the handshake costs ten seconds, or what is configured", async () => {
  const silent = net.createServer(() => {}).listen(0, "127.0.0.1");
  await once(silent, "listening");
  const { port } = silent.address() as net.AddressInfo;
  const socket = new PlainSocket(`ws://127.0.0.1:${port}`, [], { WebSocket, connectTimeoutMs: 100 });
  while ((await next(socket, "status")).reason !== "no answer in time");
  socket.close();
  silent.close();
});

for (const Socket of [MainstaySocket, PlainSocket]) {
  test(`a socket that starts closed dials on reconnect, in the same task too: ${Socket === PlainSocket ? "plain" : "sessions"}`, async () => {
    let connections = 0;
    const url = await serve(() => connections++);
    for (const [count, ask] of [[1, (socket: PlainSocket) => socket.reconnect()], [2, (socket: PlainSocket) => socket.reconnect()]] as const) {
      const socket = new Socket(url, [], { WebSocket, startClosed: true });
      ask(socket as PlainSocket);
      await next(socket, "open");
      socket.suspend();
      const later = new Socket(url, [], { WebSocket, startClosed: true });
      await new Promise((resolve) => setImmediate(resolve));
      assert.deepEqual([later.status, connections], ["suspended", 2 * count - 1]);
      ask(later as PlainSocket);
      await next(later, "open");
      later.suspend();
    }
  });
}

test("a handler that throws affects no other handler", async () => {
  const socket = new MainstaySocket(await serve(echo), [], { WebSocket });
  const seen: unknown[] = [];
  const thrown = new Promise<unknown>((resolve) => process.setUncaughtExceptionCaptureCallback(resolve));
  socket.on("message", ({ data }) => {
    if (data === "1") throw new Error("a handler's own");
    seen.push(data);
  });
  socket.send("1");
  socket.send("2");
  assert.equal(((await thrown) as Error).message, "a handler's own");
  process.setUncaughtExceptionCaptureCallback(null);
  while (!seen.length) await next(socket, "message");
  assert.deepEqual(seen, ["2"]);
  socket.close();
});

test("a connection that was left reports nothing more", async () => {
  const url = await serve((peer) => ["1", "2"].forEach((message) => peer.send(message)));
  const socket = new PlainSocket(url, [], { WebSocket });
  const received: unknown[] = [];
  socket.on("message", ({ data }) => {
    received.push(data);
    socket.suspend();
  });
  await next(socket, "message");
  const server = servers.at(-1)!;
  while (server.clients.size) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual([received, socket.status], [["1"], "suspended"]);
});

test("messages that are sent from a handler keep their order", async () => {
  const socket = new MainstaySocket(await serve(echo), [], { WebSocket });
  const received: string[] = [];
  const all = new Promise<void>((resolve) => {
    socket.on("message", ({ data }) => {
      received.push(data);
      if (data.length < 3) for (const letter of "ab") socket.send(data + letter);
      if (received.length === 7) resolve();
    });
  });
  socket.send("x");
  await all;
  assert.deepEqual(received, ["x", "xa", "xb", "xaa", "xab", "xba", "xbb"]);
  socket.close();
});

test("the async iterator returns the messages in order and ends with the socket", async () => {
  const url = await serve((socket) => {
    for (let i = 0; i < 5; i++) socket.send(`${i}`);
    setImmediate(() => socket.close(1000));
  });
  const socket = new MainstaySocket(url, [], { WebSocket, closeWithPeer: true });
  const received: unknown[] = [];
  for await (const data of socket) received.push(data);
  assert.deepEqual([received, socket.readyState], [["0", "1", "2", "3", "4"], 3]);
});

// ---- servers that break the protocol -----------------------------------------------------------

const session = (act: (socket: NodeSocket) => void) => serve(act, { handleProtocols: () => "mainstay.v1" });
/** A server that refuses each client, with a code that ends it. */
const ending = () => session((socket) => socket.once("message", () => socket.send(encode({ type: Type.Refuse, code: 4501, temporary: false, delay: { earliestMs: 0, latestMs: 0 } }))));
const bytes = (length: number) => new Uint8Array(length).fill(7);
const WELCOME = encode({ type: Type.Welcome, id: bytes(8), token: bytes(24), epoch: 1, resumed: false, acknowledged: 0, first: 1, resumeWindowMs: 120_000, heartbeatIntervalMs: 25_000, window: { messages: 1024, bytes: 1_048_576 } });

test("binary messages of a session arrive as the type of binaryType, volatile ones too", async () => {
  const url = await session((socket) => {
    socket.once("message", () => {
      for (const message of [WELCOME, encodeData(bytes(3)), encode({ type: Type.Volatile, data: bytes(2) })]) socket.send(message);
    });
  });
  const socket = new MainstaySocket(url, [], { WebSocket });
  socket.binaryType = "arraybuffer";
  const [message, volatile] = await Promise.all([next(socket, "message"), next(socket, "volatile")]);
  assert.deepEqual([message.data, volatile.data], [bytes(3).buffer, bytes(2).buffer]);
  socket.suspend();
});

const HOSTILE: [string, (socket: NodeSocket) => void][] = [
  ["garbage", (socket) => socket.send(Uint8Array.of(0x7f, 1, 2, 3))],
  ["text before WELCOME", (socket) => socket.send("hello")],
  ["an empty message", (socket) => socket.send(new Uint8Array())],
  ["a truncated WELCOME", (socket) => socket.send(WELCOME.subarray(0, 20))],
  ["two WELCOMEs", (socket) => (socket.send(WELCOME), socket.send(WELCOME))],
  ["PONG before WELCOME", (socket) => socket.send(encode({ type: Type.Pong, nonce: 1, sent: 0, acknowledged: 0 }))],
  ["an acknowledgement of nothing", (socket) => (socket.send(WELCOME), socket.send(encode({ type: Type.Ack, acknowledged: 9 })))],
];

for (const [name, act] of HOSTILE) {
  test(`a server that sends ${name} is one typed error and another attempt`, async () => {
    let connections = 0;
    const url = await session((socket) => {
      // From the second connection on the server keeps the protocol, so that the client comes back.
      if (connections++) return socket.once("message", () => socket.send(WELCOME));
      socket.once("message", () => act(socket));
    });
    const socket = new MainstaySocket(url, [], { WebSocket });
    const errors: unknown[] = [];
    socket.on("error", ({ error }) => errors.push(error?.name));
    while (connections < 2 || socket.status !== "attached") await next(socket, "status");
    assert.deepEqual(errors, ["ProtocolError"]);
    socket.suspend();
  });
}

test("an attempt fails if the server chooses a subprotocol that was not offered, or answers with an HTTP status", async () => {
  for (const url of [await serve(echo, { handleProtocols: () => "other" }), await serve(echo, { verifyClient: (_, done) => done(false, 403) })]) {
    const socket = new MainstaySocket(url, ["app"], { WebSocket });
    const { code, nextAttemptInMs } = await next(socket, "status").then((first) => (first.code ? first : next(socket, "status")));
    assert.deepEqual([code, nextAttemptInMs! > 0], [1006, true]);
    socket.close();
  }
});

test("a thousand lost connections leave nothing behind", async () => {
  const collect = globalThis.gc;
  if (!collect) return;
  const url = await session((socket) => {
    socket.once("message", () => {
      socket.send(WELCOME);
      setImmediate(() => socket.terminate());
    });
  });
  const heap = () => (collect(), collect(), process.memoryUsage().heapUsed);
  const socket = new MainstaySocket(url, [], { WebSocket });
  socket.on("status", ({ status }) => status === "waiting" && queueMicrotask(() => socket.reconnect()));
  const cycles = async (count: number) => {
    for (let i = 0; i < count; i++) await next(socket, "session");
  };
  await cycles(1000);
  // A leak grows in each round; work that the machine had not finished does not.
  const rounds: number[] = [];
  for (let before = heap(); rounds.length < 3; before = heap()) {
    await cycles(700);
    rounds.push(heap() - before);
  }
  assert.ok(Math.min(...rounds) < 280_000, `${rounds.join(", ")} bytes more after 700 cycles each`);
  socket.suspend();
});
