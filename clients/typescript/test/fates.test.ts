import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { test } from "node:test";
import { MainstaySocket, type Options } from "@mainstay/client";
import { WebSocket as NodeSocket, WebSocketServer } from "ws";
import { type Account, encode, Type } from "../src/wire.js";

const WebSocket = NodeSocket as unknown as NonNullable<Options["WebSocket"]>;
const bytes = (length: number) => new Uint8Array(length).fill(7);
const welcome = (account?: Account) => encode([Type.Welcome, bytes(8), bytes(24), 1, false, 0, 1, 120_000, 25_000, [1024, 1_048_576], account]);

test("what waits for room when a session is lost has the fate of the next one", async () => {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "mainstay.v1" });
  await once(server, "listening");
  // The first session is lost and accounted for, the second lost without a word.
  const answers = [welcome(), welcome([1, 1, 0, 0, 1]), welcome()];
  server.on("connection", (socket) => {
    socket.once("message", () => socket.send(answers.shift()!));
    socket.on("message", (_, isBinary) => isBinary || socket.terminate());
  });
  const url = `ws://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
  const socket = new MainstaySocket(url, [], { WebSocket, keep: [1, 1000], whenFull: "wait" });
  socket.on("status", ({ status }) => status === "waiting" && socket.retryNow());
  const [first, second] = [socket.send("first"), socket.send("second")];
  assert.deepEqual([await first.delivered, await second.delivered], ["delivered", "unknown"]);
  socket.suspend();
  for (const client of server.clients) client.terminate();
  server.close();
});

test("a fate is told by the numbers of its session, and what is sent again by those of the next", async () => {
  for (const resend of [true, false]) {
    const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "mainstay.v1" });
    await once(server, "listening");
    let connections = 0;
    server.on("connection", (socket) => {
      const isFirst = !connections++;
      // Of four, the first was acknowledged, the second delivered, and of the third it is not known.
      socket.once("message", () => socket.send(welcome(isFirst ? undefined : [2, 3, 0, 0, 1])));
      socket.on("message", (data, isBinary) => {
        if (!isBinary) socket.send(encode([Type.Ack, 1]));
        if (`${data}` === "4" && isFirst) setImmediate(() => socket.terminate());
      });
    });
    const url = `ws://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
    const socket = new MainstaySocket(url, [], { WebSocket, resend });
    socket.on("status", ({ status }) => status === "waiting" && socket.retryNow());
    const outcomes = await Promise.all(["1", "2", "3", "4"].map((message) => socket.send(message).delivered));
    assert.deepEqual(outcomes, ["delivered", "delivered", "unknown", resend ? "delivered" : "not delivered"]);
    socket.suspend();
    for (const client of server.clients) client.terminate();
    server.close();
  }
});
