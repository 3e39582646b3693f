/**
 * Compares the plugin with `@fastify/websocket` plus the heartbeat of the README of `ws`, and with Socket.IO, in one run. All
 * servers run at the same time and get their load in turns of a fifth of a second, so that a disturbance of the machine
 * affects all of them alike; heartbeats have turns of seconds. The program prints the medians of the turns, and their ratio to
 * those of `@fastify/websocket`. CPU is the user and system time of a server's process.
 *
 *     node bench/measure.mjs [--turns 15] [--quick] [--json] [--only echo,heartbeat] [--server plugin,websocket]
 */

import { fork, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Client, echoFrame } from "./client.mjs";

const { values: options } = parseArgs({
  options: {
    turns: { type: "string", default: "15" },
    quick: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    only: { type: "string" },
    server: { type: "string" },
  },
});

const ALL = [
  { name: "@mainstay/fastify", program: "plugin", dialect: "plain" },
  { name: "@mainstay/fastify, session", program: "plugin", dialect: "session" },
  { name: "@fastify/websocket", program: "websocket", dialect: "plain" },
  { name: "Socket.IO", program: "socketio", dialect: "socketio" },
];

const SIZES = options.quick
  ? { connections: 10, turn: 50, turns: 2, beats: 20, interval: 200, held: 50 }
  : { connections: 100, turn: 200, turns: Number(options.turns), beats: 2500, interval: 2000, held: 3000 };

/** Each scenario takes the running servers and returns its figures by name, with the values of each server. */
const SCENARIOS = {
  echo: (all) => inTurns(all, "echo of 64 B, us", (running) => new Echo(running, 64, 1)),
  echo16: (all) => inTurns(all, "echo of 64 B, 16 in flight, us", (running) => new Echo(running, 64, 16)),
  large: (all) => inTurns(all, "echo of 16 KiB, us", (running) => new Echo(running, 16_384, 1)),
  handshake: (all) => inTurns(all, "handshake and its end, us", (running) => new Handshake(running)),
  heartbeat,
  memory,
};

/** This process has the second core to itself and the servers share the first: wake-ups across cores would change the figures. */
const isPinned = spawnSync("taskset", ["-cp", "1", String(process.pid)]).status === 0;

const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));

/** A server in a fresh process, so that one scenario does not affect the next. */
class Running {
  static async start({ program: kind, dialect }, intervalMs = 3_600_000) {
    const running = new Running();
    running.dialect = dialect;
    const program = fileURLToPath(new URL("server.mjs", import.meta.url));
    const pinned = { execPath: "taskset", execArgv: ["-c", "0", process.execPath, "--expose-gc"] };
    running.process = fork(program, [kind, String(intervalMs)], isPinned ? pinned : { execArgv: ["--expose-gc"] });
    [{ port: running.port }] = await once(running.process, "message");
    return running;
  }

  async ask(question) {
    this.process.send(question);
    const [answer] = await once(this.process, "message");
    return answer;
  }

  async cpu() {
    return (await this.ask("cpu")).cpu;
  }

  /** Counts probes from now on, in slots of 10 ms. */
  begin() {
    this.from = performance.now();
    this.beats = 0;
    this.slots = [];
  }

  probed() {
    this.beats++;
    const slot = Math.floor((performance.now() - this.from) / 10);
    if (slot >= 0) this.slots[slot] = (this.slots[slot] ?? 0) + 1;
  }

  open() {
    return Client.open(this.port, this.dialect);
  }

  /** Opens `count` connections, 50 at a time. */
  async openAll(count) {
    const clients = [];
    while (clients.length < count) clients.push(...(await Promise.all(Array.from({ length: Math.min(50, count - clients.length) }, () => this.open()))));
    return clients;
  }

  stop() {
    this.process.kill("SIGKILL");
  }
}

/** Measures the CPU time of one operation of a load. The first turn only warms up. */
async function inTurns(all, figure, loadOf) {
  const loads = all.map(loadOf);
  for (const load of loads) await load.prepare();
  const values = all.map(() => []);
  for (let turn = 0; turn <= SIZES.turns; turn++) {
    for (const [i, load] of loads.entries()) {
      const before = await all[i].cpu();
      const rest = stayAwake();
      const count = await load.run(SIZES.turn);
      rest();
      const used = (await all[i].cpu()) - before;
      if (turn) values[i].push(used / count);
    }
  }
  return { [figure]: values };
}

/** Keeps this process awake, so that no server has to wake it: that cost would depend on the server's speed. */
function stayAwake() {
  let isOver = false;
  const turn = () => isOver || setImmediate(turn);
  turn();
  return () => (isOver = true);
}

