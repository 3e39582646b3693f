// Rooms: a session is a member for as long as it lives, and a member that is away gets the message when it is back.
import { mainstay } from "@mainstay/fastify";
import Fastify from "fastify";

const app = Fastify();
await app.register(mainstay);

app.get("/rooms/:room", { websocket: true }, async (session, request) => {
  session.join(request.params.room);
  const room = app.mainstay.to(request.params.room);
  for await (const text of session) room.send(text, { except: session });
});

// Answers 404 while the room is empty.
app.post("/rooms/:room", async (request, reply) => {
  const { sent } = app.mainstay.to(request.params.room).send(request.body);
  return sent > 0 ? reply.code(204).send() : reply.code(404).send();
});

await app.listen({ port: 8082, host: "127.0.0.1" });
console.log("listening");
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => app.close());
