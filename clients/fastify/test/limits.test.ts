/** The largest message in each direction: a message at the limit passes, a message with one byte more is refused. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { MainstaySocket, type Options } from "@mainstay/client";
import { type Data, encode, encodeData } from "@mainstay/client/protocol";
import { MessageTooLargeError, type Session } from "@mainstay/fastify";
import WebSocket from "ws";
import { ACK, ack, end, ping, PONG, REPLACED, resumeAt, volatile } from "./frames.js";
import { bytes, Peer, serve } from "./peer.js";

const text = (size: number) => "x".repeat(size);
const wide = (size: number) => "é".repeat(size >> 1) + text(size & 1);
const binary = (size: number) => new Uint8Array(size);
const onTheWire = (data: Data) => encodeData(data);
const volatileOnTheWire = (data: Data) => encode(volatile(data));

/** Limits below and above the limit of control messages. */
for (const maxMessage of [1, 10, 1000, 65_536, 100_000]) {
  test(`a message of ${maxMessage} bytes passes and a message of one byte more closes its connection with 1009, if that is maxMessage`, async (t) => {
    const events: unknown[] = [];
    const { app, url } = await serve({ maxMessage }, (session) => {
      session.on("message", (data) => events.push(Buffer.byteLength(data)));
      session.on("volatile", (data) => events.push(Buffer.byteLength(data)));
      session.on("detached", ({ code }) => events.push(`detached ${code}`));
      session.on("closed", ({ cause, code }) => events.push(`${cause} ${code}`));
    });
    t.after(() => app.close());
    const instance = bytes(8);
    for (const make of [text, wide, binary]) {
      for (const [isStream, wrap] of [[true, onTheWire], [false, volatileOnTheWire]] as const) {
        const [peer, welcome] = await Peer.attached(url, { instance });
        assert.equal(welcome.maxMessage, maxMessage);
        peer.socket.send(wrap(make(maxMessage)));
        peer.write(ping(1, +isStream, 0));
        let frame;
        while ((frame = await peer.next()).type === ACK);
        assert.equal(frame.type, PONG);
        peer.socket.send(wrap(make(maxMessage + 1)));
        assert.equal((await peer.closed).code, 1009);
        const [back, again] = await Peer.attached(url, { instance, attempt: 2, resume: resumeAt(welcome.token, 0, 2, 1) });
        assert.equal(again.resumed, true, "the session is kept");
        back.write(end(1000, "", 0, 0));
        await back.closed;
        assert.deepEqual(events.splice(0), [maxMessage, "detached 1009", "ended 1000"]);
      }
      const plain = await new Peer(url, [], true).opened();
      plain.socket.send(make(maxMessage));
      plain.socket.send(make(maxMessage + 1));
      assert.equal((await plain.closed).code, 1009);
      assert.deepEqual(events.splice(0), [maxMessage, "ended 1009"]);
    }
  });
}

test("by default a message may have 1 MiB, and the server announces that limit", async (t) => {
  const { app, url } = await serve({}, (session) => void session.on("message", (data) => session.send(data)));
  t.after(() => app.close());
  const [peer, welcome] = await Peer.attached(url);
  assert.equal(welcome.maxMessage, 1_048_576);
  peer.write(text(1_048_576));
  assert.equal((await peer.text()).length, 1_048_576);
  peer.write(text(1_048_577));
  assert.equal((await peer.closed).code, 1009);
});

test("a HELLO with large credentials may exceed maxMessage", async (t) => {
  const { app, url } = await serve({ maxMessage: 10, authenticate: (credentials) => String(credentials).slice(0, 5) }, (session) => {
    session.send(session.peer.principal);
  });
  t.after(() => app.close());
  const [peer] = await Peer.attached(url, { credentials: `alice${text(60_000)}` });
  assert.equal(await peer.text(), "alice");
});

