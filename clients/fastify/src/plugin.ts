/** The plugin: routes with `websocket: true` receive sessions, and closing the server sends their clients away. */

import type { IncomingMessage } from "node:http";
import { createRequire } from "node:module";
import type { Duplex } from "node:stream";
import type { FastifyInstance, FastifyPluginCallback, FastifyReply, FastifyRequest } from "fastify";
import fp from "fastify-plugin";
import type { WebSocket } from "ws";
import { maxPayload } from "./connection.js";
import { checkDeclared, isWebSocketRoute, markServed, type WebSocketRoute } from "./declared.js";
import { Mainstay } from "./mainstay.js";
import { type MainstayOptions, routeSettingsOf, type Settings, settingsOf } from "./options.js";
import { isAllowed } from "./origin.js";
import { Refuser, type Upgrade } from "./refusal.js";
import { markRoute, routeOf, SETTINGS, settingsOfRoute } from "./route.js";
import { Server } from "./server.js";
import { choose } from "./subprotocol.js";

// Without its types: they say that a handler gets a socket.
const websocket: FastifyPluginCallback<any> = createRequire(import.meta.url)("@fastify/websocket");

const UNAVAILABLE = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

const REGISTERED =
  "mainstay: is registered here already: give a route options of its own as { websocket: true, mainstay: { ... } }, or register it again in a plugin beside this one";
/** How long a connection has for the closing handshake while the server closes: fastify-cli ends the process after 500 ms. */
const LAST_WORDS = 250;

/**
 * Gives `{ websocket: true }` routes a {@link Session}. Registers `@fastify/websocket` itself, so that hooks run before
 * every upgrade as usual. One instance has one.
 * @throws one line that names the option and its bound.
 */
export const mainstay = fp(register, { fastify: "5.x", name: "@mainstay/fastify" });

async function register(fastify: FastifyInstance, options: MainstayOptions): Promise<void> {
  const settings = settingsOf(options, fastify.initialConfig.pluginTimeout);
  if (fastify.hasDecorator("mainstay")) throw new Error(REGISTERED);
  if (fastify.hasDecorator("websocketServer")) {
    throw new Error("mainstay: registers @fastify/websocket itself: take yours out, its `options` go into `websocket`");
  }
  const server = new Server(settings);
  const upgrades = watchUpgrades(fastify);
  const refuser = new Refuser(upgrades.open, () => fastify.websocketServer, () => void server.counts.refused.hook++);
  fastify.decorate("mainstay", new Mainstay(server));
  fastify.addHook("onRequest", (request, _reply, done) => {
    const own = settingsOfRoute(request);
    if (own) markRoute(request.raw, own);
    done();
  });
  // Before those of @fastify/websocket, which takes the handler as it finds it.
  fastify.addHook("onRoute", (route) => serveSessions(route, server, settings, options, refuser, upgrades, fastify));
  fastify.addHook("onReady", async () => checkDeclared(fastify));
  await fastify.register(websocket, {
    options: {
      closeTimeout: 5000,
      ...settings.websocket,
      maxPayload: maxPayload(settings.maxMessage),
      handleProtocols: (offered: Set<string>, request: IncomingMessage) => choose(offered, (routeOf(request) ?? settings).subprotocols),
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
  server.connectionCount = () => fastify.websocketServer.clients.size;
}

/** Puts sessions between a route and its handler, the check of origins before its hooks, and refusals behind them. */
function serveSessions(route: WebSocketRoute, server: Server, settings: Settings, options: MainstayOptions, refuser: Refuser, upgrades: Upgrades, fastify: FastifyInstance): void {
  const name = route.websocket ? "handler" : "wsHandler";
  const handler = route[name];
  if (!isWebSocketRoute(route) || typeof handler !== "function") {
    if (route.mainstay !== undefined && route.method !== "HEAD") throw new TypeError(`mainstay: route ${route.url}: options of mainstay are for routes with websocket: true`);
    return;
  }
  const own = route.mainstay === undefined ? settings : routeSettingsOf(options, route.mainstay, route.url);
  const checkOrigin = (request: FastifyRequest, reply: FastifyReply, done: () => void) => {
    const isUpgrade = request.headers.upgrade?.toLowerCase() === "websocket";
    if (!isUpgrade || isAllowed(own.origins, request.headers)) return done();
    server.counts.refused.origin++;
    reply.code(403).send({ statusCode: 403, error: "Forbidden", message: "pages of this origin may not open a WebSocket here" });
  };
  markServed(route);
  // `ws` has one limit, the largest of all; each connection has its own.
  const ws = fastify.websocketServer.options;
  ws.maxPayload = Math.max(ws.maxPayload!, maxPayload(own.maxMessage));
  route.config = { ...route.config, [SETTINGS]: own } as NonNullable<typeof route.config>;
  route.onRequest = [checkOrigin, ...[route.onRequest ?? []].flat()];
  route.onSend = [...[route.onSend ?? []].flat(), refuser.onSend] as NonNullable<typeof route.onSend>;
  route.errorHandler ??= refuser.onError;
  route[name] = function (this: FastifyInstance, socket: any, request: any) {
    upgrades.done(request.raw);
    return server.open(socket, request, (session, first) => Reflect.apply(handler, this, [session, first]));
  };
}

interface Upgrades {
  /** Those that are not answered yet. */
  open: WeakMap<IncomingMessage, Upgrade>;
  /** It is a WebSocket now, which the server of `ws` knows: nothing more of it is kept here. */
  done(request: IncomingMessage): void;
  /** Newcomers get 503. */
  refuse(): void;
  /** All are closed, those that come later included. */
  close(): void;
}

/**
 * The HTTP server forgets connections that it upgraded, and yet waits for them when it closes. One that was answered
 * with 503 is not even read, so its end is never seen.
 */
function watchUpgrades(fastify: FastifyInstance): Upgrades {
  const open = new WeakMap<IncomingMessage, Upgrade>();
  const sockets = new Set<Duplex>();
  let isRefusing = false;
  let isClosing = false;
  // One function for all of them: an idle connection keeps none of its own.
  function forget(this: Duplex): void {
    sockets.delete(this);
  }
  // A closing handshake, or an answer, gets a moment.
  const drop = (socket: Duplex | WebSocket) => {
    const timer = setTimeout(() => ("terminate" in socket ? socket.terminate() : socket.destroy()), LAST_WORDS);
    socket.once("close", () => clearTimeout(timer));
  };
  fastify.server.prependListener("upgrade", (request, socket, head) => {
    open.set(request, { socket, head });
    sockets.add(socket);
    socket.on("close", forget);
    // @fastify/websocket answers newcomers until it leaves, which depends on its version; then only this one listens.
    if (isRefusing && fastify.server.listenerCount("upgrade") === 1) socket.end(UNAVAILABLE);
    if (isClosing) drop(socket);
  });
  return {
    open,
    done: (request) => {
      const socket = open.get(request)?.socket;
      if (!socket || isClosing) return;
      open.delete(request);
      sockets.delete(socket);
      socket.removeListener("close", forget);
    },
    refuse: () => void (isRefusing = true),
    close: () => {
      isClosing = true;
      sockets.forEach(drop);
      fastify.websocketServer.clients.forEach(drop);
    },
  };
}
