/**
 * The socket for mini-programs, and that for React Native, as npm carries them, in a bare context: there is the language, timers
 * and what the platform documents, and nothing that browsers and Node have beside that.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";
import { createContext, runInContext } from "node:vm";
import { WebSocket as NodeSocket, WebSocketServer } from "ws";
import { SessionServer } from "./session-server.js";
import { until } from "./support.js";

const LIMIT = { timeout: 40_000 };
const ABSENT = ["EventTarget", "Event", "MessageEvent", "CloseEvent", "AbortController", "URL", "Blob", "crypto", "TextEncoder", "TextDecoder", "queueMicrotask", "WebSocket", "structuredClone", "document", "location"];

/** `wx` as it is documented: `connectSocket` and its task, and the events of the foreground and the network. */
class Mini {
  /** The arguments of `connectSocket` and `getRandomValues`. */
  readonly asked: any[] = [];
  readonly tasks: NodeSocket[] = [];
  readonly listeners: { [name: string]: Set<(result?: any) => void> } = { show: new Set(), network: new Set() };
  onAppShow = (act: () => void) => void this.listeners.show!.add(act);
  offAppShow = (act: () => void) => void this.listeners.show!.delete(act);
  onNetworkStatusChange = (act: () => void) => void this.listeners.network!.add(act);
  offNetworkStatusChange = (act: () => void) => void this.listeners.network!.delete(act);

  constructor(
    private showsHeader = true,
    hasRandomness = true,
  ) {
    if (!hasRandomness) delete this.getRandomValues;
  }

  getRandomValues? = ({ length, success }: any) => {
    this.asked.push({ length });
    setTimeout(() => success({ randomValues: Uint8Array.from({ length }, (_, i) => i).buffer }));
  };

  connectSocket = ({ url, protocols, header, fail }: any) => {
    this.asked.push({ url, protocols, header });
    const socket = new NodeSocket(url, protocols ?? [], { headers: header });
    this.tasks.push(socket);
    socket.binaryType = "arraybuffer";
    let answer: any = {};
    socket.on("upgrade", ({ headers }) => (answer = headers));
    socket.on("error", ({ message }) => fail?.({ errMsg: message }));
    return {
      onOpen: (act: any) => socket.on("open", () => act(this.showsHeader ? { header: answer } : {})),
      onMessage: (act: any) => socket.on("message", (data: any, isBinary: boolean) => act({ data: isBinary ? data : Buffer.from(data).toString() })),
      onClose: (act: any) => socket.on("close", (code, reason) => act({ code, reason: String(reason) })),
      onError: (act: any) => socket.on("error", ({ message }) => act({ errMsg: message })),
      send({ data, complete }: any) {
        assert.ok(typeof data === "string" || Object.prototype.toString.call(data) === "[object ArrayBuffer]", "text or an ArrayBuffer, nothing else");
        socket.send(data, () => complete?.());
      },
      close: ({ code, reason }: any) => socket.close(code, reason),
    };
  };
}

/** The exports of a bundle, loaded without any other global. */
function bare(entry: string, globals: object): any {
  const context = createContext({ setTimeout, clearTimeout, module: { exports: {} }, ...globals });
  for (const name of ABSENT) assert.equal(runInContext(`typeof ${name}`, context), "undefined", name);
  runInContext(readFileSync(new URL(`../dist/${entry}.cjs`, import.meta.url), "utf8"), context);
  return context.module.exports;
}

async function plain(t: TestContext, onConnection: (socket: NodeSocket) => void): Promise<string> {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => false });
  server.on("connection", onConnection);
  await once(server, "listening");
  t.after(() => (server.clients.forEach((client) => client.terminate()), server.close()));
  return `ws://127.0.0.1:${(server.address() as AddressInfo).port}/feed`;
}

