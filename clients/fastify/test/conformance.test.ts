import assert from "node:assert/strict";
import { test } from "node:test";
import { encode, toHex, type Data, type Frame, type Hello } from "@mainstay/client/protocol";
import { type End, play, START, type Written } from "../../conformance/player.js";
import { unhex, vectors } from "../../conformance/vectors.js";
import { Registry } from "../dist/registry.js";
import type { ServerSession, SessionConfig } from "../dist/server-session.js";

// The plugin has no backend that could be lost, and its applications do not acknowledge messages themselves.
for (const exchange of vectors("exchanges").filter(({ server }: { server?: string }) => server !== "gateway")) {
  test(`the server's side of the exchange: ${exchange.name}`, () => play(exchange, new ServerEnd(exchange)));
}

class ServerEnd implements End {
  readonly name = "server";
  private config: SessionConfig;
  private registry: Registry;
  private sessions: ServerSession[] = [];
  /** The open connections, and their sessions. */
  private bound = new Map<number, ServerSession | undefined>();
  /** The session that the application serves: the newest one. */
  private served: ServerSession | undefined;
  private written: Written[] = [];
  private drawn = 0;

  constructor({ heartbeat_ms = 3_600_000, server_age_ms = 3_600_000, server_drops_above }: any) {
    this.config = {
      heartbeatMs: heartbeat_ms,
      resumeWindowMs: 120_000,
      keep: { messages: server_drops_above ?? 1024, bytes: 1_048_576 },
      accept: { messages: 1024, bytes: 1_048_576 },
      dropOldest: server_drops_above !== undefined,
    };
    this.registry = this.newRegistry(START - server_age_ms);
  }

  private newRegistry(now: number): Registry {
    const random = (length: number) => new Uint8Array(length).fill(++this.drawn);
    return new Registry(now, { sessions: 1000, tombstones: 1000 }, this.config, random);
  }

  open(_now: number, id: number): void {
    this.bound.set(id, undefined);
  }
  read(now: number, id: number, frame: Frame): void {
    // The connection was refused or closed: its last messages are not read.
    if (!this.bound.has(id)) return;
    const session = this.bound.get(id);
    if (session) session.handleFrame(now, id, frame);
    else this.hello(now, id, frame as Hello);
  }
  private hello(now: number, id: number, hello: Hello): void {
    const answer = this.registry.handleHello(now, id, "", hello);
    if (answer.kind === "refused") {
      this.bound.delete(id);
      this.written.push([id, encode(answer.refuse)]);
      return;
    }
    const { session, isNew, fenced } = answer;
    if (isNew) this.sessions.push(session);
    this.bound.set(id, session);
    this.served = session;
    if (fenced) this.written.push([fenced.connection, { code: 4409, reason: fenced.reason }]);
  }
  lose(now: number, id: number): void {
    this.bound.get(id)?.handleLost(now, id);
    this.bound.delete(id);
  }
  waitUntil(until: number): void {
    for (const session of this.sessions) {
      for (let due; (due = session.pollTimeout()) <= until && !session.closed; ) {
        session.handleTimeout(due);
        if (session.closed) break;
        this.written = this.collect(due);
        if (session.connection) session.handleFlushed(due, session.connection);
      }
    }
  }
  act(now: number, step: any): boolean {
    const session = this.served!;
    if ("sends" in step) assert.ok(session.send(step.sends));
    else if ("sends_volatile" in step) session.sendVolatile(step.sends_volatile);
    else if (step.judges) {
      const { connection, credentials } = session.pollAuth()!;
      assert.equal(toHex(credentials), toHex(unhex(step.judges)));
      session.handleAuthResult(connection, step.accepted ? "" : undefined);
    } else if (step.closes) session.close(now, step.closes, step.reason);
    else if (step.goes_away) {
      const { reason, delay_ms: [earliestMs, latestMs], close_in_ms } = step.goes_away;
      session.goAway(reason, { earliestMs, latestMs }, close_in_ms);
    } else if (step.over) {
      assert.equal(session.closed?.cause, step.over);
      this.registry.bury(now, session);
    } else return false;
    return true;
  }
  receive(now: number) {
    return this.served?.deliver(now);
  }
  receiveVolatile(): Data | undefined {
    return this.served?.deliverVolatile();
  }
  event(): undefined {}
  collect(now: number): Written[] {
    const written = this.written;
    this.written = [];
    for (const [id, session] of this.bound) {
      for (let output; (output = session?.pollTransmit(now, id)) !== undefined; ) {
        // A transcript has neither RFC 6455 Pings nor ends of transports.
        if (typeof output === "string" || output instanceof Uint8Array) written.push([id, output]);
        else if (output.kind === "close") written.push([id, { code: output.code, reason: output.reason }]);
      }
    }
    return written;
  }
  restart(now: number): void {
    this.registry = this.newRegistry(now);
    this.sessions = [];
    this.served = undefined;
    this.bound.clear();
  }
}
