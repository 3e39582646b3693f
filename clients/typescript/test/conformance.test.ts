import assert from "node:assert/strict";
import { test } from "node:test";
import { ClientSession, closeAction, type Data, decode, ProtocolError, type SessionEvent, toHex } from "@mainstay/client/protocol";
import { type End, play, type Written } from "../../conformance/player.js";
import { dataToJson, fromDelay, fromJson, onTheWire, toJson, unhex, vectors } from "../../conformance/vectors.js";

test("messages decode to their fields and encode to their bytes", () => {
  for (const { name, message, kind, hex, only } of vectors("messages")) {
    const bytes = unhex(hex);
    const onWire: Data = kind === "text" ? new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes) : bytes;
    assert.deepEqual(toJson(decode(onWire)), message, name);
    if (only === "decode") continue;
    const encoded = onTheWire(fromJson(message));
    assert.equal(typeof encoded === "string" ? Buffer.from(encoded).toString("hex") : toHex(encoded), toHex(bytes), name);
  }
});

test("malformed messages are refused with the error of their fault", () => {
  const { errors, truncated } = vectors("malformed");
  const refusal = (bytes: Uint8Array<ArrayBuffer>) => {
    try {
      return toJson(decode(bytes));
    } catch (error) {
      assert.ok(error instanceof ProtocolError);
      return error.message;
    }
  };
  for (const { name, hex, error } of errors) assert.equal(refusal(unhex(hex)), error, name);
  for (const hex of truncated) {
    const whole = unhex(hex);
    decode(whole);
    for (let length = 1; length < whole.length; length++) assert.equal(refusal(whole.subarray(0, length)), "Truncated", `${hex} cut to ${length}`);
  }
});

test("each close code has its reaction of a client", () => {
  for (const { code, action } of vectors("close-codes")) assert.equal(closeAction(code), action, String(code));
});

for (const exchange of vectors("exchanges")) {
  test(`a client plays its part: ${exchange.name}`, () => play(exchange, new ClientEnd(exchange)));
}

class ClientEnd implements End {
  readonly name = "client";
  private session: ClientSession;
  private drawn = 0;

  constructor(exchange: any) {
    const random = (length: number) => new Uint8Array(length).fill(++this.drawn);
    this.session = new ClientSession({ resumeWindowMs: exchange.client_resume_window_ms }, random);
  }

  open(now: number, id: number): void {
    this.session.handleOpened(now, id);
  }
  read(_now: number, id: number, frame: any): void {
    this.session.handleFrame(id, frame);
  }
  lose(_now: number, id: number, close?: { code: number; reason: string }): void {
    this.session.handleLost(id, close?.code, close?.reason);
  }
  // Only acknowledgements may be due, and pollTransmit returns those.
  waitUntil(): void {}
  act(_now: number, step: any): boolean {
    if ("sends" in step) assert.ok(this.session.send(step.sends));
    else if ("sends_volatile" in step) this.session.sendVolatile(step.sends_volatile);
    else if (step.authenticates) this.session.authenticate(unhex(step.authenticates));
    else if (step.closes) this.session.close(step.closes, step.reason);
    else return false;
    return true;
  }
  receive(now: number) {
    return this.session.deliver(now);
  }
  event() {
    const event = this.session.pollEvent();
    return event && shown(event);
  }
  collect(now: number): Written[] {
    const written: Written[] = [];
    for (let output; (output = this.session.pollTransmit(now)); ) {
      const { id } = output;
      written.push([id, output.kind === "write" ? output.data : { code: output.code, reason: output.reason }]);
    }
    return written;
  }
}

/** An event as a transcript shows it. */
function shown(event: SessionEvent): object {
  if (event.type === "attached") return { attached: { epoch: event.welcome.epoch, resumed: event.welcome.resumed } };
  if (event.type === "refused") return { refused: { code: event.code, temporary: true } };
  if (event.type === "goAway") return { go_away: { delay_ms: fromDelay(event.delay) } };
  if (event.type === "gap") return { gap: { ...event.fate, lost: event.fate.lost ? [event.fate.lost.first, event.fate.lost.count] : null } };
  if (event.type === "volatile") return { volatile: dataToJson(event.data) };
  if (event.type === "authenticated") return { authenticated: event.accepted };
  if (event.type === "error") return { error: event.error.message };
  const { delivered, unknown, last } = event.fate;
  return { ended: { code: event.code, delivered, unknown, last } };
}
