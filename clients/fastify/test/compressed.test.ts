import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import WebSocket from "ws";
import { serve } from "./peer.js";

test("a connection that compresses takes more than it has room for, in order", async (t) => {
  // What compresses well is held by `ws` while the TCP socket has next to nothing to write.
  const words = Array.from({ length: 300 }, (_, i) => `${i} ${"x".repeat(20_000)}`);
  const { app, url } = await serve({ keep: { messages: 2 }, websocket: { perMessageDeflate: true } }, async (session) => {
    for (const word of words) await session.send(word);
  });
  t.after(() => app.close());
  const socket = new WebSocket(url, { perMessageDeflate: true });
  const heard: string[] = [];
  const done = new Promise<void>((resolve) => socket.on("message", (data) => (heard.push(String(data)), heard.length === words.length && resolve())));
  await once(socket, "open");
  assert.match(socket.extensions, /deflate/);
  await done;
  assert.deepEqual(heard, words);
  socket.terminate();
});
