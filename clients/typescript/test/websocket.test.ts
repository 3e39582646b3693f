/**
 * The rules of the platform's `WebSocket`, which both classes follow: towards plain servers, and towards servers of
 * sessions where the rule has another side there. Source: WHATWG "WebSockets", Web IDL, HTML "Event handlers".
 */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";
import { inspect, promisify } from "node:util";
import { MainstaySocket, type SocketEvents } from "@mainstay/client";
import { MainstaySocket as PlainSocket } from "@mainstay/client/plain";
import { WebSocket as Peer, WebSocketServer } from "ws";
import { Type } from "../src/wire.js";
import { SessionServer, WebSocket } from "./session-server.js";
import { until } from "./support.js";

const LIMIT = { timeout: 20_000 };
/** A port without a server. */
const NOWHERE = "ws://127.0.0.1:9/";

type Either = MainstaySocket | PlainSocket;

const SOCKETS = { "@mainstay/client": MainstaySocket, "@mainstay/client/plain": PlainSocket };

/** A test of both classes. */
function each(name: string, act: (t: TestContext, open: (url: string, protocols?: any, options?: object) => Either, Socket: typeof MainstaySocket) => Promise<void> | void): void {
  for (const [entry, Socket] of Object.entries(SOCKETS)) {
    test(`${name}: ${entry}`, LIMIT, (t) => {
      const open = (url: string, protocols?: any, options: object = {}) => {
        const socket = new Socket(url, protocols, { WebSocket, ...options });
        t.after(() => socket.suspend());
        return socket;
      };
      return act(t, open, Socket as typeof MainstaySocket);
    });
  }
}

async function serve(t: TestContext, onConnection: (peer: Peer) => void = () => {}): Promise<string> {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
  server.on("connection", onConnection);
  await once(server, "listening");
  t.after(() => {
    for (const peer of server.clients) peer.terminate();
    server.close();
  });
  return `ws://127.0.0.1:${(server.address() as AddressInfo).port}/`;
}

const echo = (peer: Peer) => peer.on("message", (data, isBinary) => peer.send(data, { binary: isBinary }));

function event<Name extends keyof SocketEvents>(socket: Either, name: Name): Promise<SocketEvents[Name]> {
  return new Promise((resolve) => {
    const stop = socket.on(name, (happened) => (stop(), resolve(happened)));
  });
}

// ---- constructor --------------------------------------------------------------------------------

each("a subprotocol that is no token, or is repeated, is a SyntaxError", (_, open) => {
  const bad = [["x", "x"], ["x", "X"], "a b", "", [""], "\u00e9", "a,b", "a\n", "a/b", "{}", ["ok", "(no)"], {}];
  for (const protocols of bad) {
    assert.throws(() => open(NOWHERE, protocols), (error) => error instanceof DOMException && error.name === "SyntaxError", JSON.stringify(protocols));
  }
  for (const protocols of ["a.b-c_d~!#$%&'*+^`|9", ["x", "y"], [], null, undefined, 2]) open(NOWHERE, protocols);
});

each("a URL of another scheme, with a fragment, or that cannot be read is a SyntaxError; http means ws", (_, open, Socket) => {
  for (const url of ["mailto:a@b", "about:blank", "ftp://a/", "wss:", "ws://a/#", "ws://a/#b", "http://a/#b", "ws://a b/", "/relative", "httpx://a/", "ws://a:99999/"]) {
    assert.throws(() => open(url), (error) => error instanceof DOMException && error.name === "SyntaxError", url);
  }
  assert.equal(open("http://127.0.0.1:9/x?y").url, "ws://127.0.0.1:9/x?y");
  assert.equal(open("https://127.0.0.1:9").url, "wss://127.0.0.1:9/");
  assert.equal(open(new URL("HTTP://127.0.0.1:9/") as any).url, NOWHERE);
  assert.throws(() => new (Socket as any)(), TypeError);
});

each("the result of a function is checked at each attempt, and a bad one is an error and another attempt", async (t, _, Socket) => {
  const url = await serve(t);
  const urls = [`${url}#a`, url];
  const protocols = [["b", "b"], []];
  const socket = new Socket(() => urls.shift() ?? url, () => protocols.shift() ?? [], { WebSocket });
  t.after(() => socket.suspend());
  const errors: unknown[] = [];
  socket.addEventListener("error", ({ error }) => errors.push(error?.name));
  await event(socket, "open");
  assert.deepEqual(errors, ["SyntaxError"]);
});

