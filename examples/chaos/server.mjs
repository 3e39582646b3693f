// The application under test, for both JavaScript recipes: a feed that counts, and an echo.
import { mainstay } from "@mainstay/fastify";
import Fastify from "fastify";

export async function serve() {
  const app = Fastify();
  await app.register(mainstay, { heartbeatMs: 1000, origins: "any" });
  app.get("/feed", { websocket: true }, (session) => session.join("feed"));
  app.get("/echo", { websocket: true }, async (session) => {
    for await (const text of session) await session.send(text);
  });
  let n = 0;
  const counting = setInterval(() => app.mainstay.to("feed").send(String(++n)), 50);
  app.addHook("onClose", () => clearInterval(counting));
  await app.listen({ port: 0, host: "127.0.0.1" });
  return { address: `127.0.0.1:${app.addresses()[0].port}`, close: () => app.close() };
}
