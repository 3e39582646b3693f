/**
 * Upgrade requests, from the HTTP server to `@fastify/websocket`: each is routed once, however many registrations the
 * server has, and those that come while it closes are answered.
 *
 * The HTTP server forgets connections that it upgraded, and yet waits for them when it closes. One that was answered with
 * 503 is not even read, so its end is never seen.
 */

import { EventEmitter } from "node:events";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import type { FastifyInstance } from "fastify";
import type { Upgrade } from "./refusal.js";

const UNAVAILABLE = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
/** How long a connection has for the closing handshake while the server closes: fastify-cli ends the process after 500 ms. */
const LAST_WORDS = 200;

/** The registrations of each HTTP server, the first first. */
const registered = new WeakMap<object, Upgrades[]>();

export class Upgrades {
  /** Those that are not answered yet. */
  readonly open = new WeakMap<IncomingMessage, Upgrade>();
  /** What `@fastify/websocket` listens to instead of the HTTP server. */
  readonly door = new EventEmitter();
  private sockets = new Set<Duplex>();
  /** What sockets call: one function for all of them, so that an idle connection keeps none of its own. */
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
    this.door.on("upgrade", remember);
    server.prependListener("upgrade", (request, socket, head) => {
      remember(request, socket, head);
      // One that routes is enough for all scopes, and two would get in each other's way.
      const isOurs = all[0] === this && !server.listeners("upgrade").some(({ name }) => name === "onUpgrade");
      if (isOurs) this.route(request, socket, head);
      else this.keep(socket);
    });
  }

  /** Routes an upgrade, or answers it. */
  route(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    this.keep(socket);
    // Only `remember` listens: @fastify/websocket has left.
    if (this.isRefusing && this.door.listenerCount("upgrade") === 1) socket.end(UNAVAILABLE);
    else this.door.emit("upgrade", request, socket, head);
  }

  /** Newcomers are answered with 503 once `@fastify/websocket` does not listen any more. */
  refuse(): void {
    this.isRefusing = true;
  }

  /** Closes them all, those that come later included. A closing handshake, or an answer, gets a moment. */
  close(): void {
    this.isClosing = true;
    this.sockets.forEach(drop);
  }

  private keep(socket: Duplex): void {
    this.sockets.add(socket);
    socket.on("close", this.forget);
    if (this.isClosing) drop(socket);
  }
}

function drop(socket: Duplex): void {
  const timer = setTimeout(() => socket.destroy(), LAST_WORDS);
  socket.once("close", () => clearTimeout(timer));
}
