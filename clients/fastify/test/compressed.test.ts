import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import WebSocket from "ws";
import { serve } from "./peer.js";

test("a compressed connection delivers more messages than it has room for, in order", async (t) => {
  // `ws` queues messages for compression, while the TCP socket has next to nothing to write.
  const words = Array.from({ length: 300 }, (_, i) => `${i} ${"x".repeat(20_000)}`);
  const { app, url } = await serve({ keep: { messages: 2 }, websocket: { perMessageDeflate: true } }, async (session) => {
    for (const word of words) await session.send(word);
  });
  t.after(() => app.close());
  const socket = new WebSocket(url, { perMessageDeflate: true });
  const received: string[] = [];
  const done = new Promise<void>((resolve) => socket.on("message", (data) => (received.push(String(data)), received.length === words.length && resolve())));
  await once(socket, "open");
  assert.match(socket.extensions, /deflate/);
  await done;
  assert.deepEqual(received, words);
  socket.terminate();
});
