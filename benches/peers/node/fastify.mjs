// @fastify/websocket, with the heartbeat of the README of ws.
import websocket from "@fastify/websocket";
import fastify from "fastify";
import { beat, flags } from "./flags.mjs";

const { host, port, interval } = flags();
const app = fastify();
await app.register(websocket);
const room = new Set();

app.get("/echo", { websocket: true }, (socket) => {
  socket.on("message", (data, binary) => socket.send(data, { binary }));
});
app.get("/broadcast", { websocket: true }, (socket) => {
  room.add(socket);
  socket.on("close", () => room.delete(socket));
  socket.on("message", (data, binary) => {
    for (const member of room) member.send(data, { binary });
  });
});
beat(app.websocketServer, interval);
await app.listen({ host, port });
