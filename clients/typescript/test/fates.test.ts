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
