/** Which settings a request is served with: those of its route. They stand in the route's `config`. */

import type { IncomingMessage } from "node:http";
import type { FastifyRequest } from "fastify";
import type { Settings } from "./options.js";

export const SETTINGS = Symbol("mainstay");
type Marked = IncomingMessage & { [SETTINGS]?: Settings };

export function settingsOfRoute(request: FastifyRequest): Settings | undefined {
  return (request.routeOptions.config as { [SETTINGS]?: Settings } | undefined)?.[SETTINGS];
}

/** For `ws`, which knows nothing of routes. */
export function markRoute(request: IncomingMessage, settings: Settings): void {
  (request as Marked)[SETTINGS] = settings;
}

/** Undefined: the request has reached no route of ours. */
export function routeOf(request: IncomingMessage): Settings | undefined {
  return (request as Marked)[SETTINGS];
}
