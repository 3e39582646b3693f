import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import WebSocket from "ws";
import { serve } from "./peer.js";

test("a connection that compresses takes more than it has room for, in order", async (t) => {
  const { app, url } = await serve({ heartbeat: 100, websocket: { perMessageDeflate: true } }, (session) => {
    session.on("message", (data) => session.send(data));
  });
  t.after(() => app.close());
  const socket = new WebSocket(url, { perMessageDeflate: true });
  const words = Array.from({ length: 300 }, (_, i) => `${i} ${randomBytes(5000).toString("hex")}`);
  const heard: string[] = [];
  const done = new Promise<void>((resolve) => socket.on("message", (data) => (heard.push(String(data)), heard.length === words.length && resolve())));
  await new Promise((resolve) => socket.on("open", resolve));
  assert.match(socket.extensions, /deflate/);
  for (const word of words) socket.send(word);
  await done;
  assert.deepEqual(heard, words);
  socket.terminate();
});
