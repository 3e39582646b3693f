/**
 * An upgrade that a hook or a schema answers with an HTTP status. A browser's script never learns that status, so its
 * client would try for ever. A client that offers sessions is let in and refused in band, with the status in words; a
 * plain client gets the HTTP answer.
 *
 * Source: `docs/PROTOCOL.md` "Closing", "REFUSE".
 */

import { type IncomingMessage, STATUS_CODES } from "node:http";
import type { Duplex } from "node:stream";
import { type Delay, encode, type Refuse, Type } from "@mainstay/client/protocol";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { WebSocketServer } from "ws";
import { choose, isOurs } from "./subprotocol.js";

/** What a client does about a status: come back later, or stop. */
export interface Refusal {
  code: number;
  isRetryable: boolean;
  delay: Delay;
}

/** Undefined: the answer refuses nothing. `retryAfter`: the field, in seconds. */
export function refusalOf(status: number, retryAfter?: unknown): Refusal | undefined {
  if (status < 400) return;
  const seconds = Number(retryAfter);
  const delay: Delay = seconds > 0 ? { earliestMs: seconds * 1000, latestMs: seconds * 1500 } : { earliestMs: 0, latestMs: 0 };
  const isLater = status >= 500 || [408, 425, 429].includes(status);
  if (!isLater) return { code: 4501, isRetryable: false, delay };
  return { code: status === 429 || status === 503 ? 4413 : 4414, isRetryable: true, delay };
}

/** What the application said about it, in as many bytes as a Close has. */
export function reasonOf(status: number, payload: unknown): string {
  const name = `${status} ${STATUS_CODES[status] ?? ""}`.trim();
  const message = messageOf(payload);
  const bytes = Buffer.from(message && message !== STATUS_CODES[status] ? `${name}: ${message}` : name);
  if (bytes.length <= 123) return bytes.toString();
  // A character that was cut in two is left out.
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

/** An upgrade that waits for its answer. */
export interface Upgrade {
  socket: Duplex;
  head: Buffer;
}

/** Refuses in band what can be. */
export class Refuser {
  private upgrades: WeakMap<IncomingMessage, Upgrade>;
  private server: () => WebSocketServer;
  private count: () => void;

  constructor(upgrades: WeakMap<IncomingMessage, Upgrade>, server: () => WebSocketServer, count: () => void) {
    this.upgrades = upgrades;
    this.server = server;
    this.count = count;
  }

  /** An `onSend` hook. It never calls `done` for an answer that goes out in band. */
  onSend = (request: FastifyRequest, reply: FastifyReply, payload: unknown, done: (error: null, payload: unknown) => void): void => {
    if (!this.refuse(request, reply, reply.statusCode, payload)) done(null, payload);
  };

  /**
   * A route's error handler, in front of Fastify's own: an error with a status of the client's fault is refused without a
   * stack in the log. An application's handler gets its errors as ever, and what it answers goes through {@link onSend}.
   */
  onError = (error: Error & { statusCode?: number }, request: FastifyRequest, reply: FastifyReply): void => {
    const { statusCode = 500, message } = error;
    const isOfClient = statusCode >= 400 && statusCode < 500;
    const isHandled = request.server.errorHandler.name !== "defaultErrorHandler";
    if (isHandled || !isOfClient || !this.refuse(request, reply, statusCode, JSON.stringify({ message }))) throw error;
  };

  /** Whether it could. */
  private refuse(request: FastifyRequest, reply: FastifyReply, status: number, payload: unknown): boolean {
    const upgrade = this.upgrades.get(request.raw);
    const refusal = refusalOf(status, reply.getHeader("retry-after"));
    if (!upgrade || !refusal || upgrade.socket.destroyed || !this.speaksSessions(request.raw)) return false;
    const reason = reasonOf(status, payload);
    this.count();
    request.log.info({ statusCode: status, code: refusal.code, reason }, "an upgrade was refused");
    reply.hijack();
    const message: Refuse = { type: Type.Refuse, code: refusal.code, temporary: refusal.isRetryable, delay: refusal.delay };
    this.server().handleUpgrade(request.raw, upgrade.socket, upgrade.head, (socket) => {
      socket.on("error", () => {});
      socket.send(encode(message));
      socket.close(refusal.code, reason);
    });
    return true;
  }

  private speaksSessions(request: IncomingMessage): boolean {
    const offered = String(request.headers["sec-websocket-protocol"] ?? "").split(",").map((name) => name.trim());
    const { handleProtocols } = this.server().options;
    const chosen = handleProtocols ? handleProtocols(new Set(offered), request) : choose(offered, undefined);
    return typeof chosen === "string" && isOurs(chosen);
  }
}
