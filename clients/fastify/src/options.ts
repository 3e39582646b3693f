/** The plugin's options: their defaults, their ranges, and the checks at registration. */

import cluster from "node:cluster";
import type { Window } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { ServerOptions } from "ws";
import { isOrigin, type Origins } from "./origin.js";

/** A limit on queued messages. An empty queue accepts one message of any size. */
export interface QueueLimit {
  /** Messages. Range: 1 to 1000000. @default 1024 */
  messages?: number;
  /** Payload bytes. Range: 0 to 2^40. @default 1048576 */
  bytes?: number;
}

/**
 * Decides who a client is, by the credentials in its HELLO and by its upgrade request. `credentials` is undefined if the
 * client sent none; a plain client never sends any.
 *
 * The returned string is the client's principal; "" stands for an anonymous client. Null or undefined refuses the client
 * with 4501, and the client stops. An error, or an answer later than `openingDeadlineMs`, refuses it with 4414, and the
 * client comes back.
 *
 * The plugin calls it at every attach, and again for credentials that a client sends on a live session. Only the same
 * principal resumes a session.
 *
 * @example
 * const authenticate: Authenticate = async (credentials) => (credentials ? await userOf(credentials.toString()) : null);
 */
export type Authenticate = (
  credentials: Buffer | undefined,
  request: FastifyRequest,
) => string | null | undefined | Promise<string | null | undefined>;

/**
 * The plugin's options. Every option whose name ends in `Ms` is a duration in milliseconds.
 *
 * @example
 * await app.register(mainstay, { heartbeatMs: 25_000, keep: { messages: 1024 }, authenticate });
 */
export interface MainstayOptions {
  /** The time between two probes of a connection, jittered by 10 %. Range: 100 to 3600000. @default 25000 */
  heartbeatMs?: number;
  /** How long a session waits for its client, unless the client asks for less. Range: 0 to 86400000. @default 120000 */
  resumeWindowMs?: number;
  /** How much the server keeps for a client until the client acknowledges it. `send` waits while `keep` is full. */
  keep?: QueueLimit;
  /** How much a client may send ahead of what the handler has received. */
  accept?: QueueLimit;
  /** When `keep` is full, drops the oldest message that was never written, and reports the gap to the client. @default false */
  dropOldest?: boolean;
  /**
   * The largest message that a client may send, in payload bytes. The server announces it to clients that speak
   * `mainstay.v1`. A larger message closes its connection with 1009. Range: 1 to 1073741824. @default 1048576
   */
  maxMessage?: number;
  /**
   * The number of concurrent sessions, parked and plain ones included. Above it a new client takes the place of a session
   * that has been parked for 10 s or more; if there is none, the server refuses the client with 4413 and the client comes
   * back later. Range: 1 to 10000000. @default 100000
   */
  maxSessions?: number;
  /**
   * How many ended sessions the server remembers for a day, for clients that come back. Range: 0 to 10000000. @default 100000
   */
  tombstones?: number;
  /** The time from the upgrade to HELLO and to the answer of `authenticate`. Range: 100 to 60000. @default 5000 */
  openingDeadlineMs?: number;
  /**
   * The time over which `fastify.close()` asks the clients to come back elsewhere. After it the server closes the remaining
   * connections with 1012. 0 closes all of them at once, and clients come back within a second. Range: 0 to 600000, and at
   * most 500 less than Fastify's `pluginTimeout`. @default 0
   */
  drainMs?: number;
  /** Ends a session with 4500 after this time without a message in either direction. Range: 1000 to 604800000. @default off */
  idleTimeoutMs?: number;
  /**
   * The age, +- 20 %, at which the server asks a client to move to a new connection. The session goes on there. A plain
   * client is closed with 1012. Range: 1000 to 604800000. @default off
   */
  maxLifetimeMs?: number;
  /**
   * The number of concurrent connections from one address: `request.ip`, so `trustProxy` counts, where a /64 of IPv6 is one
   * address. One connection more is refused with 4413 and the client comes back later, unless it resumes a session. Range:
   * from 1. @default off
   */
  maxPerIp?: number;
  /** The number of parked sessions of one address. One more ends the one that was parked first. Range: from 1. @default off */
  maxParkedPerIp?: number;
  /**
   * Processes that share a port pass a returning client on to the process that has its session, over a local socket.
   * @default true in a worker of `node:cluster`, which includes pm2's cluster mode, otherwise false
   */
  cluster?: boolean;
  /** Decides who a client is. @default every client is anonymous */
  authenticate?: Authenticate;
  /**
   * Which web pages may open a WebSocket; a page that may not gets 403. @default "same-host": a request with cookies or
   * `Authorization` must come from a page of the same host
   */
  origins?: Origins;
  /** The application's subprotocols, in order of preference. @default the first that the client requests */
  subprotocols?: string[];
  /** Options of the underlying `ws` server, such as `perMessageDeflate`. The plugin sets `maxPayload` and `handleProtocols`. */
  websocket?: Omit<ServerOptions, "maxPayload" | "handleProtocols" | "noServer" | "server" | "port" | "path">;
}

