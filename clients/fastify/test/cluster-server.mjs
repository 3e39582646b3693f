// Four processes behind one port. Each echoes messages, and answers "who" with its pid and the client's address.
import cluster from "node:cluster";
import { mainstay } from "@mainstay/fastify";
import Fastify from "fastify";

if (cluster.isPrimary) {
  let ready = 0;
  cluster.on("listening", (_worker, { port }) => ++ready === 4 && console.log(`http://127.0.0.1:${port}`));
  for (let i = 0; i < 4; i++) cluster.fork();
  let isStopping = false;
  // A process that died is replaced.
  cluster.on("exit", () => {
    if (!isStopping) cluster.fork();
    else if (!Object.keys(cluster.workers).length) process.exit();
  });
  process.once("SIGTERM", () => {
    isStopping = true;
    for (const worker of Object.values(cluster.workers)) worker.process.kill("SIGTERM");
  });
} else {
  const app = Fastify();
  process.once("SIGTERM", () => app.close().then(() => process.exit()));
  await app.register(mainstay, JSON.parse(process.env.OPTIONS ?? "{}"));
  app.addHook("onRequest", async (request, reply) => {
    if (request.headers.cookie === "bad") return reply.code(401).send();
  });
  app.get("/", { websocket: true }, async (session) => {
    for await (const data of session) {
      if (data === "who") await session.send(`${process.pid} ${session.peer.address}`);
      else if (data === "exit") process.kill(process.pid, "SIGKILL");
      else await session.send(data);
    }
  });
  await app.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
}
