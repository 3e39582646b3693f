/** How the plugin behaves: what may be set, its defaults, and what is checked at registration. */

import node from "node:cluster";
import type { Window } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { ServerOptions } from "ws";
import { isOrigin, type Origins } from "./origin.js";

/** A bound on what is kept. */
export interface Bound {
  /** @default 1024 */
  messages?: number;
  /** Payload bytes. A single larger message still fits. @default 1048576 */
  bytes?: number;
}

/**
 * Says who a client is, by the credentials in its HELLO (undefined: it sent none; a plain client never does) and by its
 * request. What it returns is the principal; "" is nobody in particular. Null or undefined refuses (4501), throwing or
 * taking longer than the opening deadline means "not now" (4414: the client comes back).
 *
 * It is asked at every attach, and again for credentials that come on a live session. Only the same principal resumes a
 * session.
 */
export type Authenticate = (
  credentials: Buffer | undefined,
  request: FastifyRequest,
) => string | null | undefined | Promise<string | null | undefined>;

/** All times are milliseconds. */
export interface MainstayOptions {
  /** The time between two probes of a connection, jittered by 10 %. Range: 100 to 3600000. @default 25000 */
  heartbeat?: number;
  /** How long a session is kept without a connection, unless its client asks for less. Range: 0 to 86400000. @default 120000 */
  resumeWindow?: number;
  /** What is kept for a client until it acknowledges; when it is full, `send` waits. Range: at least 1 message. */
  keep?: Bound;
  /** What a client may send above what the handler has taken. Range: at least 1 message. */
  accept?: Bound;
  /** A full `keep` drops the oldest message that was never written, and the client is told of the gap. @default false */
  dropOldest?: boolean;
  /**
   * The largest message taken, in payload bytes. Clients that speak `mainstay.v1` are told; a larger message closes its
   * connection (1009). Range: 1 to 1073741824. @default 1048576
   */
  maxMessage?: number;
  /** Sessions at a time, parked and plain ones included; one more takes the place of one whose client has been away for 10 s, or is told to come back later (4413). Range: 1 to 10000000. @default 100000 */
  maxSessions?: number;
  /** What is remembered of sessions that ended, for clients that come back: so many, for a day. Range: 0 to 10000000. @default 100000 */
  tombstones?: number;
  /** From the upgrade to HELLO and the verdict on its credentials. Range: 100 to 60000. @default 5000 */
  openingDeadline?: number;
  /**
   * Over how long `fastify.close()` sends clients away, before it closes those that are left with 1012. 0 closes at once:
   * clients come back within a second. Range: 0 to 600000, and 500 below Fastify's `pluginTimeout`. @default 0
   */
  drain?: number;
  /** A session without a message in either direction for so long ends with 4500. Range: 1000 to 604800000. @default off */
  idleTimeout?: number;
  /**
   * The age, +- 20 %, at which a connection is asked to move: a session goes on over another connection, a plain client is
   * closed with 1012. Range: 1000 to 604800000. @default off
   */
  maxLifetime?: number;
  /**
   * Connections at a time from one address (`request.ip`, so `trustProxy` counts; a /64 of IPv6 is one address). One more
   * is told to come back later (4413), unless it resumes a session. Range: from 1. @default off
   */
  maxPerIp?: number;
  /** Sessions of one address whose clients are away; one more ends the one that is away for the longest. Range: from 1. @default off */
  maxParkedPerIp?: number;
  /**
   * Processes that share a port pass a client that comes back on to the one that has its session, over a local socket.
   * @default true in a worker of `node:cluster`, which those of pm2's cluster mode are, else false
   */
  cluster?: boolean;
  /** Says who a client is. @default nobody in particular */
  authenticate?: Authenticate;
  /** Whose pages may open a WebSocket; others get 403. @default "same-host": with cookies or `Authorization`, those of the same host */
  origins?: Origins;
  /** The application's subprotocols, in order of preference. @default the first that the client offers */
  subprotocols?: string[];
  /** Options of the `ws` server behind it, such as `perMessageDeflate`. `maxPayload` and `handleProtocols` are set here. */
  websocket?: Omit<ServerOptions, "maxPayload" | "handleProtocols" | "noServer" | "server" | "port" | "path">;
}

/**
 * What a route may have otherwise than the registration says, as in `{ websocket: true, mainstay: { heartbeat: 5000 } }`.
 * The rest holds for all routes together.
 */
export type MainstayRouteOptions = Omit<MainstayOptions, (typeof OF_ALL_ROUTES)[number]>;

/** The options, checked and complete. */
export interface Settings {
  heartbeat: number;
  resumeWindow: number;
  keep: Window;
  accept: Window;
  dropOldest: boolean;
  maxMessage: number;
  maxSessions: number;
  tombstones: number;
  openingDeadline: number;
  drain: number;
  idleTimeout: number | undefined;
  maxLifetime: number | undefined;
  maxPerIp: number | undefined;
  maxParkedPerIp: number | undefined;
  cluster: boolean;
  authenticate: Authenticate | undefined;
  origins: Origins;
  subprotocols: string[] | undefined;
  websocket: object;
}

