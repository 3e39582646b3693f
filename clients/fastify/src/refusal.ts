/**
 * Refuses an upgrade that a hook or a schema answers with an HTTP status. A script in a browser never sees that status, so
 * its client would try again forever. The server therefore accepts the connection of a client that speaks `mainstay.v1` and
 * sends it a REFUSE with the status in its reason. A plain client gets the HTTP response.
 *
 * Source: `docs/PROTOCOL.md` "Closing", "REFUSE".
 */

import { type IncomingMessage, STATUS_CODES } from "node:http";
import type { Duplex } from "node:stream";
import { type Delay, encode, type Refuse, Type } from "@mainstay/client/protocol";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { WebSocketServer } from "ws";
import { choose, isOurs } from "./subprotocol.js";

/** The content of the REFUSE for an HTTP status: come back later, or stop. */
export interface Refusal {
  code: number;
  temporary: boolean;
  delay: Delay;
}

/** Returns the refusal for an HTTP status; undefined if the status is no error. `retryAfter`: the header field, in seconds. */
export function refusalOf(status: number, retryAfter?: unknown): Refusal | undefined {
  if (status < 400) return;
  const seconds = Number(retryAfter);
  const delay: Delay = seconds > 0 ? { earliestMs: seconds * 1000, latestMs: seconds * 1500 } : { earliestMs: 0, latestMs: 0 };
  const isLater = status >= 500 || [408, 425, 429].includes(status);
  if (!isLater) return { code: 4501, temporary: false, delay };
  return { code: status === 429 || status === 503 ? 4413 : 4414, temporary: true, delay };
}

/** Returns the status and the application's message as the reason of a Close, which has 123 bytes at most. */
export function reasonOf(status: number, payload: unknown): string {
  const name = `${status} ${STATUS_CODES[status] ?? ""}`.trim();
  const message = messageOf(payload);
  const bytes = Buffer.from(message && message !== STATUS_CODES[status] ? `${name}: ${message}` : name);
  if (bytes.length <= 123) return bytes.toString();
  // The decoder leaves out a character that was cut in two.
  return `${new TextDecoder().decode(bytes.subarray(0, 120), { stream: true })}...`;
}

function messageOf(payload: unknown): string | undefined {
  if (typeof payload !== "string" || !payload.startsWith("{")) return;
  try {
    const { message } = JSON.parse(payload);
    return typeof message === "string" ? message : undefined;
  } catch {
    return;
  }
}

/** An upgrade that has no response yet. */
export interface Upgrade {
  socket: Duplex;
  head: Buffer;
}

/** Refuses upgrades on the WebSocket itself, where the client speaks `mainstay.v1`. */
export class Refuser {
  private upgrades: WeakMap<IncomingMessage, Upgrade>;
  private server: () => WebSocketServer;
  private count: () => void;

  constructor(upgrades: WeakMap<IncomingMessage, Upgrade>, server: () => WebSocketServer, count: () => void) {
    this.upgrades = upgrades;
    this.server = server;
    this.count = count;
  }

  /** An `onSend` hook. It never calls `done` for a response that is replaced by a REFUSE. */
  onSend = (request: FastifyRequest, reply: FastifyReply, payload: unknown, done: (error: null, payload: unknown) => void): void => {
    if (!this.refuse(request, reply, reply.statusCode, payload)) done(null, payload);
  };

  /**
   * A route's error handler, in front of Fastify's own: an error with a 4xx status is refused without a stack trace in the
   * log. An error handler of the application receives its errors as usual, and its response goes through {@link onSend}.
   */
  onError = (error: Error & { statusCode?: number }, request: FastifyRequest, reply: FastifyReply): void => {
    const { statusCode = 500, message } = error;
    const isClientError = statusCode >= 400 && statusCode < 500;
    const isHandled = request.server.errorHandler.name !== "defaultErrorHandler";
    if (isHandled || !isClientError || !this.refuse(request, reply, statusCode, JSON.stringify({ message }))) throw error;
  };

  /** Sends a REFUSE instead of the response. Returns false if the client cannot read one. */
  private refuse(request: FastifyRequest, reply: FastifyReply, status: number, payload: unknown): boolean {
    const upgrade = this.upgrades.get(request.raw);
    const refusal = refusalOf(status, reply.getHeader("retry-after"));
    if (!upgrade || !refusal || upgrade.socket.destroyed || !this.speaksSessions(request.raw)) return false;
    const reason = reasonOf(status, payload);
    this.count();
    request.log.info({ statusCode: status, code: refusal.code, reason }, "an upgrade was refused");
    reply.hijack();
    const message: Refuse = { type: Type.Refuse, ...refusal };
    this.server().handleUpgrade(request.raw, upgrade.socket, upgrade.head, (socket) => {
      socket.on("error", () => {});
      socket.send(encode(message));
      socket.close(refusal.code, reason);
    });
    return true;
  }

  private speaksSessions(request: IncomingMessage): boolean {
    const requested = String(request.headers["sec-websocket-protocol"] ?? "").split(",").map((name) => name.trim());
    const { handleProtocols } = this.server().options;
    const chosen = handleProtocols ? handleProtocols(new Set(requested), request) : choose(requested, undefined);
    return typeof chosen === "string" && isOurs(chosen);
  }
}
