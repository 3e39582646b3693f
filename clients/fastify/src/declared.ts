/**
 * Finds WebSocket routes that were declared before the plugin was loaded. The plugin cannot serve them: their handlers
 * would get a request instead of a session, and their clients would see the connection hang up.
 *
 * Fastify does not report routes that exist already, so this module watches every Fastify instance from its start.
 */

import { subscribe } from "node:diagnostics_channel";
import type { FastifyInstance, RouteOptions } from "fastify";
import type { MainstayRouteOptions } from "./options.js";

export type WebSocketRoute = RouteOptions & { websocket?: boolean; wsHandler?: unknown; mainstay?: MainstayRouteOptions };

/** The routes of each HTTP server, which all scopes of an instance share, with the scope in which each was declared. */
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

/** Returns whether a route serves WebSocket upgrades. */
export function isWebSocketRoute(route: WebSocketRoute): boolean {
  return !!(route.websocket || route.wsHandler) && route.method !== "HEAD";
}

/** Records that the plugin serves this route. */
export function markServed(route: WebSocketRoute): void {
  served.add(route);
}

/** @throws Error if a route in the plugin's scope was declared before the plugin was loaded. */
export function checkDeclared(fastify: FastifyInstance): void {
  const isInScope = (scope: FastifyInstance) => scope === fastify || Object.prototype.isPrototypeOf.call(fastify, scope);
  const missed = declared.get(fastify.server)?.find(({ scope, route }) => !served.has(route) && isInScope(scope));
  if (!missed) return;
  throw new Error(
    `mainstay: route ${missed.route.url} was declared before the plugin was loaded: write "await app.register(mainstay)" in front of it, or declare it in a plugin that is registered later`,
  );
}