for (const [name, showsHeader, hasRandomness] of [
  ["with all that is documented", true, true],
  ["where the server's answer is not shown", false, true],
  ["without randomness", true, false],
] as const) {
  test(`a mini-program has a session that resumes, text and bytes once and in order: ${name}`, LIMIT, async (t) => {
    const server = await SessionServer.open(t);
    server.onHello = (connection, number) => (number === 1 ? connection.welcome() : connection.resume(2, 2, 1));
    server.onMessage = (connection) => connection.acknowledge();
    const wx = new Mini(showsHeader, hasRandomness);
    const { MainstaySocket } = bare("wx", { wx });
    const socket = new MainstaySocket(server.url, [], { header: () => ({ "x-from": "mini" }) });
    t.after(() => socket.close());
    const received: unknown[] = [];
    socket.onmessage = ({ data }: any) => received.push(typeof data === "string" ? data : [...new Uint8Array(data)]);
    socket.send("één 🙂");
    assert.equal(await socket.send(Uint8Array.of(1, 2, 3)).delivered, "delivered");
    const [connection] = server.connections;
    connection!.write("hello");
    await until(() => received.length === 1);
    connection!.cut();
    await until(() => server.connections.length === 2 && socket.status === "attached");
    assert.equal(server.connections[1]!.hello!.resume && socket.stats.connections, 2);
    assert.deepEqual([server.connections[0]!.received, received, socket.mode], [["één 🙂", 3], ["hello"], "session"]);
    const dials = wx.asked.filter(({ url }) => url);
    assert.deepEqual([dials[0].protocols.join(), dials[0].header], ["plain,mainstay.v1", { "x-from": "mini" }]);
    const keys = server.connections.map(({ hello }) => Buffer.from(hello!.key).toString("hex"));
    assert.ok(keys.every((key) => !/^(00)+$/.test(key)), keys.join());
    assert.equal(wx.asked.some(({ length }) => length), hasRandomness);
  });
}

test("a mini-program dials at once when it is shown or the network is back, and listens to nothing after its end", LIMIT, async (t) => {
  const wx = new Mini();
  const { MainstaySocket } = bare("wx", { wx });
  const socket = new MainstaySocket("ws://127.0.0.1:9/");
  t.after(() => socket.close());
  const reasons: string[] = [];
  socket.on("status", ({ reason }: any) => reason && reasons.push(reason));
  for (const act of [() => wx.listeners.show!.forEach((call) => call()), () => wx.listeners.network!.forEach((call) => call({ isConnected: true }))]) {
    await until(() => socket.status === "waiting");
    act();
    assert.equal(socket.status, "connecting");
  }
  assert.match(reasons[0]!, /ECONNREFUSED/, "the status has the reason");
  socket.close();
  await until(() => socket.status === "ended");
  assert.deepEqual([wx.listeners.show!.size, wx.listeners.network!.size], [0, 0]);
});

test("a mini-program speaks to a plain server that answers no subprotocol, and gets the reason of a refusal", LIMIT, async (t) => {
  const url = await plain(t, (peer) => {
    peer.send(Uint8Array.of(7));
    peer.send("you may not come in");
    peer.close(4501, "not you");
  });
  const { MainstaySocket } = bare("wx", { tt: new Mini() });
  const socket = new MainstaySocket(url, [], { wx: new Mini() });
  const received: unknown[] = [];
  socket.on("message", ({ data }: any) => received.push(typeof data === "string" ? data : data.byteLength));
  const end = await new Promise<any>((resolve) => socket.on("close", resolve));
  assert.deepEqual([received, end.code, end.reason], [[1, "you may not come in"], 4501, "not you"]);
});

test("the folder that a mini-program's tools copy has the file of each import", () => {
  const { miniprogram } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
  const read = (name: string) => readFileSync(new URL(`../${miniprogram}/${name}`, import.meta.url), "utf8");
  assert.equal(read("wx.js"), readFileSync(new URL("../dist/wx.cjs", import.meta.url), "utf8"));
  assert.match(read("index.js"), /require\("\.\/wx\.js"\)/);
});

