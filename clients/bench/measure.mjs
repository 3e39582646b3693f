/**
 * The plugin beside what it replaces, in one run: `@fastify/websocket` with the heartbeat of the README of `ws`, and
 * Socket.IO. Each round gives each server its turn in each scenario; the medians of the rounds are printed, with what
 * they are of the plugin's in front of plain clients. CPU is the user and system time of the server's process.
 *
 *     node bench/measure.mjs [--rounds 3] [--quick] [--json] [--only echo,heartbeat] [--server plugin,websocket]
 */

import { fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Client, echoFrame } from "./client.mjs";

const { values: options } = parseArgs({
  options: {
    rounds: { type: "string", default: "3" },
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

const SIZES = options.quick ? { connections: 10, ms: 100, beats: 20, interval: 200, held: 50 } : { connections: 100, ms: 1500, beats: 2500, interval: 2000, held: 3000 };

/** Each gives its figures by name. */
const SCENARIOS = {
  echo: (server) => echo(server, 64, 1, "echo of 64 B, us"),
  echo16: (server) => echo(server, 64, 16, "echo of 64 B, 16 in flight, us"),
  large: (server) => echo(server, 16_384, 1, "echo of 16 KiB, us"),
  handshake,
  heartbeat,
  memory,
};

const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));

/** A fresh process: what one scenario leaves behind is no matter of the next. */
class Running {
  static async start({ program, dialect }, interval = 3_600_000) {
    const running = new Running();
    running.dialect = dialect;
    running.process = fork(fileURLToPath(new URL("server.mjs", import.meta.url)), [program, String(interval)], { execArgv: ["--expose-gc"] });
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

  open() {
    return Client.open(this.port, this.dialect);
  }

  /** So many, a few at a time. */
  async openAll(count) {
    const clients = [];
    while (clients.length < count) clients.push(...(await Promise.all(Array.from({ length: Math.min(50, count - clients.length) }, () => this.open()))));
    return clients;
  }

  stop() {
    this.process.kill("SIGKILL");
  }
}

async function echo(server, size, inFlight, figure) {
  const running = await Running.start(server);
  const message = echoFrame(server.dialect, size);
  const first = Buffer.concat(Array(inFlight).fill(message));
  let count = 0;
  const clients = await running.openAll(SIZES.connections);
  for (const client of clients) {
    // What comes together is answered together.
    let owed = 0;
    client.onMessage = () => {
      count++;
      if (owed++) return;
      process.nextTick(() => {
        client.sent += owed;
        client.write(owed === 1 ? message : Buffer.concat(Array(owed).fill(message)));
        owed = 0;
      });
    };
    client.sent += inFlight;
    client.write(first);
  }
  await sleep(SIZES.ms / 3);
  const [before, counted] = [await running.cpu(), count];
  await sleep(SIZES.ms);
  const found = { [figure]: ((await running.cpu()) - before) / (count - counted) };
  running.stop();
  return found;
}

async function handshake(server) {
  const running = await Running.start(server);
  let count = 0;
  let isOver = false;
  const again = async () => {
    while (!isOver) {
      const client = await running.open();
      await client.close();
      count++;
    }
  };
  const all = Promise.all(Array.from({ length: Math.min(64, SIZES.connections) }, again));
  await sleep(SIZES.ms / 3);
  const [before, counted] = [await running.cpu(), count];
  await sleep(SIZES.ms);
  const found = { "handshake and its end, us": ((await running.cpu()) - before) / (count - counted) };
  isOver = true;
  await all;
  running.stop();
  return found;
}

async function heartbeat(server) {
  const running = await Running.start(server, SIZES.interval);
  const slots = [];
  let count = 0;
  let from = Infinity;
  const clients = await running.openAll(SIZES.beats);
  for (const client of clients) {
    client.onProbe = () => {
      count++;
      const slot = Math.floor((performance.now() - from) / 10);
      if (slot >= 0) slots[slot] = (slots[slot] ?? 0) + 1;
    };
  }
  await sleep(SIZES.interval);
  from = performance.now();
  const [before, counted] = [await running.cpu(), count];
  await sleep(2 * SIZES.interval);
  const [cpu, beats] = [(await running.cpu()) - before, count - counted];
  const mean = beats / ((performance.now() - from) / 10);
  const found = { "heartbeat, us": cpu / beats, "heartbeats in the worst 10 ms, of the mean": Math.max(...Array.from(slots, (count) => count ?? 0)) / mean };
  running.stop();
  return found;
}

async function memory(server) {
  const running = await Running.start(server);
  const warm = await running.openAll(Math.min(200, SIZES.held));
  const first = await running.ask("memory");
  const clients = await running.openAll(SIZES.held);
  const last = await running.ask("memory");
  running.stop();
  for (const client of [...warm, ...clients]) client.abort();
  return { "heap of an idle connection, B": (last.heap - first.heap) / SIZES.held, "resident memory of an idle connection, B": (last.rss - first.rss) / SIZES.held };
}

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
const shown = (value) => (value < 100 ? value.toFixed(value < 10 ? 2 : 1) : String(Math.round(value)));

const servers = ALL.filter(({ name, program }) => !options.server || options.server.split(",").some((one) => one === program || one === name));
const rounds = options.quick ? 1 : Number(options.rounds);
const results = {};
for (let round = 0; round < rounds; round++) {
  for (const [scenario, run] of Object.entries(SCENARIOS)) {
    if (options.only && !options.only.split(",").includes(scenario)) continue;
    for (const server of servers) {
      for (const [figure, value] of Object.entries(await run(server))) {
        ((results[figure] ??= {})[server.name] ??= []).push(value);
        console.error(`round ${round + 1}, ${server.name}: ${figure} ${shown(value)}`);
      }
    }
  }
}
const medians = Object.fromEntries(Object.entries(results).map(([figure, found]) => [figure, Object.fromEntries(Object.entries(found).map(([name, values]) => [name, median(values)]))]));
if (options.json) console.log(JSON.stringify(medians, null, 2));
else {
  for (const [figure, found] of Object.entries(medians)) {
    const peer = found["@fastify/websocket"];
    console.log(`${figure}\n${Object.entries(found).map(([name, value]) => `  ${name.padEnd(28)}${shown(value).padStart(8)}${peer ? `${(value / peer).toFixed(2).padStart(8)} x` : ""}`).join("\n")}`);
  }
}
process.exit();