// ---- close --------------------------------------------------------------------------------------

each("a close code other than 1000 and 3000-4999 is an InvalidAccessError, a reason above 123 bytes a SyntaxError, and neither closes", async (t, open) => {
  const socket = open(await serve(t));
  await event(socket, "open");
  for (const code of [0, 500, 999, 1001, 1005, 1006, 1015, 2999, 5000, 65_536, NaN, -1, "text"]) {
    assert.throws(() => socket.close(code as any), { name: "InvalidAccessError" }, `${code}`);
  }
  for (const reason of ["x".repeat(124), "\u20ac".repeat(42)]) assert.throws(() => socket.close(1000, reason), { name: "SyntaxError" });
  assert.equal(socket.readyState, socket.OPEN);
});

each("a close code and reason reach the server unchanged, and come back in the event, which is clean", async (t, open) => {
  const received: [number, string][] = [];
  const url = await serve(t, (peer) => peer.on("close", (code, reason) => received.push([code, `${reason}`])));
  for (const [code, reason] of [[1000, ""], [3000, "x".repeat(123)], [4999, "\u20ac".repeat(41)], [4001, "\ud800"]] as const) {
    const socket = open(url);
    await event(socket, "open");
    socket.close(code, reason);
    assert.equal(socket.readyState, socket.CLOSING);
    const closed = await event(socket, "close");
    const arrived = reason.replace("\ud800", "\ufffd");
    assert.deepEqual([closed.code, closed.reason, closed.wasClean, socket.readyState], [code, arrived, true, 3]);
    assert.deepEqual(received.pop(), [code, arrived]);
  }
});

each("close comes in a later task, once, and the state is CLOSING until then", async (t, open) => {
  const url = await serve(t);
  for (const isOpen of [true, false]) {
    const socket = open(url);
    if (isOpen) await event(socket, "open");
    let count = 0;
    let opened = 0;
    socket.onopen = () => opened++;
    socket.close();
    socket.close();
    await Promise.resolve();
    assert.equal(socket.readyState, socket.CLOSING);
    const states: number[] = [];
    const received = new Promise<SocketEvents["close"]>((resolve) => {
      socket.onclose = (closed) => {
        count++;
        states.push(socket.readyState);
        socket.close();
        states.push(socket.readyState);
        resolve(closed);
      };
    });
    const { wasClean } = await received;
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual([count, opened, states, wasClean], [1, 0, [3, 3], isOpen]);
  }
});

each("a close with the server's own code is clean; a connection that breaks during the closing handshake is 1006 and not clean", async (t, open) => {
  const saysNo = open(await serve(t, (peer) => peer.close(3000, "signed out")));
  const said = await event(saysNo, "close");
  assert.deepEqual([said.code, said.reason, said.wasClean], [3000, "signed out", true]);

  // Both ends closed at once: the event has the server's code.
  let peer: Peer | undefined;
  const both = open(await serve(t, (opened) => (peer = opened)));
  await event(both, "open");
  await until(() => peer !== undefined);
  peer!.close(4321, "mine");
  both.close(4000, "ours");
  assert.deepEqual([(await event(both, "close")).code], [4321]);

  const breaks = open(await serve(t, (opened) => opened.on("message", () => (opened as any)._socket.destroy())));
  await event(breaks, "open");
  breaks.send("break");
  breaks.close(4000);
  const broken = await event(breaks, "close");
  assert.deepEqual([broken.code, broken.wasClean], [1006, false]);
});

test("a session that both ends closed is clean, whatever the code; one without an answer of its server is not", LIMIT, async (t) => {
  for (const answers of [true, false]) {
    const server = await SessionServer.open(t);
    const socket = new MainstaySocket(server.url, [], { WebSocket });
    await event(socket, "open");
    socket.close(4001, "signed out");
    assert.equal(socket.readyState, socket.CLOSING);
    const closed = event(socket, "close");
    if (answers) server.connections[0]!.write({ type: Type.End, code: 4001, reason: "", acknowledged: 0, delivered: 0 });
    else server.connections[0]!.cut();
    const { code, reason, wasClean } = await closed;
    assert.deepEqual([code, reason, wasClean], [4001, "signed out", answers]);
  }
});

