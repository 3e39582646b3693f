// Socket.IO with its Redis-streams adapter and connection state recovery, as their documentation sets them up:
//
//   node socketio.mjs --listen 127.0.0.1:0 --redis redis://127.0.0.1:6379 --record FILE
//
// Each `m` is written to the record (`client number`) and comes back. SIGTERM closes the server in order.
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const value = (name) => process.argv[process.argv.indexOf(name) + 1];
const [host, port] = value("--listen").split(":");
const redis = createClient({ url: value("--redis") });
await redis.connect();
let lines = [];
const write = () => {
  if (lines.length > 0) appendFileSync(value("--record"), `${lines.join("\n")}\n`);
  lines = [];
};
setInterval(write, 50);

const server = createServer();
const io = new Server(server, {
  adapter: createAdapter(redis),
  connectionStateRecovery: { maxDisconnectionDuration: 2 * 60 * 1000 },
  transports: ["websocket"], // no sticky sessions behind a balancer that picks at random
});
io.on("connection", (socket) => {
  socket.on("m", (client, number) => {
    lines.push(`${client} ${number}`);
    socket.emit("m", number);
  });
});
server.listen({ host, port: Number(port), backlog: 65535 }, () => console.log(`listening on ws://${host}:${server.address().port}`));
process.once("SIGTERM", async () => {
  await io.close();
  write();
  // What the closed connections left for the others to recover goes to the engine behind everything before it.
  await redis.close();
  process.exit(0);
});