/**
 * The options that a route may set for itself, as in `{ websocket: true, mainstay: { heartbeatMs: 5000 } }`. The other
 * options apply to all routes together.
 */
export type MainstayRouteOptions = Omit<MainstayOptions, (typeof SHARED_BY_ROUTES)[number]>;

/** The options, checked and with their defaults. */
export interface Settings {
  heartbeatMs: number;
  resumeWindowMs: number;
  keep: Window;
  accept: Window;
  dropOldest: boolean;
  maxMessage: number;
  maxSessions: number;
  tombstones: number;
  openingDeadlineMs: number;
  drainMs: number;
  idleTimeoutMs: number | undefined;
  maxLifetimeMs: number | undefined;
  maxPerIp: number | undefined;
  maxParkedPerIp: number | undefined;
  cluster: boolean;
  authenticate: Authenticate | undefined;
  origins: Origins;
  subprotocols: string[] | undefined;
  websocket: object;
}

interface NumberRange {
  /** Undefined: the option is off by default. */
  standard: number | undefined;
  least: number;
  most: number;
  unit: "" | " ms" | " bytes";
}

const WEEK_MS = 604_800_000;
const NUMBERS = {
  heartbeatMs: { standard: 25_000, least: 100, most: 3_600_000, unit: " ms" },
  resumeWindowMs: { standard: 120_000, least: 0, most: 86_400_000, unit: " ms" },
  maxMessage: { standard: 1_048_576, least: 1, most: 1_073_741_824, unit: " bytes" },
  maxSessions: { standard: 100_000, least: 1, most: 10_000_000, unit: "" },
  tombstones: { standard: 100_000, least: 0, most: 10_000_000, unit: "" },
  openingDeadlineMs: { standard: 5000, least: 100, most: 60_000, unit: " ms" },
  drainMs: { standard: 0, least: 0, most: 600_000, unit: " ms" },
  idleTimeoutMs: { standard: undefined, least: 1000, most: WEEK_MS, unit: " ms" },
  maxLifetimeMs: { standard: undefined, least: 1000, most: WEEK_MS, unit: " ms" },
  maxPerIp: { standard: undefined, least: 1, most: 10_000_000, unit: "" },
  maxParkedPerIp: { standard: undefined, least: 1, most: 10_000_000, unit: "" },
} as const satisfies Record<string, NumberRange>;
const OTHERS = ["keep", "accept", "dropOldest", "cluster", "authenticate", "origins", "subprotocols", "websocket"];
/** The options that `register` itself reads. */
const FASTIFY_OPTIONS = ["prefix", "logLevel", "logSerializers"];
const SHARED_BY_ROUTES = ["maxSessions", "tombstones", "drainMs", "maxPerIp", "maxParkedPerIp", "cluster", "websocket"] as const;
/** The time that closing needs beside the drain. */
const CLOSING_MS = 500;

/**
 * Checks the options of `register`. `pluginTimeout`: how long Fastify waits for a plugin to close, in milliseconds; 0 is no
 * limit.
 * @throws RangeError or TypeError: one line that names the option and its range.
 */
export function settingsOf(options: MainstayOptions, pluginTimeout = 0): Settings {
  const settings = checked(options, "mainstay:");
  const most = pluginTimeout - CLOSING_MS;
  if (!pluginTimeout || !settings.drainMs || settings.drainMs <= most) return settings;
  throw new RangeError(
    `mainstay: drainMs must be at most ${Math.max(most, 0)} ms, not ${settings.drainMs}: Fastify gives plugins ${pluginTimeout} ms to close; for more, set pluginTimeout in Fastify({ pluginTimeout })`,
  );
}

