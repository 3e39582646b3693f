/** The settings of a request's route. They are stored in the route's `config`. */

import type { IncomingMessage } from "node:http";
import type { FastifyRequest } from "fastify";
import type { Settings } from "./options.js";

export const SETTINGS = Symbol("mainstay");
type Marked = IncomingMessage & { [SETTINGS]?: Settings };

/** Returns the settings of the route that Fastify chose for `request`; undefined if the route serves no sessions. */
export function settingsOfRoute(request: FastifyRequest): Settings | undefined {
  return (request.routeOptions.config as { [SETTINGS]?: Settings } | undefined)?.[SETTINGS];
}

/** Stores the settings in the raw request for `ws`, which does not see routes. */
export function markRoute(request: IncomingMessage, settings: Settings): void {
  (request as Marked)[SETTINGS] = settings;
}

/** Returns what {@link markRoute} stored; undefined if the request reached no WebSocket route. */
export function routeOf(request: IncomingMessage): Settings | undefined {
  return (request as Marked)[SETTINGS];
}
