// The backend of ../compose.yaml: plain Fastify with @fastify/websocket, and nothing of Mainstay. Yours takes its place.
import websocket from "@fastify/websocket";
import Fastify from "fastify";

const app = Fastify();
await app.register(websocket);

app.get("/", async () => "the application's page\n");

app.get("/echo", { websocket: true }, (socket) => {
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});

const { HOST = "0.0.0.0", PORT = "3000" } = process.env;
console.log(`listening on ${await app.listen({ host: HOST, port: Number(PORT) })}`);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => app.close());