/** Checks the options of a route, which override those of `register`. @throws as {@link settingsOf} */
export function routeSettingsOf(options: MainstayOptions, route: MainstayRouteOptions, url: string): Settings {
  const where = `mainstay: route ${url}:`;
  if (typeof route !== "object" || route === null) throw new TypeError(`${where} mainstay must be an object of options`);
  const given = Object.entries(route).filter(([, value]) => value !== undefined);
  const shared = given.find(([name]) => [...SHARED_BY_ROUTES, ...FASTIFY_OPTIONS].includes(name));
  if (shared) throw new TypeError(`${where} ${shared[0]} applies to all routes: set it where the plugin is registered`);
  return checked({ ...options, ...Object.fromEntries(given) }, where);
}

function checked(options: MainstayOptions, where: string): Settings {
  checkNames(options, where);
  const range = <Name extends keyof typeof NUMBERS>(name: Name): number | (typeof NUMBERS)[Name]["standard"] => {
    const value = options[name] ?? NUMBERS[name].standard;
    return value === undefined ? (value as never) : inRange(`${where} ${name}`, value, NUMBERS[name]);
  };
  const { keep, accept, dropOldest, cluster: isClustered = cluster.isWorker, authenticate, origins = "same-host", subprotocols, websocket } = options;
  check(`${where} dropOldest`, dropOldest, "boolean", "true or false");
  check(`${where} cluster`, isClustered, "boolean", "true or false");
  check(`${where} authenticate`, authenticate, "function", "a function");
  check(`${where} websocket`, websocket, "object", "an object");
  if (origins !== "same-host" && origins !== "any" && !(Array.isArray(origins) && origins.every(isOrigin))) {
    throw new TypeError(`${where} origins must be "same-host", "any", or a list such as ["https://example.com"]`);
  }
  const areNames = subprotocols === undefined || (Array.isArray(subprotocols) && subprotocols.every(isToken));
  if (!areNames) throw new TypeError(`${where} subprotocols must be a list of subprotocol names`);
  return {
    heartbeatMs: range("heartbeatMs"),
    resumeWindowMs: range("resumeWindowMs"),
    keep: windowOf(`${where} keep`, keep),
    accept: windowOf(`${where} accept`, accept),
    dropOldest: !!dropOldest,
    maxMessage: range("maxMessage"),
    maxSessions: range("maxSessions"),
    tombstones: range("tombstones"),
    openingDeadlineMs: range("openingDeadlineMs"),
    drainMs: range("drainMs"),
    idleTimeoutMs: range("idleTimeoutMs"),
    maxLifetimeMs: range("maxLifetimeMs"),
    maxPerIp: range("maxPerIp"),
    maxParkedPerIp: range("maxParkedPerIp"),
    cluster: isClustered,
    authenticate,
    origins,
    subprotocols,
    websocket: websocket ?? {},
  };
}

function checkNames(options: object, where: string): void {
  const names = [...Object.keys(NUMBERS), ...OTHERS];
  const unknown = Object.keys(options).find((name) => !names.includes(name) && !FASTIFY_OPTIONS.includes(name));
  if (unknown === undefined) return;
  const meant = names.find((name) => [unknown, `${unknown}ms`].some((other) => other.toLowerCase() === name.toLowerCase()));
  throw new TypeError(`${where} there is no option ${unknown}; ${meant ? `use ${meant}` : `the options are ${names.join(", ")}`}`);
}

function windowOf(name: string, limit: QueueLimit | undefined): Window {
  check(name, limit, "object", "an object { messages, bytes }");
  const { messages = 1024, bytes = 1_048_576, ...rest } = limit ?? {};
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) throw new TypeError(`${name.replace(/\S+$/, "there is no option $&")}.${unknown}; use messages and bytes`);
  return {
    messages: inRange(`${name}.messages`, messages, { least: 1, most: 1_000_000, unit: "" }),
    bytes: inRange(`${name}.bytes`, bytes, { least: 0, most: 2 ** 40, unit: " bytes" }),
  };
}

function inRange(name: string, value: unknown, { least, most, unit }: Omit<NumberRange, "standard">): number {
  if (typeof value === "number" && Number.isInteger(value) && value >= least && value <= most) return value;
  throw new RangeError(`${name} must be a whole number between ${least} and ${most}${unit}, not ${String(value)}`);
}

function check(name: string, value: unknown, type: string, description: string): void {
  const isValid = value === undefined || (typeof value === type && value !== null);
  if (!isValid) throw new TypeError(`${name} must be ${description}`);
}

/** Returns whether `name` is a token of RFC 9110 and none of Mainstay's own names, which the plugin adds itself. */
function isToken(name: unknown): boolean {
  return typeof name === "string" && /^[!#$%&'*+.^`|~\w-]+$/.test(name) && !name.startsWith("mainstay.v1");
}