each("after close no message is sent and none is received", async (t, open) => {
  const received: string[] = [];
  let peer: Peer | undefined;
  const socket = open(await serve(t, (opened) => (peer = opened).on("message", (data) => received.push(`${data}`))));
  await event(socket, "open");
  const messages: unknown[] = [];
  socket.onmessage = ({ data }) => messages.push(data);
  socket.send("before");
  socket.close();
  peer!.send("late");
  const late = socket.send("after");
  if (late) assert.equal(await late.delivered, "not-delivered");
  await event(socket, "close");
  socket.send("much later");
  assert.deepEqual([received, messages], [["before"], []]);
});

// ---- send ---------------------------------------------------------------------------------------

each("send accepts any value, and one that is neither bytes nor a Blob becomes text", async (t, open) => {
  const got: unknown[] = [];
  const socket = open(await serve(t, (peer) => peer.on("message", (data, isBinary) => got.push(isBinary ? [...(data as Buffer)] : `${data}`))));
  await event(socket, "open");
  const bytes = Uint8Array.of(1, 2, 3, 4);
  const sent: [value: unknown, arrives: unknown][] = [
    ["", ""], [5, "5"], [null, "null"], [undefined, "undefined"], [{ a: 1 }, "[object Object]"], [["a", "b"], "a,b"], [true, "true"], [10n, "10"],
    [new URL("http://a/"), "http://a/"], [{ byteLength: 2 }, "[object Object]"], ["\ud800x", "\ufffdx"], ["\u{1f600}", "\u{1f600}"],
    [bytes, [1, 2, 3, 4]], [bytes.buffer, [1, 2, 3, 4]], [bytes.subarray(1, 3), [2, 3]], [new DataView(bytes.buffer, 2), [3, 4]], [new ArrayBuffer(0), []],
    [new SharedArrayBuffer(2), [0, 0]], [new Blob([bytes]), [1, 2, 3, 4]], [new File([bytes], "name"), [1, 2, 3, 4]], [new Blob([]), []], ["last", "last"],
  ];
  for (const [value] of sent) socket.send(value as string);
  await until(() => got.length >= sent.length);
  assert.deepEqual(got, sent.map(([, arrives]) => arrives));
  assert.throws(() => (socket as any).send(), TypeError);
  assert.throws(() => socket.send(Symbol("no") as any), TypeError);
});

each("a Blob that cannot be read is an error, and messages sent after it leave", async (t, open) => {
  const got: string[] = [];
  const socket = open(await serve(t, (peer) => peer.on("message", (data) => got.push(`${data}`))));
  await event(socket, "open");
  const blob = new Blob(["x"]);
  blob.arrayBuffer = () => Promise.reject(new Error("the file is gone"));
  const failed = event(socket, "error");
  const sent = socket.send(blob);
  socket.send("next");
  assert.match((await failed).error!.message, /gone/);
  if (sent) assert.equal(await sent.delivered, "not-delivered");
  await until(() => got.length > 0);
  assert.deepEqual(got, ["next"]);
});

each("bufferedAmount is bytes of UTF-8, Blobs counted, and goes down to 0", async (t, open) => {
  const waiting = open(NOWHERE);
  for (const [message, size] of [["\u00e9".repeat(10), 20], ["\u20ac\u20ac", 26], ["\u{1f600}", 30], [new Uint8Array(7), 37], [new Blob(["12345"]), 42], ["x", 43]] as const) {
    waiting.send(message);
    assert.equal(waiting.bufferedAmount, size);
  }
  const socket = open(await serve(t));
  await event(socket, "open");
  socket.send("\u00e9".repeat(10));
  assert.equal(socket.bufferedAmount, 20);
  await until(() => socket.bufferedAmount === 0);
});

// ---- events -------------------------------------------------------------------------------------