test("without connectSocket the constructor throws and states which option to pass", () => {
  const { MainstaySocket } = bare("wx", {});
  assert.throws(() => new MainstaySocket("wss://example.com"), /wx\.connectSocket/);
});

test("a listener that throws affects no other, a listener for one event is called once, and one that is an object is called", LIMIT, async (t) => {
  const url = await plain(t, (peer) => ["1", "2", "3"].forEach((text) => peer.send(text)));
  const thrown: unknown[] = [];
  const later = (act: () => void, ms?: number) =>
    setTimeout(() => {
      try {
        act();
      } catch (error) {
        thrown.push(error);
      }
    }, ms);
  const { MainstaySocket } = bare("wx", { setTimeout: later });
  const socket = new MainstaySocket(url, [], { wx: new Mini() });
  t.after(() => socket.close());
  const received: string[] = [];
  socket.addEventListener("message", () => {
    throw new Error("mine");
  });
  socket.addEventListener("message", ({ data }: any) => received.push(`once ${data}`), { once: true });
  socket.addEventListener("message", { handleEvent: ({ data }: any) => received.push(data) });
  await until(() => received.length === 4 && thrown.length === 3);
  assert.deepEqual(received, ["once 1", "1", "2", "3"]);
});

test("React Native, which lacks classes and half of URL, has a session too", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onMessage = (connection) => connection.acknowledge();
  class HalfURL {
    get origin(): string {
      throw new Error("not implemented");
    }
  }
  const context = { setTimeout, clearTimeout, URL: HalfURL, WebSocket: NodeSocket, module: { exports: {} as any } };
  runInContext(readFileSync(new URL("../dist/native.cjs", import.meta.url), "utf8"), createContext(context));
  const { MainstaySocket } = context.module.exports;
  const socket = new MainstaySocket(server.url);
  t.after(() => socket.close());
  const received: unknown[] = [];
  socket.onmessage = ({ data }: any) => received.push(data);
  assert.equal(await socket.send("x").delivered, "delivered");
  server.connections[0]!.write("y");
  await until(() => received.length === 1);
  assert.deepEqual([received, socket.mode, socket.binaryType], [["y"], "session", "arraybuffer"]);
});

test("the text coders for platforms without any agree with those of the platform", async () => {
  const { TextEncoder: Encoder, TextDecoder: Decoder } = await own();
  const texts = ["", "abc", "é€🙂", "\ud800x", "\uffff\u0000", "中文小程序"];
  for (const text of texts) assert.deepEqual([...new Encoder().encode(text)], [...new TextEncoder().encode(text)], text);
  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const decoded = (decoder: { decode(bytes: Uint8Array): string }, bytes: Uint8Array) => {
    try {
      return decoder.decode(bytes);
    } catch {
      return "refused";
    }
  };
  const samples = [...texts.map((text) => new TextEncoder().encode(text))];
  // All pairs, and all beginnings of longer ones with a choice of continuations.
  for (let a = 0; a < 256; a++) for (let b = 0; b < 256; b++) samples.push(Uint8Array.of(a, b));
  for (let a = 0xe0; a < 256; a++) for (const b of [0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0]) for (const c of [0x7f, 0x80, 0xbf, 0xc0]) samples.push(Uint8Array.of(a, b, c), Uint8Array.of(a, b, c, 0x80), Uint8Array.of(a, b, c, 0x41));
  for (const bytes of samples) assert.equal(decoded(new Decoder(), bytes), decoded(strict, bytes), Buffer.from(bytes).toString("hex"));
});

/** The replacements of globals, from the source. */
async function own(): Promise<any> {
  const { build } = await import("esbuild");
  const { outputFiles } = await build({ entryPoints: [new URL("../src/platform.ts", import.meta.url).pathname], bundle: true, format: "cjs", write: false });
  const context = createContext({ setTimeout, module: { exports: {} } });
  runInContext(outputFiles[0]!.text, context);
  return context.module.exports;
}
