// The recipe's server: @fastify/websocket with the heartbeat of tutorials.
//
//   FACTS_SINCE=0 node recipe-server.mjs PORT

import websocket from "@fastify/websocket";
import Fastify from "fastify";
import { facts, note } from "./numbers.mjs";

const PING_EVERY_MS = 7500;
const PONG_WITHIN_MS = 5000;

const app = Fastify();
await app.register(websocket);
const sockets = new Set();

app.get("/ws", { websocket: true }, (socket) => {
  sockets.add(socket);
  note({ event: "connected" });
  let deadline;
  const heartbeat = setInterval(() => {
    socket.ping();
    deadline = setTimeout(() => {
      note({ event: "lost" });
      socket.close(1000);
    }, PONG_WITHIN_MS);
  }, PING_EVERY_MS);
  socket.on("pong", () => clearTimeout(deadline));
  socket.on("message", (data) => note({ got: Number(data) }));
  socket.on("close", () => {
    sockets.delete(socket);
    clearInterval(heartbeat);
    clearTimeout(deadline);
  });
});

facts((fact) => {
  for (const socket of sockets) if (socket.readyState === socket.OPEN) socket.send(fact);
});

process.once("SIGTERM", () => void app.close().then(() => process.exit()));
console.log("listening", (await app.listen({ port: Number(process.argv[2]), host: "127.0.0.1" })).replace("http://", ""));