each("a handler is a listener from when it is first set; a value that is no object becomes null", async (t, open) => {
  const socket = open(await serve(t, (peer) => peer.send("x")));
  const order: string[] = [];
  for (const type of ["onopen", "onmessage", "onclose", "onerror"] as const) {
    assert.equal(socket[type], null);
    for (const value of [2, ";", undefined, true]) {
      (socket as any)[type] = () => {};
      (socket as any)[type] = value;
      assert.equal(socket[type], null);
    }
    assert.ok(Object.getOwnPropertyDescriptor(Object.getPrototypeOf(socket), type)?.enumerable);
  }
  const notCalled = {};
  (socket as any).onerror = notCalled;
  assert.equal(socket.onerror, notCalled);

  socket.addEventListener("open", () => order.push("first"));
  socket.onopen = () => order.push("never");
  socket.addEventListener("open", () => order.push("third"));
  socket.onopen = function (this: unknown) {
    order.push(this === socket ? "handler" : "another this");
  };
  const removed = () => order.push("removed");
  socket.addEventListener("open", removed);
  socket.removeEventListener("open", removed);
  await event(socket, "open");
  assert.deepEqual(order, ["first", "handler", "third"]);

  socket.onopen = null;
  socket.addEventListener("open", () => order.push("last"));
  order.length = 0;
  socket.onopen = () => order.push("set again");
  socket.dispatchEvent(new Event("open"));
  socket.dispatchEvent(new Event("error"));
  assert.deepEqual(order, ["first", "third", "last", "set again"]);
});

each("events are of the platform's classes, a message has the origin of its server, and Node prints their fields", async (t, open) => {
  const url = await serve(t, (peer) => (peer.send("x"), peer.on("message", () => peer.close(4001, "bye"))));
  const socket = open(url, [], { closeWithPeer: true });
  const [message, attached] = await Promise.all([event(socket, "message"), event(socket, "session")]);
  assert.ok(message instanceof MessageEvent);
  assert.equal(message.origin, url.slice(0, -1));
  assert.match(inspect(attached), /type: 'session'[^]*mode: 'plain'/);
  assert.equal(globalThis.CloseEvent, undefined, "Node 20 has none");
  class CloseEvent extends Event {
    code: number;
    reason: string;
    wasClean: boolean;
    constructor(type: string, { code, reason, wasClean }: any) {
      super(type);
      [this.code, this.reason, this.wasClean] = [code, reason, wasClean];
    }
  }
  for (const isThere of [true, false]) {
    if (isThere) Object.assign(globalThis, { CloseEvent });
    const ends = open(url, [], { closeWithPeer: true });
    await event(ends, "open");
    ends.send("end");
    const closed = await event(ends, "close");
    delete (globalThis as any).CloseEvent;
    assert.equal(closed instanceof CloseEvent, isThere);
    assert.deepEqual([closed.code, closed.reason, closed.wasClean], [4001, "bye", true]);
    assert.match(inspect(closed), /code: 4001/);
  }
});

each("a listener that throws is reported, and breaks nothing, not even if a document rethrows its error", async (t, open) => {
  const thrown: string[] = [];
  process.setUncaughtExceptionCaptureCallback((error) => thrown.push(error.message));
  t.after(() => process.setUncaughtExceptionCaptureCallback(null));
  const socket = open(await serve(t, echo));
  const dispatch = socket.dispatchEvent.bind(socket);
  for (const letsThrough of [false, true]) {
    if (letsThrough) {
      socket.dispatchEvent = (happened) => {
        dispatch(happened);
        if (happened.type === "message") throw new Error("let through");
        return true;
      };
    }
    const seen: unknown[] = [];
    const stop = socket.on("message", ({ data }) => {
      seen.push(data);
      if (data === "1" && !letsThrough) throw new Error("a listener's own");
    });
    socket.send("1");
    socket.send("2");
    await until(() => seen.length === 2);
    assert.deepEqual(seen, ["1", "2"]);
    stop();
  }
  await until(() => thrown.length === 3);
  assert.deepEqual(thrown, ["a listener's own", "let through", "let through"]);
  assert.equal(socket.status, "attached");
});

each("an error without a listener is a warning, and one that repeats is one warning", async (t, _, Socket) => {
  const warned: unknown[] = [];
  t.mock.method(console, "warn", (error: unknown) => warned.push(error));
  const fails = () => {
    throw new Error("no token now");
  };
  const silent = new Socket(fails, [], { WebSocket });
  await until(() => warned.length === 1);
  silent.reconnect();
  await new Promise((resolve) => setImmediate(resolve));
  silent.suspend();
  const full = new Socket(NOWHERE, [], { WebSocket, keep: { messages: 1, bytes: 1000 } });
  for (let i = 0; i < 100; i++) full.send("x");
  full.suspend();
  const received = new Socket(fails, [], { WebSocket });
  await event(received, "error");
  received.suspend();
  assert.deepEqual(warned, ["Error: no token now", "QueueFullError: too many messages wait to be sent"]);
});

