import assert from "node:assert/strict";
import { test } from "node:test";
import { Machine, type MachineConfig, type MachineEvent, type Mode } from "../src/machine.js";
import { ClientSession } from "../src/session.js";
import { SessionMachine } from "../src/sessions.js";
import { type Control, type Data, decode, encode, type Hello, toHex, Type } from "../src/wire.js";

/** A machine, its clock, and all that it did. The machine is polled when a test looks. */
class Stage {
  now = 1_000_000;
  readonly #did: string[] = [];
  readonly #events: MachineEvent[] = [];
  readonly #written: [number, Data][] = [];
  #machine: Machine;
  random = 0.5;
  isBusy = false;
  /** Connections that were opened and are not gone. */
  private there = new Set<number>();

  constructor(config: MachineConfig = {}, sessions = true) {
    let drawn = 0;
    const session = new ClientSession({}, (length) => new Uint8Array(length).fill(++drawn));
    const random = () => this.random;
    this.#machine = sessions ? new SessionMachine(this.now, config, random, session) : new Machine(this.now, config, random);
    this.step();
  }

  get machine(): Machine {
    return (this.#machine = this.#machine.successor ?? this.#machine);
  }
  get did(): string[] {
    this.collect();
    return this.#did;
  }
  get events(): MachineEvent[] {
    this.collect();
    return this.#events;
  }
  get written(): [number, Data][] {
    this.collect();
    return this.#written;
  }

  private collect(): void {
    for (let output; (output = this.machine.pollTransmit()); ) {
      const { id } = output;
      if (output.kind === "write") this.#written.push([id, output.data]);
      else if (output.kind === "close") this.#did.push(`close ${id} ${output.code}`);
      else if (output.kind === "forget") this.there.delete(id) && this.#did.push(`drop ${id}${output.code === 1000 ? "" : ` ${output.code}`}`);
      else {
        this.there.add(id);
        this.#did.push(`dial ${id}${output.offers ? " offering" : ""}`);
      }
    }
    for (let event; (event = this.machine.pollEvent()); ) this.#events.push(event);
  }

  /** Lets time pass, as if every timer were on time. */
  pass(ms: number): void {
    for (const end = this.now + ms; this.now < end; ) {
      this.now = Math.min(end, Math.max(this.now, Math.min(this.machine.pollTimeout(), end)));
      this.step();
      if (this.machine.pollTimeout() <= this.now) this.step();
      if (this.now < end && this.machine.pollTimeout() <= this.now) this.now++;
    }
  }

  /** Returns the machine, after setting its clock. */
  at(later = 0): Machine {
    this.machine.nowMs = this.now + later;
    this.machine.isBusy = this.isBusy;
    this.machine.waiting = 0;
    return this.machine;
  }

  step(): void {
    this.at().handleTimeout();
    // Messages that had arrived are read by now.
    if (this.machine.pollTimeout() <= this.now) this.at().handleTimeout();
    this.collect();
  }

  open(id: number, mode: Mode = "session"): void {
    this.at().handleOpened(id, mode === "session" ? "mainstay.v1" : "");
    this.step();
  }

  lose(id: number, code: number, reason: string, later = 0): void {
    this.collect();
    this.there.delete(id);
    this.at(later).handleLost(id, code, reason);
  }

  serverSends(id: number, frame: Control): void {
    this.arrives(id, encode(frame));
    this.step();
  }

  arrives(id: number, data: Data, later = 0): void {
    this.at(later).handleMessage(id, typeof data === "string" ? data : data.slice().buffer);
  }

  welcome(id: number, epoch = 1, resumed = false, interval = 25_000): void {
    const bytes = (length: number) => new Uint8Array(length).fill(epoch);
    this.serverSends(id, { type: Type.Welcome, id: bytes(8), token: bytes(24), epoch, resumed, acknowledged: 0, first: 1, resumeWindowMs: 120_000, heartbeatIntervalMs: interval, window: { messages: 1024, bytes: 1_048_576 } });
  }

  pings(): number {
    return this.written.splice(0).filter(([, data]) => decode(data)?.type === Type.Ping).length;
  }

  last(type: string): any {
    if (type === "status") return this.machine.loss;
    return this.events.findLast((event) => event.type === type);
  }
}

function attached(config?: MachineConfig): Stage {
  const stage = new Stage(config);
  stage.open(1);
  stage.welcome(1);
  stage.did.length = 0;
  return stage;
}

test("waits between attempts are spread, never zero, never above the cap, at attempts 1, 5, 50 and 2,000", () => {
  for (const attempt of [1, 5, 50, 2000]) {
    const waits = [0, 0.25, 0.999999].map((random) => {
      const stage = new Stage({}, false);
      stage.random = random;
      (stage.machine as any).attempts = attempt - 1;
      stage.lose(1, 1006, "");
      return stage.last("status").nextAttemptInMs;
    });
    const ceiling = attempt === 1 ? 1000 : Math.min(30_000, 500 * 2 ** (attempt - 2));
    assert.ok(waits[0]! >= 1 && waits[2]! <= ceiling, `${attempt}: ${waits}`);
    assert.ok(waits[2]! - waits[0]! > 0.9 * ceiling, `${attempt} is not spread: ${waits}`);
    assert.ok(waits[0]! < waits[1]! && waits[1]! < waits[2]!);
  }
});

test("a client that lost its connection alone comes back sooner, and never in the lower half of later waits", () => {
  const stage = attached();
  stage.random = 0.999999;
  stage.lose(1, 4408, "");
  assert.ok(stage.last("status").nextAttemptInMs <= 200);
  stage.random = 0;
  (stage.machine as any).attempts = 5;
  stage.pass(200);
  stage.lose(2, 1002, "");
  assert.ok(stage.last("status").nextAttemptInMs >= 4000);
});

test("a connection that was merely accepted does not clear the count of attempts; one that lived for 10 s does, or for 2 s and brought a message", () => {
  const attemptsAfter = (ms: number, isUsed: boolean) => {
    const stage = attached();
    (stage.machine as any).attempts = (stage.machine as any).attemptsBefore = 9;
    if (isUsed) stage.arrives(1, "news");
    stage.lose(1, 1006, "", ms);
    return (stage.machine as any).attempts;
  };
  assert.deepEqual([attemptsAfter(1999, true), attemptsAfter(9999, false)], [10, 10]);
  assert.deepEqual([attemptsAfter(2000, true), attemptsAfter(10_000, false)], [1, 1]);
});

test("a train ride, a cut every three seconds with messages between them, never ends at long waits", () => {
  for (const sessions of [true, false]) {
    const stage = new Stage({}, sessions);
    for (let id = 1; id <= 12; id++) {
      stage.open(id, sessions ? "session" : "plain");
      if (sessions) stage.serverSends(id, { type: Type.Welcome, id: new Uint8Array(8), token: new Uint8Array(24), epoch: id, resumed: id > 1, acknowledged: 0, first: id, resumeWindowMs: 120_000, heartbeatIntervalMs: 25_000, window: { messages: 1024, bytes: 1_048_576 } });
      stage.pass(2500);
      stage.arrives(id, "news");
      stage.pass(500);
      stage.lose(id, 1006, "");
      assert.ok(stage.last("status").nextAttemptInMs <= 1000, `cut ${id}: ${stage.last("status").nextAttemptInMs}`);
      stage.pass(1000);
    }
  }
});

test("a connection that is lost after replacements for it failed is followed within a second", () => {
  const stage = attached();
  stage.random = 0.999999;
  stage.serverSends(1, { type: Type.GoAway, reason: "restart", delay: { earliestMs: 0, latestMs: 0 }, closeInMs: 60_000 });
  for (let id = 2; id < 9; id++) {
    while (stage.machine.dialled !== id) {
      stage.pass(1000);
      stage.serverSends(1, { type: Type.Ack, acknowledged: 0 });
    }
    stage.lose(id, 1006, "refused");
  }
  stage.lose(1, 1001, "");
  assert.ok(stage.last("status").nextAttemptInMs <= 1000, `${stage.last("status").nextAttemptInMs}`);
});

test("a connection that is lost while its server's advice is followed has its successor when the server advised", () => {
  const stage = attached();
  stage.serverSends(1, { type: Type.GoAway, reason: "restart", delay: { earliestMs: 5000, latestMs: 9000 }, closeInMs: 60_000 });
  stage.pass(100);
  stage.lose(1, 1012, "");
  assert.ok(stage.last("status").nextAttemptInMs >= 4900, `${stage.last("status").nextAttemptInMs}`);
});

test("an attempt without an answer is given up after ten seconds", () => {
  const stage = new Stage();
  assert.deepEqual(stage.did, ["dial 1 offering"]);
  stage.pass(9999);
  assert.equal(stage.did.length, 1);
  stage.pass(1);
  assert.equal(stage.did[1], "drop 1");
  assert.equal(stage.machine.status, "waiting");
});

test("a WELCOME that does not come within ten seconds of the dial is given up too", () => {
  const stage = new Stage();
  stage.pass(4000);
  stage.open(1);
  stage.pass(6000);
  assert.deepEqual(stage.did.slice(0, 2), ["dial 1 offering", "drop 1"]);
});

test("a silent server is given up after two announced intervals and five seconds", () => {
  const stage = attached();
  stage.pass(54_999);
  assert.equal(stage.machine.status, "attached");
  stage.pass(1);
  assert.deepEqual([stage.did[0], stage.last("status").code], ["drop 1", 4408]);
});

test("a message that takes longer than the limit to arrive has twice the time after each connection that is given up", () => {
  const stage = attached();
  for (const [id, limit] of [[1, 55_000], [2, 110_000], [3, 220_000]] as const) {
    stage.pass(limit - 1);
    assert.equal(stage.machine.status, "attached", `${id}`);
    stage.pass(1);
    assert.equal(stage.last("status").code, 4408);
    stage.pass(30_000);
    stage.open(id + 1);
    stage.welcome(id + 1, id + 1, true);
  }
  stage.arrives(4, "it is here");
  stage.lose(4, 1006, "");
  stage.pass(30_000);
  stage.open(5);
  stage.welcome(5, 5, true);
  stage.pass(55_000);
  assert.equal(stage.last("status").code, 4408, "and then no longer");
});

test("a timer that fires late drains, then probes, and judges only the probe", () => {
  const stage = attached();
  stage.now += 600_000;
  stage.at().handleTimeout();
  assert.deepEqual([stage.pings(), stage.machine.pollTimeout() <= stage.now], [0, true], "messages that have arrived are read first");
  stage.at().handleTimeout();
  assert.equal(stage.machine.status, "attached");
  assert.equal(stage.pings(), 1);
  stage.pass(1999);
  assert.equal(stage.machine.status, "attached");
  stage.pass(1);
  assert.equal(stage.machine.status, "connecting", "the replacement that the probe asked for is under way");
});

test("a message that was readable before a late timer shows life", () => {
  const stage = attached();
  stage.now += 600_000;
  stage.at().handleTimeout();
  stage.serverSends(1, { type: Type.Ack, acknowledged: 0 });
  stage.at().handleTimeout();
  assert.equal(stage.pings(), 0);
  assert.equal(stage.machine.status, "attached");
});

test("a probe without an answer for a second opens a replacement; an answer calls that off", () => {
  const stage = attached();
  stage.at().probeNow();
  stage.step();
  assert.equal(stage.pings(), 1);
  stage.pass(999);
  assert.deepEqual(stage.did, []);
  stage.pass(1);
  assert.deepEqual(stage.did, ["dial 2 offering"]);
  assert.equal(stage.machine.status, "attached", "the old one is used until then");

  const answered = attached();
  answered.at().probeNow();
  answered.step();
  answered.pass(300);
  answered.serverSends(1, { type: Type.Pong, nonce: 1, sent: 0, acknowledged: 0 });
  answered.pass(5000);
  assert.deepEqual([answered.did, answered.machine.rtt], [[], 150], "WELCOME was the first sample, after 0 ms; a slow answer counts half");
});

test("a replacement that is welcomed takes over without a moment detached", () => {
  const stage = attached();
  stage.at().probeNow();
  stage.pass(1000);
  stage.open(2);
  stage.events.length = 0;
  stage.welcome(2, 2, true);
  assert.deepEqual(stage.did, ["dial 2 offering", "drop 1"]);
  assert.deepEqual(stage.events.map((event) => [event.type, (event as { epoch?: number }).epoch]), [["session", 2]], "it is no opening");
  assert.equal(stage.machine.loss, undefined);
});

/** The kinds of what the client wrote: probes, messages, others. */
const kinds = (stage: Stage) => stage.written.splice(0).map(([, data]) => (typeof data === "string" ? "message" : decode(data)!.type === Type.Ping ? "probe" : "other"));

test("a message that nothing acknowledges for three seconds is a reason to probe, and the cut is noticed two seconds later", () => {
  const stage = attached();
  stage.written.length = 0;
  stage.machine.send("anybody there?");
  stage.step();
  stage.pass(2999);
  assert.deepEqual(kinds(stage), ["message"]);
  stage.pass(1);
  assert.deepEqual(kinds(stage), ["probe"]);
  stage.pass(1999);
  assert.deepEqual([stage.machine.current, stage.did], [1, []], "no replacement is opened beside it: it may be a long message that comes");
  stage.pass(1);
  assert.deepEqual([stage.machine.current, stage.last("status").code], [0, 4408]);
  assert.ok(stage.last("status").nextAttemptInMs <= 200);
});

test("a client that sends all the time notices a cut five seconds after the last answer, whatever came before", () => {
  const stage = attached();
  let sent = 0;
  const second = (isCut: boolean) => {
    for (let i = 0; i < 10; i++) {
      stage.machine.send(`${++sent}`);
      stage.step();
      stage.pass(100);
      if (!isCut && i % 3 === 0) stage.serverSends(1, { type: Type.Ack, acknowledged: sent });
    }
  };
  for (let i = 0; i < 20; i++) second(false);
  assert.equal(stage.pings(), 0, "acknowledgements come: nothing is asked");
  for (let i = 0; i < 5; i++) second(true);
  assert.deepEqual([stage.machine.current, stage.last("status").code], [0, 4408]);
});

test("an idle client, and one whose messages are acknowledged, write no byte of their own in ten minutes", () => {
  const stage = attached();
  stage.machine.send("one");
  stage.step();
  stage.serverSends(1, { type: Type.Ack, acknowledged: 1 });
  stage.written.length = 0;
  for (let i = 0; i < 30; i++) {
    stage.pass(20_000);
    stage.serverSends(1, { type: Type.Ack, acknowledged: 1 });
  }
  assert.deepEqual(stage.written, []);
});

test("a server that lives and acknowledges nothing is probed once for the messages written, and again for those written later", () => {
  const stage = attached();
  const asked: number[] = [];
  const from = stage.now;
  const until = (seconds: number, nonce: number) => {
    for (; stage.now - from < seconds * 1000; stage.pass(100)) {
      if (!stage.pings()) continue;
      asked.push(Math.round((stage.now - from) / 1000));
      stage.serverSends(1, { type: Type.Pong, nonce, sent: 0, acknowledged: 0 });
    }
  };
  stage.machine.send("a job for minutes");
  stage.step();
  until(30, 1);
  stage.machine.send("another");
  stage.step();
  until(50, 2);
  assert.deepEqual([asked, stage.machine.status, stage.did], [[3, 33], "attached", []]);
});

test("bytes that have not left are no reason to probe: a slow upload is not given up, and no replacement is opened", () => {
  const stage = attached();
  stage.machine.send("many bytes");
  stage.isBusy = true;
  stage.step();
  stage.pass(49_000);
  assert.deepEqual([stage.pings(), stage.did, stage.machine.status], [0, [], "attached"]);
  stage.isBusy = false;
  stage.pass(900);
  assert.equal(stage.pings(), 0, "it is looked at every three seconds, and not asked for as soon as it has left");
});

test("a large message has a second for each megabyte: on its way to the server, and from it", () => {
  const stage = attached();
  const verdictAfter = () => {
    const from = stage.now;
    while (stage.machine.current) stage.pass(100);
    return stage.now - from;
  };
  stage.machine.send(new Uint8Array(3_000_000));
  stage.step();
  assert.equal(verdictAfter(), 8000);

  const receiver = attached();
  receiver.arrives(1, "x".repeat(4_000_000));
  receiver.machine.send("thanks");
  receiver.step();
  receiver.pass(8999);
  assert.equal(receiver.machine.current, 1);
  receiver.pass(1);
  assert.equal(receiver.machine.current, 0);
});

test("a slow link has four round trips, and a server that judged for long at first does not count as one", () => {
  const stage = new Stage();
  stage.open(1);
  stage.pass(9000);
  stage.welcome(1);
  assert.equal(stage.machine.rtt, 1000, "WELCOME is the first sample");
  stage.machine.send("far away");
  stage.step();
  stage.pass(3999);
  assert.equal(stage.pings(), 0);
  stage.pass(1);
  assert.equal(stage.pings(), 1);
  stage.pass(3000);
  stage.serverSends(1, { type: Type.Pong, nonce: 1, sent: 0, acknowledged: 1 });
  assert.equal(stage.machine.rtt, 2000);
  stage.machine.send("farther");
  stage.step();
  stage.pass(7999);
  assert.equal(stage.pings(), 0);
  stage.pass(1);
  assert.equal(stage.pings(), 1);
});

test("while another connection is being opened, the old one is not given up for missing acknowledgements", () => {
  const stage = attached();
  stage.machine.send("one");
  stage.step();
  stage.serverSends(1, { type: Type.GoAway, reason: "restart", delay: { earliestMs: 0, latestMs: 0 }, closeInMs: 60_000 });
  stage.pass(1200);
  stage.open(2);
  stage.pass(8000);
  assert.deepEqual([stage.pings(), stage.machine.current], [0, 1]);
});

test("an unanswered message to a plain server with a ping is a reason to probe; without a ping there is none", () => {
  const ping = { message: "ping", matches: (data: unknown) => data === "pong", intervalMs: 60_000 };
  const stage = new Stage({ ping }, false);
  stage.open(1, "plain");
  const send = (text: string) => {
    stage.machine.send(text);
    stage.step();
  };
  stage.machine.beginning = 0;
  send("one");
  stage.pass(1000);
  stage.arrives(1, "an answer");
  stage.step();
  stage.pass(20_000);
  assert.deepEqual(stage.written.splice(0), [[1, "one"]], "a message since then is an answer");
  send("two");
  stage.pass(3000);
  assert.deepEqual(stage.written.splice(0), [[1, "two"], [1, "ping"]]);
  stage.pass(2000);
  assert.equal(stage.last("status").code, 4408);

  const mute = new Stage({}, false);
  mute.open(1, "plain");
  mute.machine.beginning = 0;
  mute.machine.send("one");
  mute.step();
  mute.pass(3600_000);
  assert.deepEqual([mute.written.length, mute.machine.status, mute.machine.pollTimeout()], [1, "attached", Infinity]);
});

test("a peer whose answers take longer than a probe waits is given up once at most: then it has longer", () => {
  for (const [first, takes] of [[undefined, 2500], [20, 2500], [20, 6000]] as const) {
    const ping = { message: "ping", matches: (data: unknown) => data === "pong", intervalMs: 25_000 };
    const stage = new Stage({ ping }, false);
    stage.open(1, "plain");
    stage.machine.rtt = first;
    let verdicts = 0;
    for (let i = 0, id = 1; i < 10; i++) {
      stage.at().probeNow();
      stage.step();
      for (let waited = 0; waited < takes && stage.machine.current === id; waited += 500) stage.pass(500);
      if (stage.machine.current === id) stage.arrives(id, "pong");
      else {
        verdicts++;
        stage.pass(1000);
        stage.open(++id, "plain");
      }
      stage.pass(4000);
    }
    assert.equal(verdicts, 1, `rtt was ${first}, an answer takes ${takes}`);
  }
});

test("a session's probe has four times as long after a connection is given up, until the server makes progress", () => {
  const stage = attached();
  const verdictAfter = (limit: number) => {
    const id = stage.machine.current;
    stage.at().probeNow();
    stage.step();
    stage.pass(limit - 1);
    assert.equal(stage.machine.current, id, `${limit}`);
    stage.pass(1);
    assert.equal(stage.machine.current, 0, `${limit}`);
    // The replacement, opened when the probe was a second old, comes too late.
    stage.open(stage.machine.dialled);
    stage.welcome(stage.machine.dialled, id + 1, true);
  };
  for (const limit of [2000, 8000, 32_000]) verdictAfter(limit);
  stage.serverSends(stage.machine.current, { type: Type.Ack, acknowledged: 0 });
  verdictAfter(2000);
});

test("many requests to probe the peer make one probe while it is open", () => {
  const stage = attached();
  for (let i = 0; i < 20; i++) {
    stage.at().probeNow();
    stage.step();
  }
  assert.equal(stage.pings(), 1);
});

test("a probe leaves when the bytes before it have left, and its time counts from then", () => {
  const stage = attached();
  stage.isBusy = true;
  stage.at().probeNow();
  stage.pass(10_000);
  assert.deepEqual([stage.pings(), stage.machine.status], [0, "attached"]);
  stage.isBusy = false;
  stage.pass(250);
  assert.equal(stage.pings(), 1);
  stage.pass(1750);
  assert.equal(stage.machine.status, "attached");
  stage.pass(250);
  assert.equal(stage.last("status").code, 4408);
});

test("a replacement is opened a second after the probe was asked for, though the probe cannot leave", () => {
  const stage = attached();
  stage.isBusy = true;
  stage.at().probeNow();
  stage.pass(999);
  assert.deepEqual(stage.did, []);
  stage.pass(1);
  assert.deepEqual(stage.did, ["dial 2 offering"]);
});

test("a plain server is given up at its silence limit, and never without one", () => {
  const limited = new Stage({ silenceLimitMs: 8000 }, false);
  limited.open(1, "plain");
  limited.pass(7999);
  assert.equal(limited.machine.status, "attached");
  limited.pass(1);
  assert.equal(limited.last("status").code, 4408);

  const patient = new Stage({}, false);
  patient.open(1, "plain");
  patient.pass(10 * 3600_000);
  assert.equal(patient.machine.status, "attached");
});

test("an application's own ping is sent every interval, its answer is not delivered, and a missing answer gives the connection up", () => {
  const stage = new Stage({ ping: { message: "ping", matches: (data) => data === "pong", intervalMs: 10_000 } }, false);
  stage.open(1, "plain");
  stage.pass(10_000);
  assert.deepEqual(stage.written.splice(0), [[1, "ping"]]);
  stage.arrives(1, "pong", 40);
  stage.arrives(1, "news", 50);
  assert.deepEqual(stage.events.filter(({ type }) => type === "message").map((event: any) => event.data), ["news"]);
  assert.equal(stage.machine.rtt, 40);
  stage.pass(10_000);
  assert.deepEqual(stage.written.splice(0), [[1, "ping"]]);
  stage.pass(2000);
  assert.equal(stage.last("status").code, 4408);
});

test("every re-attach of a plain server is a gap of unknown size", () => {
  const stage = new Stage({}, false);
  stage.open(1, "plain");
  assert.equal(stage.events.filter(({ type }) => type === "gap").length, 0);
  stage.lose(1, 1006, "");
  stage.pass(1000);
  stage.open(2, "plain");
  assert.equal(stage.events.filter(({ type }) => type === "gap").length, 1);
});

test("a plain server that closes with a code of its own ends the client only if the options say so", () => {
  for (const [closeWithPeer, status] of [[false, "waiting"], [true, "ended"]] as const) {
    const stage = new Stage({ closeWithPeer }, false);
    stage.open(1, "plain");
    stage.lose(1, 4000, "enough");
    assert.equal(stage.machine.status, status);
  }
});

test("a server that answers an offer with no subprotocol gets an attempt without one, and one more offer before it counts as plain", () => {
  const stage = new Stage();
  stage.lose(1, 1006, "");
  stage.pass(1000);
  assert.deepEqual(stage.did, ["dial 1 offering", "dial 2"]);
  stage.open(2, "plain");
  assert.deepEqual(stage.did.slice(2), ["dial 3 offering"]);
  stage.arrives(2, "a greeting");
  assert.equal(stage.machine.mode, undefined);
  stage.lose(3, 1006, "");
  assert.deepEqual([stage.machine.mode, stage.machine.status, stage.last("message")], ["plain", "attached", { type: "message", data: "a greeting" }]);
  stage.lose(2, 1006, "");
  stage.pass(1000);
  assert.equal(stage.did.at(-1), "dial 4");
});

test("a server that was only away when the client offered sessions does not count as plain", () => {
  const stage = new Stage();
  stage.lose(1, 1006, "");
  stage.pass(1000);
  stage.open(2, "plain");
  stage.open(3, "session");
  stage.welcome(3);
  assert.deepEqual([stage.machine.mode, stage.did.at(-1)], ["session", "drop 2"]);
});

test("a client that ends, or is suspended, while an offer is made once more leaves neither connection open", () => {
  for (const [act, status, drops] of [
    [(machine: Machine) => machine.close(1000, ""), "ended", ["drop 2", "drop 3"]],
    [(machine: Machine) => machine.suspend(), "suspended", ["drop 2", "drop 3"]],
  ] as const) {
    const stage = new Stage();
    stage.lose(1, 1006, "");
    stage.pass(1000);
    stage.open(2, "plain");
    act(stage.at());
    assert.deepEqual([stage.machine.status, stage.did.slice(-2)], [status, drops]);
  }
});

/** A client whose offer the server answered with no subprotocol, whose trial is open as 2, and whose second offer is under way as 3. */
function onTrial(config: MachineConfig = {}): Stage {
  const stage = new Stage(config);
  stage.lose(1, 1006, "");
  stage.open(2, "plain");
  assert.deepEqual(stage.did, ["dial 1 offering", "dial 2", "dial 3 offering"]);
  return stage;
}

test("a plain server that sends a message and closes at once is read: the message, then the code", () => {
  for (const [code, status] of [[3000, "ended"], [4401, "waiting"], [1000, "waiting"], [1008, "waiting"]] as const) {
    const stage = onTrial();
    stage.arrives(2, "you may not come in");
    stage.lose(2, code, "unauthorized");
    assert.equal(stage.machine.mode, undefined, "the second offer shows what the server speaks");
    stage.lose(3, 1006, "");
    const order = stage.events.map(({ type }) => type).filter((type) => type === "message" || type === "close" || type === "open");
    assert.deepEqual([stage.machine.mode, stage.machine.status, order], ["plain", status, status === "ended" ? ["open", "message", "close"] : ["open", "message"]], `${code}`);
    const loss = stage.last("status");
    assert.deepEqual([loss.code, loss.reason], [code, "unauthorized"]);
  }
  const silent = onTrial({ closeWithPeer: true });
  silent.lose(2, 4401, "");
  silent.lose(3, 1006, "");
  assert.deepEqual([silent.machine.status, silent.last("close").code], ["ended", 4401], "a code alone is a word, too");
});

test("a server that closes the trial because it restarts, or is gone, does not count as plain", () => {
  for (const code of [1001, 1012, 1013, 1006]) {
    const stage = onTrial();
    if (code !== 1006) stage.arrives(2, "hello, plain client");
    stage.lose(2, code, "");
    stage.lose(3, 1006, "");
    assert.equal(stage.machine.mode, undefined, `${code}`);
    stage.pass(1000);
    assert.ok(stage.machine.dialled, `${code}`);
  }
});

test("a server that answers the second offer with a session speaks sessions, whatever it sent on the trial", () => {
  const stage = onTrial();
  stage.arrives(2, "hello, plain client");
  stage.lose(2, 4000, "enough");
  stage.open(3);
  stage.welcome(3);
  assert.deepEqual([stage.machine.mode, stage.last("message"), stage.machine.status], ["session", undefined, "attached"]);
});

test("messages of a trial that failed are not delivered by a later connection", () => {
  const stage = onTrial();
  stage.arrives(2, "hello, plain client");
  stage.lose(2, 4000, "enough");
  stage.at().suspend();
  stage.at().probeNow();
  stage.step();
  stage.at().handleOpened(stage.machine.dialled, "plain");
  stage.step();
  assert.deepEqual([stage.machine.mode, stage.machine.status, stage.last("message")], ["plain", "attached", undefined]);
});

test("a client that is there before its server offers sessions and tries without them in one moment: no server comes up in between", () => {
  const stage = new Stage();
  let id = 0;
  for (let round = 0; round < 8; round++) {
    stage.lose(++id, 1006, "ECONNREFUSED");
    assert.equal(stage.machine.dialled, id + 1, "at once");
    stage.lose(++id, 1006, "ECONNREFUSED");
    assert.equal(stage.machine.dialled, 0);
    while (!stage.machine.dialled) stage.pass(100);
  }
  stage.open(++id);
  stage.welcome(id);
  assert.ok(stage.did.filter((line) => line.endsWith(" offering")).length === 9 && stage.did.at(-1) === `dial ${id} offering`, "the server gets an offer");
});

test("an attempt that was given up, or that a function of the options prevented, is no answer to the offer", () => {
  const stage = new Stage();
  stage.lose(1, 1011, "the URL's function threw");
  stage.pass(1000);
  assert.deepEqual(stage.did, ["dial 1 offering", "dial 2 offering"]);
  stage.pass(9501);
  assert.equal(stage.machine.status, "waiting", "and one without an answer is not followed at once");
});

test("a server that turned plain is accepted once it has forgotten the session, with one gap", () => {
  for (const isBrowser of [false, true]) {
    const stage = attached();
    stage.machine.send("a");
    stage.step();
    stage.lose(1, 1006, "");
    let id = 2;
    const attempt = () => {
      while (stage.machine.dialled !== id) stage.pass(500);
      // A browser fails a connection whose server answers an offer with no subprotocol.
      if (isBrowser && stage.did.at(-1) === `dial ${id} offering`) stage.lose(id, 1006, "");
      else stage.open(id, "plain");
      id++;
    };
    const from = stage.now;
    while (stage.now - from < 85_000) attempt();
    assert.deepEqual([stage.machine.mode, stage.events.some(({ type }) => type === "gap")], ["session", false]);
    while (stage.machine.mode === "session" && stage.now - from < 300_000) attempt();
    assert.deepEqual([stage.machine.mode, stage.machine.status], ["plain", "attached"]);
    const gaps = stage.events.filter(({ type }) => type === "gap").map(({ fate }: any) => [fate.delivered, fate.unknown, fate.last]);
    assert.deepEqual(gaps, [[0, 1, 1]]);
    assert.equal(stage.events.filter(({ type }) => type === "open").length, 2);
    stage.lose(stage.machine.current, 1006, "");
    stage.pass(1000);
    stage.open(stage.machine.dialled, "plain");
    assert.equal(stage.events.filter(({ type }) => type === "gap").length, 2, "and then as with any plain server");
  }
});

test("after a session, an attempt without an offer is the last resort, however short the session is kept", () => {
  const stage = new Stage();
  stage.open(1);
  stage.serverSends(1, { type: Type.Welcome, id: new Uint8Array(8), token: new Uint8Array(24), epoch: 1, resumed: false, acknowledged: 0, first: 1, resumeWindowMs: 100, heartbeatIntervalMs: 25_000, window: { messages: 1024, bytes: 1_048_576 } });
  stage.lose(1, 1006, "");
  for (let id = 2; id < 6; id++) {
    while (stage.machine.dialled !== id) stage.pass(100);
    stage.lose(id, 1006, "refused");
  }
  assert.ok(stage.did.filter((line) => line.startsWith("dial")).every((line) => line.endsWith("offering")), stage.did.join());
});

test("a session that outlived the absence is resumed, though the client tried the server as a plain one", () => {
  const stage = attached();
  stage.lose(1, 1006, "");
  stage.pass(200_000);
  stage.open(stage.machine.dialled || (stage.pass(31_000), stage.machine.dialled));
  stage.welcome(stage.machine.dialled, 2, true);
  assert.deepEqual([stage.machine.mode, stage.last("session").resumed, stage.last("gap")], ["session", true, undefined]);
});

test("a lost session is one gap, though the server refuses the next key for its age", () => {
  const stage = attached();
  stage.machine.send("more than the server takes");
  stage.step();
  let id = 1;
  const gaps = () => stage.events.filter(({ type }) => type === "gap").length;
  while (!gaps()) {
    stage.lose(id++, 1006, "");
    while (stage.machine.dialled !== id) stage.pass(1000);
    stage.open(id);
    if (!gaps()) stage.welcome(id, id, true);
  }
  assert.equal((decode(stage.written.findLast(([, data]) => decode(data)?.type === Type.Hello)![1]) as Hello).keyAgeMs, 0, "a new key was never sent before");
  stage.serverSends(id, { type: Type.Refuse, code: 4411, temporary: false, delay: { earliestMs: 0, latestMs: 0 } });
  stage.pass(1000);
  stage.open(++id);
  stage.welcome(id);
  assert.deepEqual([stage.machine.status, gaps()], ["attached", 1]);
});

test("a client takes another key once every HELLO with the old one was refused for now", () => {
  // The answers to HELLO: a code, or 0 for none. Whether the HELLO behind each has another key.
  const cases: [number[], boolean[]][] = [
    [[4413, 4414], [true, true]],
    [[0, 4413], [false, false]],
    [[4413, 0, 4413], [true, false, false]],
    [[4410, 4413], [false, false]],
  ];
  for (const [answers, expected] of cases) {
    const stage = new Stage();
    const hello = () => decode(stage.written.findLast(([, data]) => decode(data)?.type === Type.Hello)![1]) as Hello;
    let id = 1;
    stage.open(id);
    answers.forEach((code, at) => {
      const before = hello();
      if (code) stage.serverSends(id, { type: Type.Refuse, code, temporary: true, delay: { earliestMs: 0, latestMs: 0 } });
      stage.lose(id++, 1006, "");
      while (stage.machine.dialled !== id) stage.pass(1000);
      stage.open(id);
      const next = hello();
      assert.deepEqual([toHex(next.key) !== toHex(before.key), next.keyAgeMs === 0], [expected[at], expected[at]], `${answers} ${at}`);
    });
  }
});

test("an idle session outlives any number of connections that brought a heartbeat, and five that brought nothing end it", () => {
  const gapsAfter = (connections: number, beats: boolean, message?: string) => {
    const stage = new Stage();
    if (message) stage.machine.send(message);
    for (let id = 1; id <= connections; id++) {
      while (stage.machine.dialled !== id) stage.pass(1000);
      stage.open(id);
      stage.welcome(id, id, id > 1);
      if (beats) stage.serverSends(id, { type: Type.Ping, nonce: 1, sent: 0, acknowledged: 0 });
      stage.lose(id, 1006, "");
    }
    return stage.events.filter(({ type }) => type === "gap").length;
  };
  assert.deepEqual([gapsAfter(20, true), gapsAfter(5, false), gapsAfter(5, true, "it may end connections")], [0, 1, 1]);
});

test("a key that is refused before anything was written is no gap: nothing is lost", () => {
  const stage = new Stage();
  stage.open(1);
  stage.lose(1, 1006, "");
  stage.pass(1000);
  stage.open(2);
  stage.serverSends(2, { type: Type.Refuse, code: 4411, temporary: false, delay: { earliestMs: 0, latestMs: 0 } });
  stage.pass(1000);
  stage.open(3);
  stage.welcome(3);
  assert.deepEqual([stage.machine.status, stage.events.map(({ type }) => type)], ["attached", ["session", "open"]]);
});

test("an attempt that hangs for two seconds is abandoned when the page asks for a connection; the next may take twice as long", () => {
  const stage = new Stage();
  const ask = () => {
    stage.at().probeNow();
    stage.step();
  };
  stage.pass(1999);
  ask();
  assert.deepEqual(stage.did, ["dial 1 offering"]);
  stage.pass(1);
  ask();
  assert.deepEqual(stage.did.splice(0), ["dial 1 offering", "drop 1", "dial 2 offering"]);
  for (let i = 0; i < 3; i++) {
    stage.pass(1000);
    ask();
  }
  assert.deepEqual(stage.did, [], "a handshake that takes three seconds has them");
  stage.open(2);
  stage.welcome(2);
  assert.equal(stage.machine.status, "attached");
});

test("a connection that is lost beside a replacement that hangs is followed within a second", () => {
  const stage = attached();
  stage.serverSends(1, { type: Type.GoAway, reason: "restart", delay: { earliestMs: 0, latestMs: 0 }, closeInMs: 60_000 });
  stage.pass(1000);
  assert.equal(stage.machine.dialled, 2);
  stage.pass(3000);
  stage.lose(1, 1006, "");
  stage.pass(1000);
  assert.deepEqual(stage.did, ["dial 2 offering", "drop 2", "dial 3 offering"]);
});

test("a client gives up after the configured number of attempts in a row, with the code of the last", () => {
  for (const [maxRetries, dials] of [[0, 2], [3, 8]] as const) {
    const stage = new Stage({ maxRetries });
    for (let id = 1; stage.machine.status !== "ended" && id < 20; id++) {
      while (stage.machine.dialled !== id) stage.pass(1000);
      stage.lose(id, 1006, `refused ${id}`);
    }
    // Each retry is one attempt with an offer and one without.
    assert.deepEqual([stage.did.length, stage.last("close").code, stage.last("close").reason], [dials, 1006, `refused ${dials}`]);
  }
  const plain = new Stage({ maxRetries: 1 }, false);
  for (let id = 1; id < 6; id++) {
    plain.open(id, "plain");
    plain.pass(10_000);
    plain.lose(id, 1006, "");
    assert.equal(plain.machine.status, "waiting", "a connection that lived begins the count anew");
    plain.pass(1000);
  }
});

test("the application decides after which losses the client stays away, and is asked about each", () => {
  const asked: number[] = [];
  const shouldReconnectOnClose = ({ code }: { code: number }) => asked.push(code) < 3 && code !== 4001;
  const stage = new Stage({ shouldReconnectOnClose }, false);
  stage.open(1, "plain");
  stage.lose(1, 1006, "");
  stage.pass(1000);
  stage.open(2, "plain");
  stage.lose(2, 4001, "logged out");
  assert.deepEqual([asked, stage.machine.status, stage.last("close").code], [[1006, 4001], "ended", 4001]);

  const session = attached({ shouldReconnectOnClose: () => false });
  session.machine.send("a");
  session.step();
  session.lose(1, 1006, "cut");
  assert.deepEqual([session.machine.status, session.last("close").fate.unknown, session.machine.pollTimeout()], ["ended", 1, Infinity]);

  const own = attached({ shouldReconnectOnClose: () => false });
  own.at().suspend();
  assert.equal(own.machine.status, "suspended", "leaving is no loss");
});

test("a function of the options that throws is reported as an error, and the client goes on", () => {
  const oops = (): never => {
    throw new SyntaxError("oops");
  };
  const stage = new Stage({ shouldReconnectOnClose: oops, ping: { message: "ping", matches: oops, intervalMs: 60_000 } }, false);
  stage.open(1, "plain");
  stage.arrives(1, "news");
  assert.deepEqual([stage.last("error").error.name, stage.last("message")], ["SyntaxError", { type: "message", data: "news" }], "the message is not lost");
  stage.lose(1, 1006, "");
  assert.deepEqual([stage.events.filter(({ type }) => type === "error").length, stage.machine.status], [2, "waiting"]);
});

test("reconnect leaves with the code, dials at once and counts attempts anew; after the end it has no effect", () => {
  const stage = attached();
  (stage.machine as any).attempts = 7;
  stage.at().reconnect(4000, "another room");
  stage.step();
  assert.deepEqual([stage.did, stage.machine.status, (stage.machine as any).attempts], [["drop 1 4000", "dial 2 offering"], "connecting", 0]);
  stage.open(2);
  stage.welcome(2, 2, true);
  assert.deepEqual([stage.last("session").resumed, stage.last("gap")], [true, undefined]);

  const waiting = new Stage({}, false);
  waiting.lose(1, 1006, "");
  waiting.at().reconnect(1000, "");
  waiting.step();
  assert.equal(waiting.did.at(-1), "dial 2");

  const ended = attached();
  ended.at().endNow(1000, "");
  ended.at().reconnect(1000, "");
  ended.step();
  assert.deepEqual([ended.machine.status, ended.machine.pollTimeout()], ["ended", Infinity]);
});

test("an END without an answer ends with the probe after it, and is not clean", () => {
  const stage = attached();
  stage.at().close(1000, "bye");
  stage.step();
  stage.pass(1999);
  assert.equal(stage.machine.status, "closing");
  stage.pass(1);
  assert.deepEqual([stage.machine.status, stage.last("close").code, stage.last("close").wasClean], ["ended", 1000, false]);
});

test("a Close that a plain server does not answer ends after five seconds; with bytes that have not left, after ten", () => {
  for (const [isBusy, limit] of [[false, 5000], [true, 10_000]] as const) {
    const stage = new Stage({}, false);
    stage.open(1, "plain");
    stage.machine.beginning = 0;
    stage.isBusy = isBusy;
    stage.at().close(1000, "bye");
    stage.step();
    stage.pass(limit - 1);
    assert.equal(stage.machine.status, "closing");
    stage.pass(1);
    assert.deepEqual([stage.machine.status, stage.last("close").wasClean], ["ended", false]);
  }
});

test("GOAWAY is followed within its delay, and before the server closes", () => {
  const stage = attached();
  stage.random = 0.999999;
  stage.serverSends(1, { type: Type.GoAway, reason: "restart", delay: { earliestMs: 2000, latestMs: 30_000 }, closeInMs: 6000 });
  stage.pass(1999);
  assert.deepEqual(stage.did, []);
  stage.pass(4001);
  assert.deepEqual(stage.did, ["dial 2 offering"]);
});

test("the advice of a REFUSE takes precedence over the client's own delay, and a final REFUSE ends the client", () => {
  const stage = new Stage();
  stage.open(1);
  stage.serverSends(1, { type: Type.Refuse, code: 4413, temporary: true, delay: { earliestMs: 5000, latestMs: 9000 } });
  const { nextAttemptInMs } = stage.last("status");
  assert.ok(nextAttemptInMs >= 5000 && nextAttemptInMs <= 9000, String(nextAttemptInMs));
  stage.pass(9000);
  stage.open(2);
  stage.lose(2, 1006, "");
  assert.ok(stage.last("status").nextAttemptInMs <= 500, "it was about one attempt");
  stage.pass(500);
  stage.open(3);
  stage.serverSends(3, { type: Type.Refuse, code: 4501, temporary: false, delay: { earliestMs: 0, latestMs: 0 } });
  assert.deepEqual([stage.machine.status, stage.last("close").code], ["ended", 4501]);
  assert.equal(stage.machine.pollTimeout(), Infinity);
});

test("a client that is closed before it ever had a connection ends at once; one that has sent a message delivers it first", () => {
  const stage = new Stage();
  stage.at().close(1000, "");
  assert.deepEqual([stage.machine.status, stage.last("close").wasClean], ["ended", false]);

  const sender = new Stage();
  sender.machine.send("last words");
  sender.at().close(1000, "bye");
  assert.equal(sender.machine.status, "closing");
  sender.pass(9999);
  assert.equal(sender.machine.status, "closing");
  sender.pass(1);
  assert.deepEqual([sender.machine.status, sender.last("close").fate.last], ["ended", 1]);
});

test("a close with 1013 states when to come back: that takes precedence over the client's own delay, and is spread", () => {
  for (const sessions of [true, false]) {
    const waits = (reason: string, code = 1013) =>
      [0, 0.999999].map((random) => {
        const stage = new Stage({}, sessions);
        stage.random = random;
        stage.lose(1, code, reason);
        return Math.round(stage.last("status").nextAttemptInMs);
      });
    assert.deepEqual(waits("retry_ms=40000, no room"), [40_000, 44_000]);
    assert.deepEqual(waits("retry_ms=1500"), [1500, 2500]);
    assert.deepEqual(waits("retry_ms=0"), [0, 1000]);
    assert.deepEqual(waits(`retry_ms=${"9".repeat(23)}`), [540_000, 594_000], "for as long as advice is followed");
    for (const reason of ["", "retry_ms=", "retry_ms=-5", "later", "after retry_ms=40000"]) assert.deepEqual(waits(reason), [1, 1000], reason);
    assert.deepEqual(waits("retry_ms=40000", 1012), [1, 1000]);
  }
});

test("a client comes back to a restarted server within a second, and its session goes on", () => {
  const stage = attached();
  stage.lose(1, 1012, "");
  assert.ok(stage.last("status").nextAttemptInMs <= 1000);
  stage.pass(1000);
  stage.open(2);
  stage.welcome(2, 2, true);
  assert.equal(stage.last("session").resumed, true);
});

test("a REPLACED costs no acknowledgement and no timer", () => {
  const stage = attached();
  stage.serverSends(1, { type: Type.Replaced, after: 0, count: 1 });
  const { clientSession } = stage.machine as SessionMachine;
  assert.deepEqual(clientSession.deliver(stage.now), { data: undefined, first: 1, count: 0, bytes: 0 });
  assert.deepEqual([clientSession.pollTimeout(), clientSession.flow.inbox.acknowledged, clientSession.flow.inbox.delivered], [Infinity, 0, 0]);
  stage.arrives(1, "x");
  assert.equal(clientSession.deliver(stage.now)?.first, 1);
});

test("a suspended client stays away until the application reconnects, and its session goes on", () => {
  const stage = attached();
  stage.at().suspend();
  assert.deepEqual([stage.machine.status, stage.did], ["suspended", ["drop 1"]]);
  stage.pass(3600_000);
  assert.equal(stage.did.length, 1);
  stage.at().probeNow();
  stage.step();
  stage.open(2);
  stage.welcome(2, 2, true);
  assert.deepEqual([stage.machine.status, stage.last("session").resumed], ["attached", true]);
});

test("a message against the protocol fails the connection with 4400, is one error, and keeps the session", () => {
  const hostile: [string, Data][] = [
    ["an unknown type", Uint8Array.of(0x0d)],
    ["no bytes", new Uint8Array()],
    ["a second WELCOME", encode({ type: Type.Welcome, id: new Uint8Array(8), token: new Uint8Array(24), epoch: 2, resumed: false, acknowledged: 0, first: 1, resumeWindowMs: 0, heartbeatIntervalMs: 100, window: { messages: 1, bytes: 0 } })],
    ["HELLO", encode({ type: Type.Hello, version: 1, window: { messages: 1, bytes: 0 }, key: new Uint8Array(16), keyAgeMs: 0, instance: new Uint8Array(8), attempt: 1 })],
    ["an acknowledgement of what was never written", encode({ type: Type.Ack, acknowledged: 7 })],
    ["AUTH_RESULT without AUTH", encode({ type: Type.AuthResult, accepted: true, expiresInMs: 0 })],
    ["REFUSE after WELCOME", encode({ type: Type.Refuse, code: 4413, temporary: true, delay: { earliestMs: 0, latestMs: 0 } })],
  ];
  for (const [name, message] of hostile) {
    const stage = attached();
    stage.arrives(1, message);
    stage.step();
    assert.deepEqual(stage.did, ["drop 1 4400"], name);
    assert.equal(stage.events.filter(({ type }) => type === "error").length, 1, name);
    assert.equal(stage.machine.status, "waiting", name);
    stage.pass(200);
    stage.open(2);
    stage.welcome(2, 2, true);
    assert.equal(stage.last("session").resumed, true, name);
  }
});

test("only the newest of the credentials that wait for a verdict are reported, and each has its AUTH", () => {
  const stage = attached();
  const { clientSession } = stage.machine as SessionMachine;
  const judged = () => stage.events.filter(({ type }) => type === "authenticated").map((event: any) => event.accepted);
  for (const credentials of [Uint8Array.of(1), Uint8Array.of(2)]) clientSession.authenticate(credentials);
  stage.serverSends(1, { type: Type.AuthResult, accepted: true, expiresInMs: 0 });
  assert.deepEqual(judged(), []);
  stage.serverSends(1, { type: Type.AuthResult, accepted: false, expiresInMs: 0 });
  assert.deepEqual(judged(), [false]);
  const presented = stage.written.map(([, data]) => decode(data)).filter((frame) => frame?.type === Type.Auth);
  assert.deepEqual(presented.map((frame) => frame?.credentials), [Uint8Array.of(1), Uint8Array.of(2)]);
});

test("positions that differ end the session, with one error and one close", () => {
  const stage = attached();
  stage.arrives(1, encode({ type: Type.Ping, nonce: 1, sent: 5, acknowledged: 0 }));
  stage.step();
  assert.deepEqual([stage.machine.status, stage.last("close").code], ["ended", 4400]);
  assert.deepEqual(stage.events.slice(-2).map(({ type }) => type), ["error", "close"]);
  const end = stage.written.map(([, data]) => decode(data)).find((frame) => frame?.type === Type.End);
  assert.equal(end?.code, 4400);
});

test("a message beyond the window is refused, and not delivered", () => {
  const stage = attached();
  for (let i = 0; i < 1024; i++) stage.arrives(1, `${i}`);
  assert.equal(stage.machine.status, "attached");
  stage.arrives(1, "one too many");
  assert.deepEqual(stage.did, ["drop 1 4400"]);
});

test("only WELCOME and REFUSE may come before WELCOME", () => {
  for (const message of ["early", encode({ type: Type.Ping, nonce: 1, sent: 0, acknowledged: 0 })]) {
    const stage = new Stage();
    stage.open(1);
    stage.arrives(1, message);
    assert.equal(stage.did.at(-1), "drop 1 4400");
  }
});
