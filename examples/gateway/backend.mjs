// An ordinary backend: plain HTTP, and a WebSocket by @fastify/websocket.
import websocket from "@fastify/websocket";
import Fastify from "fastify";

const app = Fastify();
await app.register(websocket);

app.get("/", async () => "the application's page\n");

app.get("/echo", { websocket: true }, (socket) => {
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});

await app.listen({ port: 3000, host: "127.0.0.1" });
console.log("listening");
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => app.close());