test("listeners are typed as those of WebSocket, and each class may stand for it", () => {
  // The compiler is the judge: no type of an event is named here.
  const plain = new PlainSocket(NOWHERE, [], { WebSocket });
  plain.addEventListener("message", (message) => [message.data, message.origin]);
  plain.addEventListener("close", function (closed) {
    return [closed.reason, closed.code.toFixed(), this.url];
  });
  const asPlatforms: globalThis.WebSocket[] = [plain];
  const classes: (typeof globalThis.WebSocket)[] = [MainstaySocket, PlainSocket];
  const socket = new MainstaySocket(NOWHERE, [], { WebSocket });
  const types: string[] = [];
  socket.addEventListener("message", (message) => types.push(message.data, message.origin));
  socket.addEventListener("close", (closed) => types.push(closed.reason, closed.code.toFixed(), `${closed.wasClean}`));
  socket.addEventListener("status", ({ status }) => types.push(status), { once: true });
  socket.addEventListener("open", { handleEvent: (opened) => void types.push(opened.type) });
  socket.addEventListener("an application's own", ({ type }) => types.push(type));
  socket.addEventListener("error", null);
  const listener = ({ code }: { code: number }) => types.push(code.toFixed());
  socket.addEventListener("close", listener);
  socket.removeEventListener("close", listener);
  asPlatforms.push(socket);
  socket.dispatchEvent(new Event("an application's own"));
  assert.deepEqual([types, classes.map(({ name }) => name)], [["an application's own"], ["MainstaySocket", "MainstaySocket"]]);
  for (const each of asPlatforms) each.close();
});

// ---- shape --------------------------------------------------------------------------------------

each("constants, attributes and methods are those of Web IDL, and the class keeps its name", (_, open, Socket) => {
  const socket = open(NOWHERE) as any;
  for (const [value, name] of ["CONNECTING", "OPEN", "CLOSING", "CLOSED"].entries()) {
    for (const target of [Socket as any, Socket.prototype]) {
      assert.throws(() => (target[name] = 9), TypeError);
      assert.equal(target[name], value);
    }
  }
  for (const name of ["url", "readyState", "bufferedAmount", "extensions", "protocol"]) {
    assert.throws(() => (socket[name] = "x"), TypeError, name);
  }
  const listed: string[] = [];
  for (const name in socket) listed.push(name);
  const expected = "CLOSED CLOSING CONNECTING OPEN binaryType bufferedAmount close extensions onclose onerror onmessage onopen protocol readyState send url".split(" ");
  assert.deepEqual(expected.filter((name) => !listed.includes(name)), []);
  socket.binaryType = "notBlobOrArrayBuffer";
  assert.equal(socket.binaryType, "blob");
  socket.binaryType = "arraybuffer";
  assert.equal(socket.binaryType, "arraybuffer");
  assert.equal(Socket.name, "MainstaySocket");
  assert.match(inspect(socket), /MainstaySocket/);
  class Own extends Socket {}
  assert.equal(Own.name, "Own");
});

each("a socket has no member beside the documented ones", (_, open, Socket) => {
  const socket = open(NOWHERE);
  assert.deepEqual(Object.getOwnPropertyNames(socket), []);
  const documented =
    "CLOSED CLOSING CONNECTING OPEN addEventListener binaryType bufferedAmount close constructor extensions mode on onclose once onerror onmessage onopen " +
    "probeNow protocol readyState reconnect rtt send status suspend url authenticate sendVolatile sessionId stats";
  const names = [Socket.prototype, Object.getPrototypeOf(Socket.prototype)].flatMap((prototype) => Object.getOwnPropertyNames(prototype));
  assert.deepEqual(names.filter((name) => !documented.split(" ").includes(name)), []);
});

// ---- the global class ---------------------------------------------------------------------------

const run = promisify(execFile);
const inProcess = (script: string) => run(process.execPath, ["--input-type=module", "-e", script], { cwd: import.meta.dirname, timeout: 15_000 });

