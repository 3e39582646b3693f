import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { test } from "node:test";
import { MainstaySocket, type Options } from "@mainstay/client";
import { WebSocket as NodeSocket, WebSocketServer } from "ws";
import { decode, encode, Type } from "../src/wire.js";

const WebSocket = NodeSocket as unknown as NonNullable<Options["WebSocket"]>;
const bytes = (length: number) => new Uint8Array(length).fill(7);
const WELCOME = encode({ type: Type.Welcome, id: bytes(8), token: bytes(24), epoch: 1, resumed: false, acknowledged: 0, first: 1, resumeWindowMs: 120_000, heartbeatIntervalMs: 25_000, window: { messages: 1024, bytes: 1_048_576 } });

/** Returns the credentials of two HELLOs; `accepted` is presented and accepted between them. */
async function presented(credentials: Options["credentials"], accepted: string): Promise<string[]> {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "mainstay.v1" });
  await once(server, "listening");
  const hellos: string[] = [];
  const both = new Promise<void>((resolve) => {
    server.on("connection", (connection) => {
      connection.on("message", (data: Buffer) => {
        const frame = decode(new Uint8Array(data));
        if (frame?.type === Type.Hello && hellos.push(Buffer.from(frame.credentials!).toString()) < 2) connection.send(WELCOME);
        if (frame?.type === Type.Auth) connection.send(encode({ type: Type.AuthResult, accepted: true, expiresInMs: 0 }));
        if (hellos.length === 2) resolve();
      });
    });
  });
  const url = `ws://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
  const socket = new MainstaySocket(url, [], { WebSocket, credentials });
  socket.on("session", () => socket.authenticate(accepted));
  socket.on("authenticated", () => server.clients.forEach((client) => client.terminate()));
  socket.on("status", ({ status }) => status === "waiting" && socket.reconnect());
  await both;
  socket.suspend();
  for (const client of server.clients) client.terminate();
  server.close();
  return hellos;
}

test("credentials that the server accepted later replace those of the options", async () => {
  assert.deepEqual(await presented("old", "new"), ["old", "new"]);
});

test("a function of the options is called again, and its result wins", async () => {
  let asked = 0;
  assert.deepEqual(await presented(() => `asked ${++asked}`, "new"), ["asked 1", "asked 2"]);
});
