// The package ws, as its README does it: one sweep of Pings over all connections every interval.
import { createServer } from "node:http";
import { WebSocketServer } from "ws";
import { beat, flags } from "./flags.mjs";

const { host, port, interval } = flags();
const server = createServer((_, response) => response.writeHead(426).end());
const echo = new WebSocketServer({ noServer: true });
const room = new WebSocketServer({ noServer: true });

echo.on("connection", (socket) => {
  socket.on("message", (data, binary) => socket.send(data, { binary }));
});
room.on("connection", (socket) => {
  socket.on("message", (data, binary) => {
    for (const member of room.clients) {
      if (member.readyState === member.OPEN) member.send(data, { binary });
    }
  });
});
for (const sockets of [echo, room]) beat(sockets, interval);

server.on("upgrade", (request, socket, head) => {
  const sockets = { "/echo": echo, "/broadcast": room }[request.url];
  if (!sockets) return socket.destroy();
  sockets.handleUpgrade(request, socket, head, (client) => sockets.emit("connection", client, request));
});
server.listen(port, host);
