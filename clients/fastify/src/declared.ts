/**
 * WebSocket routes that the plugin never saw, because they were declared before it was loaded: their handlers would get a
 * request instead of a session, and their clients a socket that hangs up.
 *
 * Fastify tells nobody of routes that are there already, so every instance is watched from its start.
 */

import { subscribe } from "node:diagnostics_channel";
import type { FastifyInstance, RouteOptions } from "fastify";
import type { MainstayRouteOptions } from "./options.js";

export type WebSocketRoute = RouteOptions & { websocket?: boolean; wsHandler?: unknown; mainstay?: MainstayRouteOptions };

/** Routes by the HTTP server of their instance, which its scopes share, with the scope that each was declared in. */
const declared = new WeakMap<object, { scope: FastifyInstance; route: WebSocketRoute }[]>();
const served = new WeakSet<WebSocketRoute>();

subscribe("fastify.initialization", (message) => {
  const { fastify } = message as { fastify: FastifyInstance };
  fastify.addHook("onRoute", function (this: FastifyInstance, route) {
    if (!isWebSocketRoute(route)) return;
    const routes = declared.get(this.server) ?? [];
    declared.set(this.server, routes);
    routes.push({ scope: this, route });
  });
});

export function isWebSocketRoute(route: WebSocketRoute): boolean {
  return !!(route.websocket || route.wsHandler) && route.method !== "HEAD";
}

export function markServed(route: WebSocketRoute): void {
  served.add(route);
}

/** @throws if a route in the plugin's reach was declared too early. */
export function checkDeclared(fastify: FastifyInstance): void {
  const isInReach = (scope: FastifyInstance) => scope === fastify || Object.prototype.isPrototypeOf.call(fastify, scope);
  const missed = declared.get(fastify.server)?.find(({ scope, route }) => !served.has(route) && isInReach(scope));
  if (!missed) return;
  throw new Error(
    `mainstay: route ${missed.route.url} was declared before the plugin was loaded: write "await app.register(mainstay)" in front of it, or declare it in a plugin that is registered later`,
  );
}
