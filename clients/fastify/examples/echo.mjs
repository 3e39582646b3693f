import { mainstay } from "@mainstay/fastify";
import Fastify from "fastify";

const app = Fastify();
await app.register(mainstay, { heartbeatMs: 25_000, resumeWindowMs: 120_000 });

app.get("/echo", { websocket: true }, async (session) => {
  for await (const data of session) await session.send(data);
});

console.log(await app.listen({ port: Number(process.env.PORT ?? 8080) }));
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => app.close());
