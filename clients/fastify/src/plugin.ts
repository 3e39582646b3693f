/** The plugin: routes with `websocket: true` receive sessions, and closing the server sends their clients away. */

import { createRequire } from "node:module";
import type { Duplex } from "node:stream";
import type { FastifyInstance, FastifyPluginCallback, FastifyReply, FastifyRequest, RouteOptions } from "fastify";
import fp from "fastify-plugin";
import type { WebSocket } from "ws";
import { maxPayload } from "./connection.js";
import { type MainstayOptions, settingsOf } from "./options.js";
import { isAllowed, type Origins } from "./origin.js";
import { Server } from "./server.js";
import { choose } from "./subprotocol.js";

// Without its types: they say that a handler gets a socket.
const websocket: FastifyPluginCallback<any> = createRequire(import.meta.url)("@fastify/websocket");

const UNAVAILABLE = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/**
 * Gives `{ websocket: true }` routes a {@link Session}. Registers `@fastify/websocket` itself, so that hooks run before
 * every upgrade as usual. One instance has one.
 * @throws one line that names the option and its bound.
 */
export const mainstay = fp(register, { fastify: "5.x", name: "@mainstay/fastify" });

async function register(fastify: FastifyInstance, options: MainstayOptions): Promise<void> {
  const settings = settingsOf(options);
  if (fastify.hasDecorator("websocketServer")) {
    throw new Error("mainstay: registers @fastify/websocket itself: take yours out, its `options` go into `websocket`");
  }
  const server = new Server(settings);
  const upgrades = watchUpgrades(fastify);
  // Before those of @fastify/websocket, which takes the handler as it finds it.
  fastify.addHook("onRoute", (route) => serveSessions(route, server, settings.origins));
  await fastify.register(websocket, {
    options: {
      closeTimeout: 5000,
      ...settings.websocket,
      maxPayload: maxPayload(settings.maxMessage),
      handleProtocols: (offered: Set<string>) => choose(offered, settings.subprotocols),
    },
    // `ws` closes the connection itself, and the session waits for its client.
    errorHandler: (error: Error, _socket: WebSocket, request: FastifyRequest) => request.log.debug({ err: error }, "connection failed"),
    preClose: (done: () => void) => {
      upgrades.refuse();
      server.drain().finally(() => {
        upgrades.close();
        done();
      });
    },
  });
}

/** Puts sessions between a route and its handler, and the check of origins before its hooks. */
function serveSessions(route: RouteOptions & { websocket?: boolean; wsHandler?: unknown }, server: Server, origins: Origins): void {
  const name = route.websocket ? "handler" : "wsHandler";
  const handler = route[name];
  if ((!route.websocket && !route.wsHandler) || route.method === "HEAD" || typeof handler !== "function") return;
  const checkOrigin = async (request: FastifyRequest, reply: FastifyReply) => {
    const isUpgrade = request.headers.upgrade?.toLowerCase() === "websocket";
    if (!isUpgrade || isAllowed(origins, request.headers)) return;
    return reply.code(403).send({ statusCode: 403, error: "Forbidden", message: "pages of this origin may not open a WebSocket here" });
  };
  route.onRequest = [checkOrigin, ...[route.onRequest ?? []].flat()];
  route[name] = function (this: FastifyInstance, socket: any, request: any) {
    return server.open(socket, request, (session, first) => Reflect.apply(handler, this, [session, first]));
  };
}

/**
 * The HTTP server forgets connections that it upgraded, and yet waits for them when it closes. One that was answered
 * with 503 is not even read, so its end is never seen. Gives what refuses newcomers, and what closes them all, those
 * that come later included.
 */
function watchUpgrades(fastify: FastifyInstance): { refuse(): void; close(): void } {
  const sockets = new Set<Duplex>();
  let isRefusing = false;
  let isClosing = false;
  // A closing handshake, or an answer, gets a moment.
  const drop = (socket: Duplex) => {
    const timer = setTimeout(() => socket.destroy(), 1000);
    socket.once("close", () => clearTimeout(timer));
  };
  fastify.server.on("upgrade", (_request, socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
    // @fastify/websocket answers newcomers until it leaves, which depends on its version; then only this one listens.
    if (isRefusing && fastify.server.listenerCount("upgrade") === 1) socket.end(UNAVAILABLE);
    if (isClosing) drop(socket);
  });
  return {
    refuse: () => void (isRefusing = true),
    close: () => {
      isClosing = true;
      sockets.forEach(drop);
    },
  };
}
