/** The plugin: handlers of `{ websocket: true }` routes receive sessions, and closing the server drains them. */

import type { IncomingMessage } from "node:http";
import { createRequire } from "node:module";
import type { FastifyInstance, FastifyPluginCallback, FastifyReply, FastifyRequest } from "fastify";
import fp from "fastify-plugin";
import type { WebSocket } from "ws";
import { maxPayload } from "./connection.js";
import { checkDeclared, isWebSocketRoute, markServed, type WebSocketRoute } from "./declared.js";
import { Mainstay } from "./mainstay.js";
import { type MainstayOptions, routeSettingsOf, type Settings, settingsOf } from "./options.js";
import { isAllowed } from "./origin.js";
import { Refuser } from "./refusal.js";
import { markRoute, routeOf, SETTINGS, settingsOfRoute } from "./route.js";
import { Server } from "./server.js";
import { choose } from "./subprotocol.js";
import { Upgrades } from "./upgrades.js";

// Loaded without its types, in which a handler receives a socket.
const websocket: FastifyPluginCallback<any> = createRequire(import.meta.url)("@fastify/websocket");

const REGISTERED =
  "mainstay: the plugin is registered here already: give a route its own options as { websocket: true, mainstay: { ... } }, or register it again in a plugin beside this one";

/**
 * The Fastify plugin: the handlers of `{ websocket: true }` routes receive a {@link Session}. It registers
 * `@fastify/websocket` itself, so hooks run before every upgrade as usual. Register it once in a scope, and `await` the
 * registration before you declare routes.
 *
 * @example
 * await app.register(mainstay, { heartbeatMs: 25_000 });
 * app.get("/echo", { websocket: true }, async (session) => {
 *   for await (const data of session) await session.send(data);
 * });
 *
 * @throws RangeError or TypeError: one line that names the option and its range.
 */
export const mainstay = fp(register, { fastify: "5.x", name: "@mainstay/fastify" });

async function register(fastify: FastifyInstance, options: MainstayOptions): Promise<void> {
  const settings = settingsOf(options, fastify.initialConfig.pluginTimeout);
  if (fastify.hasDecorator("mainstay")) throw new Error(REGISTERED);
  if (fastify.hasDecorator("websocketServer")) {
    throw new Error("mainstay: the plugin registers @fastify/websocket itself: remove your registration, and pass its `options` as `websocket`");
  }
  const upgrades = new Upgrades(fastify);
  const server = new Server(settings, (request, socket, head) => upgrades.route(request, socket, head));
  const refuser = new Refuser(upgrades.open, () => fastify.websocketServer, () => void server.counts.refused.hook++);
  fastify.decorate("mainstay", new Mainstay(server));
  fastify.addHook("onRequest", (request, _reply, done) => {
    const own = settingsOfRoute(request);
    if (own) markRoute(request.raw, own);
    done();
  });
  // This hook runs before the one of @fastify/websocket, which wraps the handler that it finds.
  fastify.addHook("onRoute", (route) => serveSessions(route, server, settings, options, refuser, upgrades, fastify));
  fastify.addHook("onReady", async () => {
    checkDeclared(fastify);
    await server.cluster?.listen();
  });
  await fastify.register(websocket, {
    options: {
      closeTimeout: 5000,
      ...settings.websocket,
      server: upgrades.emitter,
      maxPayload: maxPayload(settings.maxMessage),
      handleProtocols: (requested: Set<string>, request: IncomingMessage) => choose(requested, (routeOf(request) ?? settings).subprotocols),
    },
    // `ws` closes the connection itself, and the session parks.
    errorHandler: (error: Error & { code?: string }, _socket: WebSocket, request: FastifyRequest) => {
      if (error.code?.startsWith("WS_ERR_")) server.counts.protocolErrors.websocket++;
      request.log.debug({ err: error }, "connection failed");
    },
    preClose: (done: () => void) => {
      upgrades.stopAccepting();
      server.drain().finally(() => {
        upgrades.close();
        server.cluster?.close();
        done();
      });
    },
  });
  server.connectionCount = () => fastify.websocketServer.clients.size;
}

/** Puts sessions between a route and its handler, the check of the origin before its hooks, and refusals behind them. */
function serveSessions(route: WebSocketRoute, server: Server, settings: Settings, options: MainstayOptions, refuser: Refuser, upgrades: Upgrades, fastify: FastifyInstance): void {
  const name = route.websocket ? "handler" : "wsHandler";
  const handler = route[name];
  if (!isWebSocketRoute(route) || typeof handler !== "function") {
    if (route.mainstay !== undefined && route.method !== "HEAD") throw new TypeError(`mainstay: route ${route.url}: the option mainstay is for routes with websocket: true`);
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
  // `ws` has one limit for all routes, so it gets the largest. Each connection checks its own.
  const ws = fastify.websocketServer.options;
  ws.maxPayload = Math.max(ws.maxPayload!, maxPayload(own.maxMessage));
  route.config = { ...route.config, [SETTINGS]: own } as NonNullable<typeof route.config>;
  route.onRequest = [checkOrigin, ...[route.onRequest ?? []].flat()];
  route.onSend = [...[route.onSend ?? []].flat(), refuser.onSend] as NonNullable<typeof route.onSend>;
  route.errorHandler ??= refuser.onError;
  route[name] = function (this: FastifyInstance, socket: any, request: any) {
    upgrades.open.delete(request.raw);
    return server.open(socket, request, (session, first) => Reflect.apply(handler, this, [session, first]));
  };
}
