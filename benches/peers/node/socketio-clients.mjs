// Many clients of Socket.IO with its defaults; the counterpart of proof/peers/src/bin/storm_client.rs.
//
//   node socketio-clients.mjs --nodes FILE --clients COUNT --every SECONDS
//
// FILE names the servers, `HOST:PORT` each, separated by white space; every attempt goes to one at random. Client K emits
// `m K 1`, `m K 2`, ..., one each SECONDS. Whenever all are connected, one JSON line says how that went. SIGTERM ends the
// sending; what is under way may arrive for 5 s; then the last line counts everything, and the process ends. `--list FILE`
// gets a line for each message: client, number, whether it came back.
import { readFileSync, writeFileSync } from "node:fs";
import { io } from "socket.io-client";

const value = (name) => process.argv[process.argv.indexOf(name) + 1];
const count = Number(value("--clients"));
const every = Number(value("--every")) * 1000;
const BEGIN = 1000; // clients that begin in a second
const LAST = 5000;

const pick = () => {
  const nodes = readFileSync(value("--nodes"), "utf8").trim().split(/\s+/);
  return `http://${nodes[Math.floor(Math.random() * nodes.length)]}`;
};
const tally = { connected: 0, began: 0, lost: 0, recovered: 0, fresh: 0, failed: 0 };
const interruptions = [];
const lives = [];
let isOver = false;

function begin(client) {
  const life = { sent: 0, back: new Map(), last: 0, disordered: 0, lostAt: 0 };
  const socket = io(pick(), { forceNew: true, transports: ["websocket"] });
  socket.io.on("reconnect_attempt", () => (socket.io.uri = pick()));
  socket.on("connect_error", () => tally.failed++);
  socket.on("connect", () => {
    tally.connected++;
    tally[socket.recovered ? "recovered" : "fresh"]++;
    if (life.lostAt) interruptions.push(Date.now() - life.lostAt);
    if (tally.connected === count) print();
  });
  socket.on("disconnect", (reason) => {
    if (tally.connected === count) Object.assign(tally, { began: Date.now(), lost: 0, recovered: 0, fresh: 0, failed: 0 });
    tally.connected--;
    tally.lost++;
    life.lostAt = Date.now();
    // The manual: a client that the server disconnected reconnects only if it is told to.
    if (reason === "io server disconnect") socket.connect();
  });
  socket.on("m", (number) => {
    life.back.set(number, (life.back.get(number) ?? 0) + 1);
    if (number < life.last) life.disordered++;
    life.last = Math.max(life.last, number);
  });
  const send = () => {
    if (!isOver) socket.emit("m", client, ++life.sent);
  };
  setTimeout(() => setInterval(send, every), (every * client) / count);
  lives.push(life);
}

function print() {
  const seconds = tally.began ? (Date.now() - tally.began) / 1000 : 0;
  console.log(JSON.stringify({ attached: count, seconds, ...tally }));
}

for (let client = 1; client <= count; client++) setTimeout(begin, (client * 1000) / BEGIN, client);
process.once("SIGTERM", () => {
  isOver = true;
  setTimeout(end, LAST);
});

function end() {
  const sum = (of) => lives.reduce((sum, life) => sum + of(life), 0);
  interruptions.sort((a, b) => a - b);
  const within = (percent) => interruptions[Math.ceil((interruptions.length * percent) / 100) - 1] ?? 0;
  const lines = lives.flatMap((life, at) =>
    Array.from({ length: life.sent }, (_, sent) => `${at + 1} ${sent + 1} ${life.back.has(sent + 1)}`),
  );
  writeFileSync(value("--list"), `${lines.join("\n")}\n`);
  const summary = {
    clients: count,
    sent: sum((life) => life.sent),
    back: sum((life) => life.back.size),
    twice: sum((life) => [...life.back.values()].filter((times) => times > 1).length),
    disordered: sum((life) => life.disordered),
    interruptions: interruptions.length,
    interrupted_50: within(50),
    interrupted_99: within(99),
  };
  console.log(JSON.stringify(summary));
  process.exit(0);
}
