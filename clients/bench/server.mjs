/**
 * One measured server, in its own process: `node --expose-gc server.mjs NAME INTERVAL`. It echoes at `/echo` and probes every
 * client each INTERVAL milliseconds. It reports its port to the parent process and, when asked, its CPU time or memory.
 */

import Fastify from "fastify";

const [name, intervalMs] = [process.argv[2], Number(process.argv[3])];

const SERVERS = {
  /** The README's example. */
  async plugin() {
    const { mainstay } = await import("@mainstay/fastify");
    const app = Fastify();
    await app.register(mainstay, { heartbeatMs: intervalMs });
    app.get("/echo", { websocket: true }, (session) => {
      session.on("message", (data) => session.send(data));
    });
    return app.listen({ port: 0, host: "127.0.0.1" });
  },

  /** `@fastify/websocket` with the heartbeat of the README of `ws`. */
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
    }, intervalMs);
    return app.listen({ port: 0, host: "127.0.0.1" });
  },

  /** Socket.IO on Fastify's server, without long polling. */
  async socketio() {
    const { Server } = await import("socket.io");
    const app = Fastify();
    const io = new Server(app.server, { path: "/echo", transports: ["websocket"], serveClient: false, pingInterval: intervalMs });
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

/** Collects twice: the second collection frees what the first one finalizes. */
async function memory() {
  for (let i = 0; i < 2; i++) {
    globalThis.gc();
    await new Promise((wake) => setTimeout(wake, 50));
  }
  const { heapUsed, external, arrayBuffers, rss } = process.memoryUsage();
  return { heap: heapUsed + external + arrayBuffers, rss };
}

const url = await SERVERS[name]();
process.on("message", async (question) => process.send(question === "memory" ? await memory() : used()));
process.on("disconnect", () => process.exit());
process.send({ port: Number(new URL(url).port) });