test("send throws for a message that the client does not accept, and the session goes on", async (t) => {
  const sessions: Session[] = [];
  const { app, url } = await serve({}, (session) => void sessions.push(session));
  t.after(() => app.close());
  const [peer] = await Peer.attached(url, { maxMessage: 1001 });
  const [session] = sessions as [Session];
  for (const make of [text, wide, binary]) {
    for (const send of [session.send, session.trySend, session.sendVolatile]) {
      const isRight = (error: unknown) => {
        assert.ok(error instanceof MessageTooLargeError);
        assert.deepEqual([error.name, error.size, error.limit], ["MessageTooLargeError", 1002, 1001]);
        return /^the message has 1002 bytes, the other end accepts at most 1001$/.test(error.message);
      };
      assert.throws(() => send.call(session, make(1002)), isRight);
      send.call(session, make(1001));
      const frame = await peer.next();
      assert.equal(Buffer.byteLength(frame.data), 1001);
    }
  }
  // Another client may announce another limit, and a plain client announces none.
  const [free] = await Peer.attached(url);
  assert.ok(sessions[1]!.trySend(text(5000)));
  assert.equal((await free.text()).length, 5000);
  const plain = await new Peer(url, [], true).opened();
  while (sessions.length < 3) await new Promise((resolve) => setImmediate(resolve));
  assert.ok(sessions[2]!.trySend(text(5000)));
  assert.equal((await plain.text()).length, 5000);
});

test("a message larger than the window is sent alone, in either direction", async (t) => {
  const sessions: Session[] = [];
  const received: number[] = [];
  const bound = { messages: 10, bytes: 1000 };
  const { app, url } = await serve({ accept: bound, keep: bound }, (session) => {
    sessions.push(session);
    session.on("message", (data) => received.push(data.length));
  });
  t.after(() => app.close());
  const [peer] = await Peer.attached(url, { window: { messages: 10, bytes: 1000 } });
  for (let number = 1; number <= 2; number++) {
    peer.write(text(1_048_576));
    assert.deepEqual((await peer.next()).acknowledged, number);
  }
  assert.deepEqual(received, [1_048_576, 1_048_576]);

  const [session] = sessions as [Session];
  const sent = [text(1_048_576), "small", text(1_048_576)].map((message) => session.send(message));
  for (const [number, length] of [1_048_576, 5, 1_048_576].entries()) {
    assert.equal((await peer.text()).length, length);
    peer.write(ping(number, 2, number));
    assert.equal((await peer.next()).type, PONG, "nothing else comes before it is acknowledged");
    peer.write(ack(number + 1));
  }
  assert.deepEqual(await Promise.all(sent), [true, true, true]);
});

test("a client that sends a message above the limit keeps its session, and the log names the option", async (t) => {
  const lines: string[] = [];
  const logger = { level: "info", stream: { write: (line: string) => void lines.push(line) } };
  const got: string[] = [];
  const { app, url } = await serve({}, (session) => void session.on("message", (data) => got.push(String(data).slice(0, 6))), { logger });
  t.after(() => app.close());
  const socket = new MainstaySocket(url, [], { WebSocket: WebSocket as unknown as NonNullable<Options["WebSocket"]> });
  t.after(() => socket.suspend());
  let losses = 0;
  socket.on("status", ({ code }) => code && losses++);
  const early = socket.send(text(1_048_577)).delivered;
  const first = socket.send("first").delivered;
  assert.deepEqual(await Promise.all([early, first]), ["not-delivered", "delivered"]);
  assert.throws(() => socket.send(text(1_048_577)), { name: "MessageTooLargeError" });
  assert.equal(await socket.send(text(1_048_576)).delivered, "delivered");
  assert.equal(await socket.send("after").delivered, "delivered");
  assert.deepEqual([got, losses], [["first", "xxxxxx", "after"], 0]);

  const plain = new WebSocket(url);
  await once(plain, "open");
  plain.send(text(1_048_577));
  assert.equal((await once(plain, "close"))[0], 1009);
  assert.equal(lines.filter((line) => line.includes("larger than maxMessage")).length, 1);
});

test("a server ignores REPLACED and reserved message types from a client", async (t) => {
  const { app, url } = await serve({}, (session) => void session.on("message", (data) => session.send(data)));
  t.after(() => app.close());
  const [peer] = await Peer.attached(url);
  peer.write({ type: REPLACED, after: 7, count: 1 });
  peer.socket.send(Uint8Array.of(0x81, 1, 2));
  peer.write("still here");
  assert.equal(await peer.text(), "still here");
});