for (const entry of Object.keys(SOCKETS)) {
  for (const [what, global] of [["the class itself", "MainstaySocket"], ["a subclass", "class extends MainstaySocket {}"], ["both of two copies", "Copy"], ["a class that makes this one", "class { constructor(...all) { return new MainstaySocket(...all); } }"]]) {
    test(`the global WebSocket may be this class: ${what}, ${entry}`, LIMIT, async (t) => {
      const url = await serve(t, echo);
      const { stdout } = await inProcess(`
        import { WebSocket } from "ws";
        globalThis.WebSocket = WebSocket;
        const { MainstaySocket } = await import("${entry}");
        globalThis.WebSocket = MainstaySocket;
        const { MainstaySocket: Copy } = await import(import.meta.resolve("${entry}") + "?copy");
        globalThis.WebSocket = ${global};
        const socket = new globalThis.WebSocket("${url}");
        socket.onopen = () => socket.send("hello");
        socket.onmessage = ({ data }) => { console.log(data); process.exit(); };
      `);
      assert.equal(stdout.trim(), "hello");
    });
  }

  test(`without any WebSocket the constructor throws and states which option to pass: ${entry}`, LIMIT, async () => {
    const { stdout } = await inProcess(`
      delete globalThis.WebSocket;
      const { MainstaySocket } = await import("${entry}");
      try { new MainstaySocket("ws://127.0.0.1:9/"); } catch (error) { console.log(error.name, error.message); }
      for (const none of [MainstaySocket, {}]) {
        globalThis.WebSocket = none;
        try { new MainstaySocket("ws://127.0.0.1:9/"); } catch (error) { console.log(error.message); }
      }
    `);
    assert.match(stdout, /^TypeError no WebSocket here.*\{ WebSocket \}.*"ws"\nno WebSocket here.*\nno WebSocket here/);
  });

  test(`a class that the platform lacks matters only when it is needed: ${entry}`, LIMIT, async (t) => {
    const url = await serve(t, echo);
    const { stdout } = await inProcess(`
      import { WebSocket } from "ws";
      const { TextEncoder, TextDecoder } = globalThis;
      for (const name of ["TextEncoder", "TextDecoder", "AbortController", "crypto", "DOMException"]) delete globalThis[name];
      const { MainstaySocket } = await import("${entry}");
      Object.assign(globalThis, { TextEncoder, TextDecoder });
      const socket = new MainstaySocket("${url}", [], { WebSocket });
      socket.onopen = () => socket.send("hello");
      socket.onmessage = ({ data }) => { console.log(data); process.exit(); };
    `);
    assert.equal(stdout.trim(), "hello");
  });

  test(`the bundle for browsers sends, ends and refuses in a test that runs it in Node with "ws": ${entry}`, LIMIT, async (t) => {
    const url = await serve(t, echo);
    const script = `
      import { WebSocket } from "${import.meta.resolve("ws")}";
      globalThis.WebSocket = WebSocket;
      console.log(import.meta.resolve("${entry}").includes("/dist/browser/"));
      const { MainstaySocket } = await import("${entry}");
      const socket = new MainstaySocket("${url}");
      try { new MainstaySocket("${url}", ["a", "a"]); } catch (error) { console.log(error.name); }
      socket.onopen = () => socket.send("hello");
      socket.onmessage = ({ data }) => { console.log(data); socket.close(4001, "bye"); };
      socket.onclose = ({ code, reason, wasClean }) => console.log(code, reason, wasClean);
      const refused = new MainstaySocket("ws://127.0.0.1:9/", [], { maxRetries: 0 });
      refused.onclose = ({ code }) => console.log(code);
    `;
    const { stdout } = await run(process.execPath, ["--conditions=browser", "--input-type=module", "-e", script], { cwd: import.meta.dirname, timeout: 15_000 });
    assert.deepEqual(stdout.trim().split("\n").sort(), ["1006", "4001 bye true", "SyntaxError", "hello", "true"]);
  });
}

// ---- readers ------------------------------------------------------------------------------------

