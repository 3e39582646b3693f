/**
 * Decides which web pages may open a WebSocket: the defence against cross-site WebSocket hijacking.
 *
 * A browser opens a WebSocket for any page, to any host, and adds the host's cookies. Only the field `Origin`, which
 * scripts cannot change, names the page. A request without `Origin` comes from a program, not from a page, and a program
 * owns the cookie that it sends.
 *
 * Source: RFC 6455 section 10.2, RFC 6454 section 7.
 */

import type { IncomingHttpHeaders } from "node:http";

/**
 * Which web pages may open a WebSocket.
 *
 * - `"same-host"`: a request with cookies or `Authorization` must come from a page of the host and port that it asks for
 *   in `Host`, or in `X-Forwarded-Host`, as a proxy may have replaced `Host`.
 * - `"any"`: every page.
 * - A list: a request that has an `Origin` must have one of these, such as `https://example.com`.
 */
export type Origins = "same-host" | "any" | string[];

/** Returns whether a request with these fields may open a WebSocket. */
export function isAllowed(origins: Origins, headers: IncomingHttpHeaders): boolean {
  const { origin, cookie, authorization, host } = headers;
  if (origin === undefined || origins === "any") return true;
  const from = parse(origin);
  if (origins !== "same-host") return origins.some((allowed) => from !== undefined && parse(allowed)?.origin === from.origin);
  if (cookie === undefined && authorization === undefined) return true;
  const asked = [host, headers["x-forwarded-host"]].flat();
  return asked.some((name) => from !== undefined && name !== undefined && parse(`${from.protocol}//${name}`)?.host === from.host);
}

/** Returns whether `text` is an origin: a scheme and a host, with nothing behind them. */
export function isOrigin(text: unknown): boolean {
  return typeof text === "string" && parse(text) !== undefined;
}

function parse(origin: string): URL | undefined {
  const url = URL.canParse(origin) ? new URL(origin) : undefined;
  return url?.host && /^[a-z][a-z\d+.-]*:\/\/[^/?#@\\]+$/i.test(origin) ? url : undefined;
}