class Echo {
  constructor(running, size, inFlight) {
    this.running = running;
    this.message = echoFrame(running.dialect, size);
    this.inFlight = inFlight;
  }

  async prepare() {
    this.clients = await this.running.openAll(SIZES.connections);
    for (const client of this.clients) client.onMessage = () => this.answered(client);
  }

  /** Runs for `ms`, and until the last messages have come back. */
  run(ms) {
    this.count = 0;
    this.open = this.clients.length * this.inFlight;
    for (const client of this.clients) this.write(client, this.inFlight);
    this.isOver = false;
    setTimeout(() => (this.isOver = true), ms);
    return new Promise((done) => (this.done = done));
  }

  answered(client) {
    this.count++;
    if (this.isOver) {
      if (!--this.open) this.done(this.count);
      return;
    }
    // Messages that arrive together are answered together.
    client.owed = (client.owed ?? 0) + 1;
    if (client.owed > 1) return;
    process.nextTick(() => {
      this.write(client, client.owed);
      client.owed = 0;
    });
  }

  write(client, count) {
    client.sent += count;
    client.write(count === 1 ? this.message : Buffer.concat(Array(count).fill(this.message)));
  }
}

class Handshake {
  constructor(running) {
    this.running = running;
  }

  prepare() {}

  async run(ms) {
    const until = performance.now() + ms;
    let count = 0;
    const again = async () => {
      while (performance.now() < until) {
        const client = await this.running.open();
        await client.close();
        count++;
      }
    };
    await Promise.all(Array.from({ length: Math.min(32, SIZES.connections) }, again));
    return count;
  }
}

/** Measures one server after the other, several times: together they would evict each other from the core's caches. */
async function heartbeat(all) {
  const used = all.map(() => []);
  const worst = all.map(() => []);
  for (let round = 0; round < (options.quick ? 1 : 3); round++) {
    for (const [i, running] of all.entries()) {
      const clients = await running.openAll(SIZES.beats);
      for (const client of clients) client.onProbe = () => running.probed();
      await sleep(SIZES.interval);
      const before = await running.cpu();
      running.begin();
      await sleep((options.quick ? 5 : 2) * SIZES.interval);
      const slots = (performance.now() - running.from) / 10;
      const { beats } = running;
      used[i].push(((await running.cpu()) - before) / beats);
      worst[i].push(Math.max(...Array.from(running.slots, (count) => count ?? 0)) / (beats / slots));
      for (const client of clients) client.abort();
      await sleep(200);
    }
  }
  return { "heartbeat, us": used, "heartbeats in the worst 10 ms, of the mean": worst };
}

async function memory(all) {
  const heap = [];
  const resident = [];
  for (const running of all) {
    const warm = await running.openAll(Math.min(200, SIZES.held));
    const first = await running.ask("memory");
    const clients = await running.openAll(SIZES.held);
    const last = await running.ask("memory");
    for (const client of [...warm, ...clients]) client.abort();
    heap.push([(last.heap - first.heap) / SIZES.held]);
    resident.push([(last.rss - first.rss) / SIZES.held]);
  }
  return { "heap of an idle connection, B": heap, "resident memory of an idle connection, B": resident };
}

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
const shown = (value) => (value < 100 ? value.toFixed(value < 10 ? 2 : 1) : String(Math.round(value)));

const servers = ALL.filter(({ name, program }) => !options.server || options.server.split(",").some((one) => one === program || one === name));
/** The installed versions, as a list for a sentence. */
const versions = ["fastify", "@fastify/websocket", "ws", "socket.io"].map((name) => `${name} ${createRequire(import.meta.url)(`${name}/package.json`).version}`).join(", ");

const figures = [];
for (const [scenario, run] of Object.entries(SCENARIOS)) {
  if (options.only && !options.only.split(",").includes(scenario)) continue;
  // Every scenario has fresh processes.
  const all = await Promise.all(servers.map((server) => Running.start(server, scenario === "heartbeat" ? SIZES.interval : undefined)));
  for (const [figure, values] of Object.entries(await run(all))) {
    figures.push({ figure, servers: servers.map(({ name }, i) => ({ name, value: median(values[i]) })) });
  }
  for (const running of all) running.stop();
  console.error(`measured: ${scenario}`);
}
if (options.json) console.log(JSON.stringify({ versions, figures }, null, 2));
else {
  for (const { figure, servers: found } of figures) {
    const peer = found.find(({ name }) => name === "@fastify/websocket")?.value;
    console.log(`${figure}\n${found.map(({ name, value }) => `  ${name.padEnd(28)}${shown(value).padStart(8)}${peer ? `${(value / peer).toFixed(2).padStart(8)} x` : ""}`).join("\n")}`);
  }
}
process.exit();