const WEEK = 604_800_000;
/** The numbers: default (undefined is off), lowest, highest, unit. */
const NUMBERS = {
  heartbeat: [25_000, 100, 3_600_000, " ms"],
  resumeWindow: [120_000, 0, 86_400_000, " ms"],
  maxMessage: [1_048_576, 1, 1_073_741_824, " bytes"],
  maxSessions: [100_000, 1, 10_000_000, ""],
  tombstones: [100_000, 0, 10_000_000, ""],
  openingDeadline: [5000, 100, 60_000, " ms"],
  drain: [0, 0, 600_000, " ms"],
  idleTimeout: [undefined, 1000, WEEK, " ms"],
  maxLifetime: [undefined, 1000, WEEK, " ms"],
  maxPerIp: [undefined, 1, 10_000_000, ""],
  maxParkedPerIp: [undefined, 1, 10_000_000, ""],
} as const;
const OTHERS = ["keep", "accept", "dropOldest", "cluster", "authenticate", "origins", "subprotocols", "websocket"];
/** What `register` itself takes. */
const OF_FASTIFY = ["prefix", "logLevel", "logSerializers"];
const OF_ALL_ROUTES = ["maxSessions", "tombstones", "drain", "maxPerIp", "maxParkedPerIp", "cluster", "websocket"] as const;
/** What closing takes beside the drain. */
const CLOSING = 500;

/**
 * Checks what `register` was given. `pluginTimeout`: how long Fastify waits for a plugin to close; 0 is for ever.
 * @throws RangeError or TypeError: one line that names the field and its bound.
 */
export function settingsOf(options: MainstayOptions, pluginTimeout = 0): Settings {
  const settings = checked(options, "mainstay:");
  const most = pluginTimeout - CLOSING;
  if (!pluginTimeout || !settings.drain || settings.drain <= most) return settings;
  throw new RangeError(
    `mainstay: drain must be at most ${Math.max(most, 0)} ms, not ${settings.drain}: Fastify gives plugins ${pluginTimeout} ms to close; for more, set pluginTimeout in Fastify({ pluginTimeout })`,
  );
}

/** Checks what a route was given, and puts it over what `register` was given. @throws as {@link settingsOf} */
export function routeSettingsOf(options: MainstayOptions, route: MainstayRouteOptions, url: string): Settings {
  const where = `mainstay: route ${url}:`;
  if (typeof route !== "object" || route === null) throw new TypeError(`${where} mainstay must be an object of options`);
  const given = Object.entries(route).filter(([, value]) => value !== undefined);
  const shared = given.find(([name]) => [...OF_ALL_ROUTES, ...OF_FASTIFY].includes(name));
  if (shared) throw new TypeError(`${where} ${shared[0]} holds for all routes: set it where the plugin is registered`);
  return checked({ ...options, ...Object.fromEntries(given) }, where);
}

function checked(options: MainstayOptions, where: string): Settings {
  const known = [...Object.keys(NUMBERS), ...OTHERS, ...OF_FASTIFY];
  const unknown = Object.keys(options).find((name) => !known.includes(name));
  if (unknown !== undefined) throw new TypeError(`${where} there is no option ${unknown}`);
  const range = <Name extends keyof typeof NUMBERS>(name: Name): number | (typeof NUMBERS)[Name][0] => {
    const [standard, lowest, highest, unit] = NUMBERS[name];
    const value = options[name] ?? standard;
    return value === undefined ? (value as never) : inRange(`${where} ${name}`, value, lowest, highest, unit);
  };
  const { keep, accept, dropOldest, cluster = node.isWorker, authenticate, origins = "same-host", subprotocols, websocket } = options;
  check(`${where} dropOldest`, dropOldest, "boolean", "true or false");
  check(`${where} cluster`, cluster, "boolean", "true or false");
  check(`${where} authenticate`, authenticate, "function", "a function");
  check(`${where} websocket`, websocket, "object", "an object");
  if (origins !== "same-host" && origins !== "any" && !(Array.isArray(origins) && origins.every(isOrigin))) {
    throw new TypeError(`${where} origins must be "same-host", "any", or a list such as ["https://example.com"]`);
  }
  const areNames = subprotocols === undefined || (Array.isArray(subprotocols) && subprotocols.every(isToken));
  if (!areNames) throw new TypeError(`${where} subprotocols must be a list of subprotocol names`);
  return {
    heartbeat: range("heartbeat"),
    resumeWindow: range("resumeWindow"),
    keep: windowOf(`${where} keep`, keep),
    accept: windowOf(`${where} accept`, accept),
    dropOldest: !!dropOldest,
    maxMessage: range("maxMessage"),
    maxSessions: range("maxSessions"),
    tombstones: range("tombstones"),
    openingDeadline: range("openingDeadline"),
    drain: range("drain"),
    idleTimeout: range("idleTimeout"),
    maxLifetime: range("maxLifetime"),
    maxPerIp: range("maxPerIp"),
    maxParkedPerIp: range("maxParkedPerIp"),
    cluster,
    authenticate,
    origins,
    subprotocols,
    websocket: websocket ?? {},
  };
}

function windowOf(name: string, bound: Bound | undefined): Window {
  check(name, bound, "object", "an object { messages, bytes }");
  const { messages = 1024, bytes = 1_048_576, ...rest } = bound ?? {};
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) throw new TypeError(`${name.replace(/\S+$/, "there is no option $&")}.${unknown}`);
  return { messages: inRange(`${name}.messages`, messages, 1, 1_000_000, ""), bytes: inRange(`${name}.bytes`, bytes, 0, 2 ** 40, " bytes") };
}

function inRange(name: string, value: unknown, lowest: number, highest: number, unit: string): number {
  if (typeof value === "number" && Number.isInteger(value) && value >= lowest && value <= highest) return value;
  throw new RangeError(`${name} must be a whole number between ${lowest} and ${highest}${unit}, not ${String(value)}`);
}

function check(name: string, value: unknown, type: string, words: string): void {
  const isRight = value === undefined || (typeof value === type && value !== null);
  if (!isRight) throw new TypeError(`${name} must be ${words}`);
}

/** A token of RFC 9110; not one of ours, which the plugin adds itself. */
function isToken(name: unknown): boolean {
  return typeof name === "string" && /^[!#$%&'*+.^`|~\w-]+$/.test(name) && !name.startsWith("mainstay.v1");
}