for (const kind of ["plain", "session"]) {
  const source = async (t: TestContext, count: number) => {
    const send = (write: (text: string) => void) => {
      for (let i = 0; i < count; i++) write(`${i}`);
    };
    if (kind === "plain") return serve(t, (peer) => send((text) => peer.send(text)));
    const server = await SessionServer.open(t);
    server.onHello = (connection) => (connection.welcome(), send((text) => connection.write(text)));
    return server.url;
  };
  const numbers = (count: number) => Array.from({ length: count }, (_, i) => `${i}`);

  test(`listeners and iterators each get every message, as fast as the slowest iterator: ${kind}`, LIMIT, async (t) => {
    const socket = new MainstaySocket(await source(t, 6), [], { WebSocket });
    t.after(() => socket.suspend());
    const got: { [reader: string]: unknown[] } = { listener: [], handler: [], fast: [], slow: [], leaves: [] };
    socket.addEventListener("message", ({ data }) => got.listener!.push(data));
    socket.onmessage = ({ data }) => got.handler!.push(data);
    const read = async (name: string, ms: number, count = 6) => {
      for await (const data of socket) {
        got[name]!.push(data);
        if (got[name]!.length === count) return;
        if (ms) await new Promise((resolve) => setTimeout(resolve, ms));
      }
    };
    await Promise.all([read("fast", 0), read("slow", 5), read("leaves", 0, 2)]);
    assert.deepEqual(got, { listener: numbers(6), handler: numbers(6), fast: numbers(6), slow: numbers(6), leaves: ["0", "1"] });
  });

  test(`a listener that is set while an iterator reads, or after it left, receives later messages: ${kind}`, LIMIT, async (t) => {
    const socket = new MainstaySocket(await source(t, 6), [], { WebSocket });
    t.after(() => socket.suspend());
    const received: unknown[] = [];
    await assert.rejects(async () => {
      for await (const data of socket) {
        if (data === "2") socket.on("message", (message) => received.push(message.data));
        if (data === "4") throw new Error("a reader's own");
      }
    }, /own/);
    await until(() => received.length === 3);
    assert.deepEqual(received, ["3", "4", "5"]);
  });
}

test("a listener receives at once the messages that an iterator left unread", LIMIT, async (t) => {
  let peer: Peer | undefined;
  const socket = new MainstaySocket(await serve(t, (opened) => (peer = opened)), [], { WebSocket });
  t.after(() => socket.suspend());
  await event(socket, "open");
  const received: unknown[] = [];
  socket.on("message", ({ data }) => received.push(data));
  const reader = socket[Symbol.asyncIterator]();
  const first = reader.next();
  const answered = once(peer!, "pong");
  for (const text of ["1", "2", "3"]) peer!.send(text);
  peer!.ping();
  await Promise.all([first, answered]);
  assert.deepEqual(received, ["1"]);
  await reader.return();
  assert.deepEqual(received, ["1", "2", "3"]);
});

test("for a slow iterator 4 MiB of a plain server's messages are kept, and a gap in their place counts the others", LIMIT, async (t) => {
  const size = 1024;
  const fit = Math.floor(4_194_304 / (size + 64));
  let peer: Peer | undefined;
  const socket = new MainstaySocket(await serve(t, (opened) => (peer = opened)), [], { WebSocket });
  t.after(() => socket.suspend());
  await event(socket, "open");
  const reader = socket[Symbol.asyncIterator]();
  const first = reader.next();
  peer!.send("first");
  assert.equal((await first).value, "first");
  for (let i = 0; i < fit + 100; i++) peer!.send(`${i}`.padEnd(size));
  // All messages have arrived when the answer to the last one has.
  const answered = once(peer!, "pong");
  peer!.ping();
  await answered;
  const gaps: unknown[] = [];
  socket.on("gap", ({ dropped }) => gaps.push(dropped));
  const read: number[] = [];
  for (let i = 0; i < fit; i++) read.push(+(await reader.next()).value);
  assert.deepEqual([read, gaps], [Array.from({ length: fit }, (_, i) => i), []]);
  const behind = reader.next();
  peer!.send("behind");
  assert.equal((await behind).value, "behind");
  assert.deepEqual(gaps, [{ first: fit + 2, count: 100 }]);
});

test("a session without a listener for its messages is not stuck", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  let acknowledged = 0;
  server.onHello = (connection) => {
    connection.welcome();
    for (let i = 0; i < 1000; i++) connection.write(`${i}`);
  };
  const socket = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => socket.suspend());
  await until(() => (acknowledged = socket.stats.acknowledgedToPeer) > 400);
  const gaps: unknown[] = [];
  const received: unknown[] = [];
  socket.on("gap", ({ dropped }) => gaps.push(dropped));
  socket.on("message", ({ data }) => received.push(+data));
  await until(() => received.length > 0 && received.at(-1) === 999);
  const [first] = received as number[];
  assert.deepEqual(gaps, [{ first: 1, count: first }]);
  assert.deepEqual(received, Array.from({ length: 1000 - first! }, (_, i) => first! + i));
  assert.ok(acknowledged > 400);
});
