/**
 * One server to be measured, in a process of its own: `node --expose-gc server.mjs NAME INTERVAL`. It echoes at `/echo`,
 * probes every client each INTERVAL milliseconds, and tells its parent where it listens and, when asked, what it has used.
 */

import Fastify from "fastify";

const [name, interval] = [process.argv[2], Number(process.argv[3])];

const SERVERS = {
  /** The README's example. */
  async plugin() {
    const { mainstay } = await import("@mainstay/fastify");
    const app = Fastify();
    await app.register(mainstay, { heartbeat: interval });
    app.get("/echo", { websocket: true }, (session) => {
      session.on("message", (data) => session.send(data));
    });
    return app.listen({ port: 0, host: "127.0.0.1" });
  },

  /** `@fastify/websocket` and the heartbeat of the README of `ws`. */
  async websocket() {
    const { default: websocket } = await import("@fastify/websocket");
    const app = Fastify();
    await app.register(websocket);
    app.get("/echo", { websocket: true }, (socket) => {
      socket.isAlive = true;
      socket.on("pong", () => (socket.isAlive = true));
      socket.on("error", () => {});
      socket.on("message", (data, binary) => socket.send(data, { binary }));
    });
    setInterval(() => {
      for (const socket of app.websocketServer.clients) {
        if (!socket.isAlive) {
          socket.terminate();
          continue;
        }
        socket.isAlive = false;
        socket.ping();
      }
    }, interval);
    return app.listen({ port: 0, host: "127.0.0.1" });
  },

  /** Socket.IO on the server of Fastify, without its long-polling. */
  async socketio() {
    const { Server } = await import("socket.io");
    const app = Fastify();
    const io = new Server(app.server, { path: "/echo", transports: ["websocket"], serveClient: false, pingInterval: interval });
    io.on("connection", (socket) => {
      socket.on("m", (data) => socket.emit("m", data));
    });
    return app.listen({ port: 0, host: "127.0.0.1" });
  },
};

function used() {
  const { user, system } = process.cpuUsage();
  return { cpu: user + system };
}

/** Twice: what the first collection finalizes the second one frees. */
async function held() {
  for (let i = 0; i < 2; i++) {
    globalThis.gc();
    await new Promise((wake) => setTimeout(wake, 50));
  }
  const { heapUsed, external, arrayBuffers, rss } = process.memoryUsage();
  return { heap: heapUsed + external + arrayBuffers, rss };
}

const url = await SERVERS[name]();
process.on("message", async (question) => process.send(question === "memory" ? await held() : used()));
process.on("disconnect", () => process.exit());
process.send({ port: Number(new URL(url).port) });
