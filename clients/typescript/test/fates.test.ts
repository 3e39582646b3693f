import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { test } from "node:test";
import { MainstaySocket, type Options } from "@mainstay/client";
import { WebSocket as NodeSocket, WebSocketServer } from "ws";
import { type Account, encode, Type } from "../src/wire.js";

const WebSocket = NodeSocket as unknown as NonNullable<Options["WebSocket"]>;
const bytes = (length: number) => new Uint8Array(length).fill(7);
const welcome = (account?: Account) => encode({ type: Type.Welcome, id: bytes(8), token: bytes(24), epoch: 1, resumed: false, acknowledged: 0, first: 1, resumeWindowMs: 120_000, heartbeatIntervalMs: 25_000, window: { messages: 1024, bytes: 1_048_576 }, account });

test("a message that waits for room when a session is lost has its fate in the next one", async () => {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "mainstay.v1" });
  await once(server, "listening");
  // The first session is lost and accounted for, the second is lost without an account.
  const answers = [welcome(), welcome({ acknowledged: 1, delivered: 1, firstLost: 0, count: 0, cause: 1 }), welcome()];
  server.on("connection", (socket) => {
    socket.once("message", () => socket.send(answers.shift()!));
    socket.on("message", (_, isBinary) => isBinary || socket.terminate());
  });
  const url = `ws://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
  const socket = new MainstaySocket(url, [], { WebSocket, keep: { messages: 1, bytes: 1000 }, whenFull: "wait" });
  socket.on("status", ({ status }) => status === "waiting" && socket.reconnect());
  const [first, second] = [socket.send("first"), socket.send("second")];
  assert.deepEqual([await first.delivered, await second.delivered], ["delivered", "unknown"]);
  socket.suspend();
  for (const client of server.clients) client.terminate();
  server.close();
});

test("a fate counts in the numbers of its session, and messages that are sent again in those of the next", async () => {
  for (const resend of [true, false]) {
    const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "mainstay.v1" });
    await once(server, "listening");
    let connections = 0;
    server.on("connection", (socket) => {
      const isFirst = !connections++;
      // Four messages: the first two are acknowledged, one more is delivered, and one was never written.
      socket.once("message", () => socket.send(welcome(isFirst ? undefined : { acknowledged: 2, delivered: 3, firstLost: 0, count: 0, cause: 1 })));
      socket.on("message", (data, isBinary) => {
        if (!isBinary) socket.send(encode({ type: Type.Ack, acknowledged: 1 }));
        if (`${data}` === "4" && isFirst) setImmediate(() => socket.terminate());
      });
    });
    const url = `ws://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
    const socket = new MainstaySocket(url, [], { WebSocket, resendUndelivered: resend });
    socket.on("status", ({ status }) => status === "waiting" && socket.reconnect());
    const outcomes = await Promise.all(["1", "2", "3", "4"].map((message) => socket.send(message).delivered));
    assert.deepEqual(outcomes, ["delivered", "delivered", "unknown", resend ? "delivered" : "not-delivered"]);
    socket.suspend();
    for (const client of server.clients) client.terminate();
    server.close();
  }
});
