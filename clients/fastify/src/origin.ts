/**
 * Which web pages may open a WebSocket here: the defence against cross-site WebSocket hijacking.
 *
 * A browser opens a WebSocket for any page, to any host, and adds the host's cookies. The one sign of whose page it was
 * is `Origin`, which scripts cannot change. A request without `Origin` comes from no page: a program that sends a cookie
 * owns it.
 *
 * Source: RFC 6455 section 10.2, RFC 6454 section 7.
 */

import type { IncomingHttpHeaders } from "node:http";

/**
 * `same-host`: a request with cookies or `Authorization` must come from a page of the host and port that it asks for, in
 * `Host` or, as a proxy in front may have replaced that, in `X-Forwarded-Host`. `any`: every page. A list: a request with
 * an `Origin` must have one of these, such as `https://example.com`.
 */
export type Origins = "same-host" | "any" | string[];

export function isAllowed(origins: Origins, headers: IncomingHttpHeaders): boolean {
  const { origin, cookie, authorization, host } = headers;
  if (origin === undefined || origins === "any") return true;
  const from = parse(origin);
  if (origins !== "same-host") return origins.some((allowed) => from !== undefined && parse(allowed)?.origin === from.origin);
  if (cookie === undefined && authorization === undefined) return true;
  const asked = [host, headers["x-forwarded-host"]].flat();
  return asked.some((name) => from !== undefined && name !== undefined && parse(`${from.protocol}//${name}`)?.host === from.host);
}

/** Whether `text` is an origin: scheme and host, and nothing behind them. */
export function isOrigin(text: unknown): boolean {
  return typeof text === "string" && parse(text) !== undefined;
}

function parse(origin: string): URL | undefined {
  const url = URL.canParse(origin) ? new URL(origin) : undefined;
  return url?.host && /^[a-z][a-z\d+.-]*:\/\/[^/?#@\\]+$/i.test(origin) ? url : undefined;
}
