/** A handler is slowed down to its client, and a session outlives a failing listener. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import type { Session } from "@mainstay/fastify";
import { ack, volatile } from "./frames.js";
import { serve, Peer, hello } from "./peer.js";
import { CONFIG, Stage } from "./stage.js";

const turn = () => new Promise((resolve) => setImmediate(resolve));
const MODES = ["session", "plain"] as const;

/** Ways to echo that do not slow themselves down. */
const ECHOES: Record<string, (session: Session) => void> = {
  "a listener": (session) => void session.on("message", (data) => session.send(data)),
  "an async listener": (session) => void session.on("message", async (data) => void (await session.send(data))),
  "a loop": async (session) => {
    for await (const data of session) session.send(data);
  },
};

for (const mode of MODES) {
  for (const [what, echo] of Object.entries(ECHOES)) {
    test(`${what} receives no more messages while its own wait for a client that accepts nothing: ${mode}`, async (t) => {
      const stage = new Stage(t, { ...CONFIG, keep: { messages: 10, bytes: 1_000_000 }, accept: { messages: 19, bytes: 1_000_000 } }, mode);
      let paused = 0;
      stage.socket.pause = () => void paused++;
      let delivered = 0;
      const { session, machine } = stage.driver;
      session.emit = new Proxy(session.emit, { apply: (emit, self, args) => ((delivered += +(args[0] === "message")), Reflect.apply(emit, self, args)) });
      echo(session);
      await turn();
      stage.socket.tcp.isFlowing = false;
      if (mode === "plain") stage.socket.tcp.writableLength = 100_000;
      for (let i = 0; i < 30; i++) {
        stage.receive(`${i}`);
        await turn();
      }
      if (what !== "a loop") assert.equal(delivered, 11, "ten are kept, and one waits");
      assert.equal(machine.hasInput, true);
      // A session's client is stopped by its window; a plain client is not read any more.
      if (mode === "plain") assert.equal(paused, 1);
      else assert.equal((machine as any).flow.inbox.acknowledged, 11);
      const written: unknown[] = [];
      for (let i = 0; i < 40; i++) {
        stage.socket.tcp.flow();
        await turn();
        written.push(...stage.written());
        if (mode === "session") stage.socket.arrive(ack(written.length));
      }
      assert.deepEqual(written, Array.from({ length: 30 }, (_, i) => `${i}`), "all messages, in order");
    });
  }

  test(`messages outside the stream wait as well, and the newest stay: ${mode}`, async (t) => {
    const stage = new Stage(t, { ...CONFIG, keep: { messages: 2, bytes: 1_000_000 } }, "session");
    let delivered = 0;
    stage.driver.session.on("volatile", (data) => {
      delivered++;
      stage.driver.session.send(data);
    });
    for (let i = 0; i < 200; i++) stage.socket.arrive(volatile(new Uint8Array([i])));
    await turn();
    assert.equal(delivered, 3);
    assert.equal((stage.driver.machine as any).volatiles.length, 64);
  });

  test(`a listener that throws or rejects is reported, and its session goes on: ${mode}`, async (t) => {
    const stage = new Stage(t, CONFIG, mode);
    const { session, id } = stage.driver;
    const errors: unknown[] = [];
    session.on("message", (data) => {
      if (data === "throw") throw new Error("thrown");
    });
    session.on("message", async (data) => {
      if (data === "reject") throw new Error("rejected");
    });
    session.on("message", (data) => void session.send(data));
    await turn();
    for (const data of ["throw", "reject", "go"]) {
      stage.receive(data);
      await turn();
    }
    assert.deepEqual(stage.written(), ["throw", "reject", "go"], "the other listeners received every message");
    session.on("error", (error) => {
      errors.push((error as Error).message);
      throw new Error("once more");
    });
    session.on("error", async () => Promise.reject(new Error("and again")));
    stage.receive("throw");
    await turn();
    assert.deepEqual(errors, ["thrown"]);
    const logged = stage.errors.map(({ err, session, event }) => [err.message, session, event]);
    assert.deepEqual(logged, [["thrown", id, "message"], ["rejected", id, "message"], ["thrown", id, "message"], ["once more", id, "error"], ["and again", id, "error"]]);
    assert.match(stage.errors[0].message, /goes on/);
    assert.equal(session.state, "attached");
  });

  test(`a single listener that throws is reported as well: ${mode}`, async (t) => {
    const stage = new Stage(t, CONFIG, mode);
    const { session } = stage.driver;
    let isFailing = true;
    session.on("message", (data) => {
      if (isFailing) throw new Error("thrown");
      session.send(data);
    });
    await turn();
    stage.receive("lost");
    isFailing = false;
    stage.receive("found");
    await turn();
    assert.deepEqual([stage.written(), stage.errors.length, session.state], [["found"], 1, "attached"]);
  });
}

test("over a real socket the README's echo receives no more than its windows from a client that acknowledges nothing", async (t) => {
  let delivered = 0;
  const { app, url } = await serve({ keep: { messages: 20 }, accept: { messages: 20 } }, (session) => {
    session.on("message", (data) => {
      delivered++;
      session.send(data);
    });
  });
  t.after(() => app.close());
  const peer = new Peer(url);
  await peer.opened();
  peer.write(hello({ window: { messages: 5, bytes: 4_194_304 } }));
  await peer.next();
  peer.write(ack(0), ...Array.from({ length: 30 }, () => "x".repeat(1000)));
  await peer.text();
  await peer.text();
  assert.ok(delivered <= 21);
  peer.write(...Array.from({ length: 100 }, () => "x".repeat(1000)));
  assert.equal((await peer.closed).code, 4400, "more than the window");
  assert.equal(delivered, 21);
});

test("over a real socket the server stops reading a plain client that reads nothing", async (t) => {
  const { app, url } = await serve({ keep: { messages: 4 }, accept: { messages: 4 } }, (session) => {
    session.on("message", (data) => session.send(data));
  });
  t.after(() => app.close());
  const peer = new Peer(url, [], true);
  await peer.opened();
  peer.socket.pause();
  const words = "x".repeat(60_000);
  let isDrained = true;
  let sent = 0;
  while (isDrained) {
    peer.write(words);
    sent++;
    const drained = new Promise<boolean>((resolve) => peer.socket.ping("", true, () => resolve(true)));
    isDrained = await Promise.race([drained, new Promise<boolean>((resolve) => setTimeout(resolve, 1000, false))]);
    assert.ok(sent < 1000, "the server reads everything");
  }
  peer.socket.resume();
  for (let received = 0; received < sent; received++) assert.equal(await peer.text(), words);
  peer.socket.close();
  await once(peer.socket, "close");
});
