/** The next connection goes where the server asks for it, if it may. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { MainstaySocket, type Options } from "@mainstay/client";
import { type ClientConnection, SessionServer, WebSocket } from "./session-server.js";
import { until } from "./support.js";
import { Type } from "../src/wire.js";

const LIMIT = { timeout: 60_000 };

/** The path at which a client of two servers comes back whose first one names an endpoint; undefined: it comes back to the first. */
async function returnsTo(t: any, endpoint: (second: SessionServer) => string, options: Options = {}): Promise<string | undefined> {
  const [first, second] = [await SessionServer.open(t), await SessionServer.open(t)];
  first.onHello = (connection, number) => (number === 1 ? connection.welcome(undefined, undefined, endpoint(second)) : connection.resume(2, 0, 1));
  second.onHello = (connection) => connection.resume(2, 0, 1);
  const socket = new MainstaySocket(`${first.url}/chat?room=1`, [], { WebSocket, ...options });
  t.after(() => socket.close());
  await until(() => socket.status === "attached");
  first.connections[0]!.cut();
  await until(() => first.connections.length + second.connections.length === 2);
  await until(() => socket.status === "attached");
  assert.ok((first.connections[1] ?? second.connections[0])!.hello!.resume, "it presents its token");
  return second.connections[0]?.path;
}

test("a client resumes at the endpoint that the server names on its host, with its own path and query", LIMIT, async (t) => {
  assert.equal(await returnsTo(t, ({ url }) => url), "/chat?room=1");
  assert.equal(await returnsTo(t, ({ url }) => `${url}/other?node=2`), "/other?node=2");
});

test("a client follows to another host only if the application allows it, and nowhere if it forbids it", LIMIT, async (t) => {
  const elsewhere = ({ url }: SessionServer) => url.replace("127.0.0.1", "localhost");
  assert.equal(await returnsTo(t, elsewhere), undefined);
  assert.equal(await returnsTo(t, elsewhere, { follow: true }), "/chat?room=1");
  assert.equal(await returnsTo(t, ({ url }) => url, { follow: false }), undefined);
});

test("no endpoint of another scheme, with credentials or without sense is followed", LIMIT, async (t) => {
  for (const wrong of ["wss://127.0.0.1:1/", "http://127.0.0.1:1/", "/chat", "", "no url"]) assert.equal(await returnsTo(t, () => wrong, { follow: true }), undefined);
  assert.equal(await returnsTo(t, ({ url }) => url.replace("//", "//user:secret@")), undefined);
});

test("an endpoint that cannot be reached is tried once, and the client comes back to its own URL", LIMIT, async (t) => {
  const server = await SessionServer.open(t);
  server.onHello = (connection, number) => (number === 1 ? connection.welcome(undefined, undefined, "ws://127.0.0.1:1") : connection.resume(2, 0, 1));
  const socket = new MainstaySocket(server.url, [], { WebSocket });
  t.after(() => socket.close());
  const urls: string[] = [];
  socket.on("status", () => urls.at(-1) !== socket.url && urls.push(socket.url));
  await until(() => socket.status === "attached");
  server.connections[0]!.cut();
  await until(() => server.connections.length === 2 && socket.status === "attached");
  assert.ok(urls.includes("ws://127.0.0.1:1/"), `${urls}`);
});

test("a client that is asked to leave goes to the endpoint that comes with the request", LIMIT, async (t) => {
  const [first, second] = [await SessionServer.open(t), await SessionServer.open(t)];
  const ask = (connection: ClientConnection) => connection.write({ type: Type.GoAway, reason: "", delay: { earliestMs: 0, latestMs: 1 }, closeInMs: 1000, endpoint: second.url });
  second.onHello = (connection) => connection.resume(2, 0, 1);
  const socket = new MainstaySocket(first.url, [], { WebSocket });
  t.after(() => socket.close());
  await until(() => socket.status === "attached");
  ask(first.connections[0]!);
  await until(() => second.connections.length === 1 && socket.stats.epoch === 2);
});
