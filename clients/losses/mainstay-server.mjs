// The same server with @mainstay/fastify and its defaults.
//
//   FACTS_SINCE=0 node mainstay-server.mjs PORT

import { mainstay } from "@mainstay/fastify";
import Fastify from "fastify";
import { facts, note } from "./numbers.mjs";

const app = Fastify();
await app.register(mainstay);
const sessions = new Set();

app.get("/ws", { websocket: true }, (session) => {
  sessions.add(session);
  note({ event: "connected" });
  session.on("message", (data) => note({ got: Number(data) }));
  session.on("detached", () => note({ event: "lost" }));
  session.on("closed", () => sessions.delete(session));
});

facts((fact) => {
  for (const session of sessions) void session.send(fact);
});

process.once("SIGTERM", () => void app.close().then(() => process.exit()));
console.log("listening", (await app.listen({ port: Number(process.argv[2]), host: "127.0.0.1" })).replace("http://", ""));
