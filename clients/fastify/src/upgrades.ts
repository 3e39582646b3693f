/**
 * Passes upgrade requests from the HTTP server to `@fastify/websocket`: each request is routed once, however many
 * registrations the server has, and requests that arrive while the server closes get a response.
 *
 * The HTTP server does not track the connections that it upgraded, but waits for them when it closes. It does not even read
 * a connection that got 503, so it never sees the end of that connection. This module closes both.
 */

import { EventEmitter } from "node:events";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import type { FastifyInstance } from "fastify";
import type { Upgrade } from "./refusal.js";

const UNAVAILABLE = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
/**
 * How long a connection has for its final writes and the closing handshake while the server closes, in milliseconds:
 * fastify-cli ends the process after 500 ms.
 */
const FINAL_WRITES_MS = 200;

/** The registrations of each HTTP server, in order. */
const registered = new WeakMap<object, Upgrades[]>();

/** The upgrade requests of one registration. */
export class Upgrades {
  /** The requests that have no response yet. */
  readonly open = new WeakMap<IncomingMessage, Upgrade>();
  /** `@fastify/websocket` listens to this emitter instead of the HTTP server. */
  readonly emitter = new EventEmitter();
  private sockets = new Set<Duplex>();
  /** The `close` listener of all sockets: one function, so that an idle connection has none of its own. */
  private forget: (this: Duplex) => void;
  private isRefusing = false;
  private isClosing = false;

  constructor({ server }: FastifyInstance) {
    const { sockets } = this;
    this.forget = function () {
      sockets.delete(this);
    };
    const all = registered.get(server) ?? [];
    registered.set(server, all);
    all.push(this);
    const remember = (request: IncomingMessage, socket: Duplex, head: Buffer) => void this.open.set(request, { socket, head });
    this.emitter.on("upgrade", remember);
    server.prependListener("upgrade", (request, socket, head) => {
      remember(request, socket, head);
      // Exactly one registration routes the requests of all scopes: two would route each request twice.
      const isOurs = all[0] === this && !server.listeners("upgrade").some(({ name }) => name === "onUpgrade");
      if (isOurs) this.route(request, socket, head);
      else this.keep(socket);
    });
  }

  /** Routes an upgrade request, or answers it with 503 while the server closes. */
  route(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    this.keep(socket);
    // Only `remember` listens: @fastify/websocket has removed its listener.
    if (this.isRefusing && this.emitter.listenerCount("upgrade") === 1) socket.end(UNAVAILABLE);
    else this.emitter.emit("upgrade", request, socket, head);
  }

  /** Answers new requests with 503 as soon as `@fastify/websocket` stops listening. */
  stopAccepting(): void {
    this.isRefusing = true;
  }

  /** Closes all sockets, and those that come later, after a moment for the closing handshake or the response. */
  close(): void {
    this.isClosing = true;
    this.sockets.forEach(closeSoon);
  }

  private keep(socket: Duplex): void {
    this.sockets.add(socket);
    socket.on("close", this.forget);
    if (this.isClosing) closeSoon(socket);
  }
}

function closeSoon(socket: Duplex): void {
  const timer = setTimeout(() => socket.destroy(), FINAL_WRITES_MS);
  socket.once("close", () => clearTimeout(timer));
}
