/**
 * Plays the exchanges of `conformance/vectors/exchanges.json`, with the transcript as the peer of the end under test.
 * `conformance/README.md` has the format and the rules.
 */

import assert from "node:assert/strict";
import { type Data, decode, type Delivery, type Frame } from "@mainstay/client/protocol";
import { dataToJson, fromJson, inTranscript, onTheWire, toJson } from "./vectors.js";

/** Something that an end wrote to a connection: a message, or a Close. */
export type Written = [connection: number, output: Data | { code: number; reason: string }];

/** The end under test. Connections are numbered from 1. */
export interface End {
  name: "client" | "server";
  open(now: number, connection: number): void;
  read(now: number, connection: number, frame: Frame): void;
  lose(now: number, connection: number, close?: { code: number; reason: string }): void;
  /** Lets time pass; the end does what becomes due.*/
  waitUntil(now: number): void;
  /** Does a step of the application. Returns false if this end does not have the step. */
  act(now: number, step: any): boolean;
  receive(now: number): Delivery | undefined;
  receiveVolatile?(): Data | undefined;
  event(): object | undefined;
  collect(now: number): Written[];
  restart?(now: number): void;
}

/** When every exchange begins, in milliseconds. */
export const START = 1_000_000_000;

export function play(exchange: any, end: End): void {
  const player = new Player(exchange, end);
  exchange.steps.forEach((step: any, number: number) => {
    try {
      player.step(step);
    } catch (error) {
      (error as Error).message = `${end.name}, step ${number} ${JSON.stringify(step)}: ${(error as Error).message}`;
      throw error;
    }
    player.collect();
  });
  player.finish();
}

class Player {
  private now = START;
  private names = new Names();
  private connections: string[] = [];
  private written = new Map<number, any[]>();
  private held = new Map<number, any[]>();

  constructor(
    private exchange: any,
    private end: End,
  ) {}

  step(step: any): void {
    const { end, now } = this;
    const from = (["client", "server"] as const).find((name) => name in step);
    if (from) this.transcript(from, step);
    else if (step.open) {
      this.connections.push(step.open);
      if (this.concernsUs(step.open)) end.open(now, this.id(step.open));
    } else if (step.cut) {
      if ((step.at ?? end.name) === end.name && this.concernsUs(step.cut)) end.lose(now, this.id(step.cut));
    } else if (step.deliver) {
      const id = this.id(step.deliver);
      if (step.to === end.name) for (const held of this.held.get(id)?.splice(0) ?? []) this.arrive(id, held);
    } else if (step.wait_ms) {
      this.now += step.wait_ms;
      end.waitUntil(this.now);
    } else if (step.restart) {
      if (step.restart === end.name) end.restart?.(now);
    } else if (step.at === end.name) this.application(step);
    else assert.ok(step.at, "no end has this step");
  }

  collect(): void {
    for (const [id, output] of this.end.collect(this.now)) this.written.set(id, [...(this.written.get(id) ?? []), output]);
  }

  finish(): void {
    for (const [id, left] of this.written) assert.deepEqual(left, [], `${this.end.name} wrote more on ${id}`);
    assert.equal(this.end.receive(this.now), undefined, "a delivery is left");
    assert.equal(this.end.receiveVolatile?.(), undefined, "a volatile message is left");
    assert.equal(this.end.event(), undefined, "an event is left");
  }

  private transcript(from: string, step: any): void {
    const name = step[from];
    if (!this.concernsUs(name)) return;
    const id = this.id(name);
    if (from === this.end.name) {
      const output = this.written.get(id)?.shift();
      assert.ok(output !== undefined, "nothing was written");
      if (typeof output === "string" || output instanceof Uint8Array) {
        this.names.unify(this.withDefaults(step.writes), inTranscript(output as Data));
      } else this.names.unify({ code: step.closes, reason: step.reason }, output);
    } else if (!step.fate) this.arrive(id, step);
    else if (step.fate === "held") this.held.set(id, [...(this.held.get(id) ?? []), step]);
    else assert.equal(step.fate, "lost");
  }

