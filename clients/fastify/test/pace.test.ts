/** A handler is held to the pace of its client, and outlives a listener that fails. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import type { Session } from "@mainstay/fastify";
import { serve, Peer, hello } from "./peer.js";
import { CONFIG, Stage } from "./stage.js";

const turn = () => new Promise((resolve) => setImmediate(resolve));
const MODES = ["session", "plain"] as const;

/** The ways to echo, none of which waits for `send`. */
const ECHOES: Record<string, (session: Session) => void> = {
  "a listener": (session) => void session.on("message", (data) => session.send(data)),
  "an async listener": (session) => void session.on("message", async (data) => void (await session.send(data))),
  "a loop": async (session) => {
    for await (const data of session) session.send(data);
  },
};

for (const mode of MODES) {
  for (const [what, echo] of Object.entries(ECHOES)) {
    test(`${what} gets no more while what it sent waits for a client that takes nothing: ${mode}`, async (t) => {
      const stage = new Stage(t, { ...CONFIG, keep: { messages: 10, bytes: 1_000_000 }, accept: { messages: 19, bytes: 1_000_000 } }, mode);
      let paused = 0;
      stage.socket.pause = () => void paused++;
      let handed = 0;
      const { session, machine } = stage.driver;
      session.emit = new Proxy(session.emit, { apply: (emit, self, args) => ((handed += +(args[0] === "message")), Reflect.apply(emit, self, args)) });
      echo(session);
      await turn();
      stage.socket.tcp.isFlowing = false;
      if (mode === "plain") stage.socket.tcp.writableLength = 100_000;
      for (let i = 0; i < 30; i++) {
        stage.say(`${i}`);
        await turn();
      }
      if (what !== "a loop") assert.equal(handed, 11, "ten that are kept, and one that waits");
      assert.equal(machine.hasInput, true);
      // A client of sessions is held back by its window, which it would break by more; a plain one is not read.
      if (mode === "plain") assert.equal(paused, 1);
      else assert.equal((machine as any).flow.inbox.acknowledged, 11);
      const heard: unknown[] = [];
      for (let i = 0; i < 40; i++) {
        stage.socket.tcp.flow();
        await turn();
        heard.push(...stage.heard());
        if (mode === "session") stage.socket.arrive([3, heard.length]);
      }
      assert.deepEqual(heard, Array.from({ length: 30 }, (_, i) => `${i}`), "all of it, in order");
    });
  }

  test(`messages outside the stream wait as well, the newest stay: ${mode}`, async (t) => {
    const stage = new Stage(t, { ...CONFIG, keep: { messages: 2, bytes: 1_000_000 } }, "session");
    let handed = 0;
    stage.driver.session.on("volatile", (data) => {
      handed++;
      stage.driver.session.send(data);
    });
    for (let i = 0; i < 200; i++) stage.socket.arrive([11, new Uint8Array([i])]);
    await turn();
    assert.equal(handed, 3);
    assert.equal((stage.driver.machine as any).volatiles.length, 64);
  });

  test(`a listener that throws, or whose promise is rejected, is reported, and its session goes on: ${mode}`, async (t) => {
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
      stage.say(data);
      await turn();
    }
    assert.deepEqual(stage.heard(), ["throw", "reject", "go"], "the other listeners got all");
    session.on("error", (error) => {
      errors.push((error as Error).message);
      throw new Error("once more");
    });
    session.on("error", async () => Promise.reject(new Error("and again")));
    stage.say("throw");
    await turn();
    assert.deepEqual(errors, ["thrown"]);
    const logged = stage.errors.map(({ err, session, event }) => [err.message, session, event]);
    assert.deepEqual(logged, [["thrown", id, "message"], ["rejected", id, "message"], ["thrown", id, "message"], ["once more", id, "error"], ["and again", id, "error"]]);
    assert.match(stage.errors[0].words, /goes on/);
    assert.equal(session.state, "attached");
  });

  test(`one listener alone that throws is reported as well: ${mode}`, async (t) => {
    const stage = new Stage(t, CONFIG, mode);
    const { session } = stage.driver;
    let isFailing = true;
    session.on("message", (data) => {
      if (isFailing) throw new Error("thrown");
      session.send(data);
    });
    await turn();
    stage.say("lost");
    isFailing = false;
    stage.say("found");
    await turn();
    assert.deepEqual([stage.heard(), stage.errors.length, session.state], [["found"], 1, "attached"]);
  });
}

test("over a real socket the README's echo takes no more than its windows from a client that acknowledges nothing", async (t) => {
  let handed = 0;
  const { app, url } = await serve({ keep: { messages: 20 }, accept: { messages: 20 } }, (session) => {
    session.on("message", (data) => {
      handed++;
      session.send(data);
    });
  });
  t.after(() => app.close());
  const peer = new Peer(url);
  await peer.opened();
  peer.write(hello({ window: [5, 4_194_304] }));
  await peer.next();
  peer.write([3, 0], ...Array.from({ length: 30 }, () => "x".repeat(1000)));
  await peer.text();
  await peer.text();
  assert.ok(handed <= 21);
  peer.write(...Array.from({ length: 100 }, () => "x".repeat(1000)));
  assert.equal((await peer.closed).code, 4400, "more than the window");
  assert.equal(handed, 21);
});

test("over a real socket a plain client that reads nothing is not read", async (t) => {
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
    assert.ok(sent < 1000, "the server takes all");
  }
  peer.socket.resume();
  for (let heard = 0; heard < sent; heard++) assert.equal(await peer.text(), words);
  peer.socket.close();
  await once(peer.socket, "close");
});
