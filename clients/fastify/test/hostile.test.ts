import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, type Frame, type Hello, ProtocolError } from "@mainstay/client/protocol";
import { unhex, vectors } from "../../conformance/vectors.js";
import { Registry } from "../dist/registry.js";
import { HELLO } from "./frames.js";
import { bytes, hello, randomFrom } from "./peer.js";

test("any bytes of a client become a frame, an answer or a protocol error", () => {
  const random = randomFrom(11);
  const messages: Uint8Array<ArrayBuffer>[] = vectors("messages").map(({ hex }: { hex: string }) => unhex(hex));
  const below = (limit: number) => Math.floor(random() * limit);
  const mutated = () => {
    const message = messages[below(messages.length)]!.slice();
    for (let changes = below(4); changes > 0 && message.length; changes--) message[below(message.length)] = [0, 1, 63, 64, 255, below(256)][below(6)]!;
    return message.subarray(0, random() < 0.2 ? below(message.length + 1) : undefined);
  };
  const config = { heartbeatMs: 1000, resumeWindowMs: 1000, keep: { messages: 4, bytes: 100 }, accept: { messages: 4, bytes: 100 }, dropOldest: true } as const;
  const registry = new Registry(0, { sessions: 5, tombstones: 5 }, config as any, bytes);
  const outcomes = { frames: 0, errors: 0, attached: 0, refused: 0 };
  let now = 0;
  let attempt = 0;
  const attach = () => {
    const answer = registry.handleHello(now, ++attempt, "", hello({ attempt }));
    return answer.kind === "refused" ? undefined : answer.session;
  };
  const open = (hello: Hello) => {
    const answer = registry.handleHello(now, ++attempt, "", hello);
    outcomes[answer.kind]++;
    if (answer.kind === "refused" || random() < 0.1) return;
    answer.session.evict("");
    registry.bury(now, answer.session);
  };
  let session = attach()!;
  for (let i = 0; i < 30_000; i++) {
    now += below(200);
    const allowed = attempt;
    let frame: Frame;
    try {
      frame = decode(mutated());
      if (frame?.type === HELLO) open(frame);
      session.handleFrame(now, session.connection ?? allowed, frame);
      outcomes.frames++;
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      outcomes.errors++;
      if (session.connection) session.handleLost(now, session.connection);
    }
    session.send(`${i}`);
    while (session.deliver(now));
    if (session.connection) while (session.pollTransmit(now, session.connection) !== undefined);
    session.pollAuth();
    while (session.handleTimeout(now)?.kind === "drain");
    registry.bury(now, session);
    if (session.connection && !session.closed) continue;
    session.evict("");
    registry.bury(now, session);
    session = attach() ?? session;
  }
  for (const [what, count] of Object.entries(outcomes)) assert.ok(count > 20, `${what}: ${count}`);
  const { outbox, inbox } = session.flow;
  assert.ok(outbox.items.length <= 6 && inbox.queue.length <= 4);
});
