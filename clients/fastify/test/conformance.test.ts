import assert from "node:assert/strict";
import { test } from "node:test";
import { encode, toHex, type Data, type Frame, type Hello } from "@mainstay/client/protocol";
import { type End, play, START, type Written } from "../../conformance/player.js";
import { toDelay, unhex, vectors } from "../../conformance/vectors.js";
import { Registry } from "../dist/registry.js";
import type { ServerSession, SessionConfig } from "../dist/server-session.js";

// This server stands before no backend that could be lost, and its applications confirm nothing by themselves.
for (const exchange of vectors("exchanges").filter(({ server }: { server?: string }) => server !== "gateway")) {
  test(`a server takes its part: ${exchange.name}`, () => play(exchange, new ServerEnd(exchange)));
}

class ServerEnd implements End {
  readonly name = "server";
  private config: SessionConfig;
  private registry: Registry;
  private sessions: ServerSession[] = [];
  /** The connections that are open, and their sessions. */
  private bound = new Map<number, ServerSession | undefined>();
  /** The session that the application serves: the newest. */
  private served: ServerSession | undefined;
  private written: Written[] = [];
  private drawn = 0;

  constructor({ heartbeat_ms = 3_600_000, server_age_ms = 3_600_000, server_drops_above }: any) {
    this.config = {
      heartbeat: heartbeat_ms,
      resumeWindow: 120_000,
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
    // Refused or closed: what is still on its way is not read.
    if (!this.bound.has(id)) return;
    const session = this.bound.get(id);
    if (session) session.receive(now, id, frame);
    else this.hello(now, id, frame as Hello);
  }
  private hello(now: number, id: number, hello: Hello): void {
    const answer = this.registry.hello(now, id, "", hello);
    if (answer.refuse) {
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
    this.bound.get(id)?.lost(now, id);
    this.bound.delete(id);
  }
  waitUntil(until: number): void {
    for (const session of this.sessions) {
      for (let due; (due = session.dueAt) <= until && !session.over; ) {
        session.timeout(due);
        if (session.over) break;
        this.written = this.collect(due);
        if (session.connection) session.flushed(due, session.connection);
      }
    }
  }
  act(now: number, step: any): boolean {
    const session = this.served!;
    if ("sends" in step) assert.ok(session.send(step.sends));
    else if ("sends_volatile" in step) session.sendVolatile(step.sends_volatile);
    else if (step.judges) {
      const { connection, credentials } = session.takeAuth()!;
      assert.equal(toHex(credentials), toHex(unhex(step.judges)));
      session.verdict(connection, step.accepted ? "" : undefined);
    } else if (step.closes) session.close(now, step.closes, step.reason);
    else if (step.goes_away) session.goAway(step.goes_away.reason, toDelay(step.goes_away.delay_ms), step.goes_away.close_in_ms);
    else if (step.over) {
      assert.equal(session.over?.why, step.over);
      this.registry.bury(now, session);
    } else return false;
    return true;
  }
  receive(now: number) {
    return this.served?.handOver(now);
  }
  receiveVolatile(): Data | undefined {
    return this.served?.handOverVolatile();
  }
  event(): undefined {}
  collect(now: number): Written[] {
    const written = this.written;
    this.written = [];
    for (const [id, session] of this.bound) {
      for (let output; (output = session?.transmit(now, id)) !== undefined; ) {
        // Neither an RFC 6455 Ping nor the end of a transport is in a transcript.
        if (typeof output === "string" || output instanceof Uint8Array || "code" in output) written.push([id, output]);
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