  /** A message, or a Close, of the absent end arrives. */
  private arrive(id: number, step: any): void {
    if (step.closes) return this.end.lose(this.now, id, { code: step.closes, reason: this.names.fill("reason", step.reason) });
    const frame = fromJson(this.names.fill("", this.withDefaults(step.writes)));
    this.end.read(this.now, id, decode(onTheWire(frame)));
  }

  private application(step: any): void {
    const { end, now, names } = this;
    if ("receives" in step) {
      const delivery = end.receive(now);
      assert.ok(delivery?.data !== undefined, "nothing to receive");
      names.unify({ text: step.receives }, dataToJson(delivery.data));
    } else if (step.receives_gap) {
      const { data, first, count } = end.receive(now) ?? {};
      assert.deepEqual([data, first, count], [undefined, ...step.receives_gap]);
    } else if (step.receives_replaced) {
      // This end does not report the count.
      const { data, count } = end.receive(now) ?? {};
      assert.deepEqual([data, count], [undefined, 0]);
    } else if ("receives_volatile" in step) {
      names.unify({ text: step.receives_volatile }, dataToJson(end.receiveVolatile!()!));
    } else if (step.event) names.unify(step.event, end.event());
    else assert.ok(end.act(now, step), `no ${end.name} does this`);
  }

  private id(name: string): number {
    return this.connections.indexOf(name) + 1;
  }

  private concernsUs(connection: string): boolean {
    return this.end.name === "server" || connection.startsWith("c");
  }

  private withDefaults(message: any): any {
    const { HELLO, WELCOME, REFUSE } = message;
    if (HELLO) return { HELLO: { window: [1024, 4194304], key_age_ms: 0, ...HELLO } };
    const heartbeat = this.exchange.heartbeat_ms ?? 3600000;
    if (WELCOME) return { WELCOME: { window: [1024, 1048576], resume_window_ms: 120000, heartbeat_interval_ms: heartbeat, ...WELCOME } };
    return REFUSE ? { REFUSE: { delay_ms: [0, 0], ...REFUSE } } : message;
  }
}

/** The values that one end chose, by their names in the exchange. */
class Names {
  private known = new Map<string, any>();

  /** Compares, and binds each name at its first use. */
  unify(expected: any, actual: any): void {
    if (typeof expected === "string" && expected.startsWith("$") && !expected.includes(" ")) {
      if (this.known.has(expected)) return assert.deepEqual(actual, this.known.get(expected), expected);
      assert.ok(![...this.known.values()].includes(actual), `${expected} is not new`);
      this.known.set(expected, actual);
    } else if (expected && actual && typeof expected === "object" && !Array.isArray(expected)) {
      assert.deepEqual(Object.keys(actual).sort(), Object.keys(expected).sort());
      for (const [name, value] of Object.entries(expected)) this.unify(value, actual[name]);
    } else assert.deepEqual(actual, this.fill("", expected));
  }

  /** Replaces names by values. A name of the absent end gets a value made from the name. */
  fill(field: string, value: any): any {
    if (value && typeof value === "object" && !Array.isArray(value)) {
      return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, this.fill(name, inner)]));
    }
    if (typeof value !== "string" || !value.includes("$")) return value;
    if (value.includes(" ")) return value.split(" ").map((word) => this.known.get(word) ?? word).join(" ");
    if (!this.known.has(value)) this.known.set(value, invent(field, value));
    return this.known.get(value);
  }
}

function invent(field: string, name: string): unknown {
  const bytes = Buffer.from(name);
  if (field === "nonce") return bytes.reduce((sum, byte) => (sum * 31 + byte) % 100_003, 1);
  const length = ({ key: 16, token: 24, id: 8, instance: 8 } as Record<string, number>)[field];
  assert.ok(length, `${field} is not a field that an end chooses`);
  return Buffer.concat(Array(length).fill(bytes)).subarray(0, length).toString("hex");
}

/** Returns a message as a transcript shows it, for error messages. */
export const shown = (frame: Frame) => JSON.stringify(toJson(frame));
