/**
 * Several processes behind one port, as `node:cluster` and pm2 run them: a client that comes back reaches any of them, and
 * its session lives in one.
 *
 * A resume token names the process that issued it, by its first bytes. A process that is presented a token of another
 * passes the connection on to it, over a local socket, and what passes then is none of its business. If that process is
 * gone, so is the session, and the client is told by a gap as after any restart.
 *
 * The connection is passed on message by message, because the handle of one cannot be given away once TLS or a compressor
 * has a state for it, and because pm2's parent gives none to anybody. Hooks run in both processes.
 */

import { createHash } from "node:crypto";
import { once } from "node:events";
import { chmodSync, lstatSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type Server as HttpServer } from "node:http";
import { createRequire } from "node:module";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import type { Bytes, Data } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { WebSocket as Ws } from "ws";
import type { Connection, Listener } from "./connection.js";

// The one that @fastify/websocket has.
const require = createRequire(import.meta.url);
const { WebSocket } = createRequire(require.resolve("@fastify/websocket"))("ws") as { WebSocket: typeof Ws };

/** How many bytes of a token name the process. */
const NAME = 6;
/** In front of what a client said of itself: its address, as the process saw it that it reached. */
const ADDRESS = "mainstay-address";
/** Above so much that one side does not take, the other is not read. */
const FULL = 65_536;

/** Where the processes of one application meet: those of one parent that run the same script, as one user. */
function placeOf(): string {
  const group = createHash("sha256").update(`${process.ppid}\n${process.argv[1] ?? ""}`).digest("hex").slice(0, 12);
  return process.platform === "win32" ? `\\\\.\\pipe\\mainstay-${group}-` : join(tmpdir(), `mainstay-${process.getuid?.() ?? 0}-${group}`);
}

const pathOf = (name: string) => (process.platform === "win32" ? placeOf() + name : join(placeOf(), `${name}.sock`));

/** The name of the process that issued a token. */
export const processOf = (secret: Uint8Array): string => Buffer.from(secret.subarray(0, NAME)).toString("hex");

/** This process among the others. */
export class Cluster {
  /** What its tokens begin with. */
  readonly name: Bytes;
  private server: HttpServer;
  private relays = new Set<Relay>();
  /** While there are any. */
  private signs: NodeJS.Timeout | undefined;

  /** `route`: takes an upgrade request that another process passed on. */
  constructor(random: (length: number) => Bytes, route: (request: IncomingMessage, socket: Duplex, head: Buffer) => void) {
    this.name = random(NAME);
    this.server = createServer((_request, response) => response.writeHead(404).end());
    this.server.on("upgrade", (request, socket: Socket, head) => {
      if (restoreAddress(request, socket)) route(request, socket, head);
      else socket.destroy();
    });
  }

  /** @throws if the place cannot be made, in words. */
  async listen(): Promise<void> {
    if (process.platform !== "win32") prepare(placeOf());
    // Not the parent's: this one is of this process alone.
    this.server.listen({ path: pathOf(processOf(this.name)), exclusive: true });
    await once(this.server, "listening");
    this.server.unref();
  }

  /** Whose connections are passed on from here: they are closed, and their sessions go on where they are. */
  leave(code: number, reason: string): void {
    for (const relay of this.relays) relay.leave(code, reason);
  }

  close(): void {
    this.server.close();
  }

  isHere(name: string): boolean {
    return name === processOf(this.name);
  }

  /**
   * Passes a connection on to the process of that name, its first message first, if it `isWanted` by then. False: there is
   * no such process, or it takes nobody.
   */
  async pass(connection: Connection, name: string, first: Data, patience: number, isWanted: () => boolean): Promise<boolean> {
    const far = dial(connection.request, pathOf(name), patience);
    const isOpen = await new Promise<boolean>((settle) => far.once("open", () => settle(true)).on("error", () => settle(false)));
    if (!isOpen || !isWanted()) {
      far.terminate();
      return false;
    }
    const relay = new Relay(connection, far, () => this.forget(relay));
    this.relays.add(relay);
    this.signs ??= setInterval(() => this.relays.forEach((relay) => relay.showLife()), 1000).unref();
    relay.message(connection, first);
    return true;
  }

  private forget(relay: Relay): void {
    this.relays.delete(relay);
    if (this.relays.size) return;
    clearInterval(this.signs);
    this.signs = undefined;
  }
}

/** One connection on its way between a client and the process that has its session. */
class Relay implements Listener {
  private connection: Connection;
  private far: Ws;
  private end: () => void;

  constructor(connection: Connection, far: Ws, end: () => void) {
    this.connection = connection;
    this.far = far;
    this.end = end;
    connection.listener = this;
    far.on("message", (data: Buffer<ArrayBuffer>, isBinary) => this.take(isBinary ? data : data.toString()));
    far.on("ping", (data) => connection.put({ ping: data.length === 8 ? data.readUInt32BE(4) : 0 }));
    far.on("close", (code, reason) => this.finish(() => (code === 1006 ? connection.abort() : connection.close(code === 1005 ? 1000 : code, reason.toString()))));
  }

  /** The other process does not see a large message until it is whole, but it hears that its client lives. */
  showLife(): void {
    if (this.connection.isMidFrame && this.connection.tookBytes()) this.far.pong();
  }

  /** From the client. */
  message(_connection: Connection, data: Data): void {
    const { far, connection } = this;
    far.send(data, () => far.bufferedAmount <= FULL && connection.resume());
    if (far.bufferedAmount > FULL) connection.pause();
  }

  pong(_connection: Connection, nonce: number): void {
    if (nonce < 0) return this.far.pong();
    const data = Buffer.alloc(8);
    data.writeUInt32BE(nonce, 4);
    this.far.pong(data);
  }

  lost(_connection: Connection, code: number, reason: string): void {
    this.finish(() => (isSendable(code) ? this.far.close(code, reason) : this.far.terminate()));
  }

  wrote(): void {
    if (!this.connection.isFull) this.far.resume();
  }

  leave(code: number, reason: string): void {
    this.connection.close(code, reason);
  }

  /** From the process that has the session. */
  private take(data: Data): void {
    this.connection.put(data, true);
    if (this.connection.isFull) this.far.pause();
  }

  private finish(last: () => void): void {
    this.end();
    last();
  }
}

const isSendable = (code: number) => (code >= 1000 && code <= 1014 && ![1004, 1005, 1006].includes(code)) || (code >= 3000 && code <= 4999);

/** The same upgrade request once more, for another process. */
function dial({ raw }: FastifyRequest, path: string, patience: number): Ws {
  const { connection, upgrade, ...headers } = raw.headers;
  const own = Object.fromEntries(Object.entries(headers).filter(([name]) => !name.startsWith("sec-websocket-")));
  const { remoteAddress, remotePort } = raw.socket ?? {};
  own[ADDRESS] = `${remoteAddress ?? ""} ${remotePort ?? ""} ${!!(raw.socket as any)?.encrypted}`;
  const offered = String(raw.headers["sec-websocket-protocol"] ?? "").split(",").map((name) => name.trim());
  return new WebSocket(`ws://cluster${raw.url}`, offered, {
    headers: own as Record<string, string>,
    createConnection: () => connect(path),
    handshakeTimeout: patience,
    perMessageDeflate: false,
    autoPong: false,
    maxPayload: 0,
  });
}

/** Only processes of the same user reach this socket, so what they say of a client is believed. False: they said nothing. */
function restoreAddress(request: IncomingMessage, socket: Socket): boolean {
  const said = request.headers[ADDRESS];
  delete request.headers[ADDRESS];
  const at = request.rawHeaders.findIndex((name) => name.toLowerCase() === ADDRESS);
  if (at >= 0) request.rawHeaders.splice(at, 2);
  const [, remoteAddress, remotePort, encrypted] = /^(\S*) (\d*) (true|false)$/.exec(String(said)) ?? [];
  if (encrypted === undefined) return false;
  const facts = { remoteAddress, remotePort: Number(remotePort), encrypted: encrypted === "true" };
  for (const [name, value] of Object.entries(facts)) Object.defineProperty(socket, name, { value, configurable: true });
  return true;
}

/** A folder that nobody else may enter, without the sockets of processes that were killed. */
function prepare(place: string): void {
  mkdirSync(place, { recursive: true, mode: 0o700 });
  const found = lstatSync(place);
  if (found.uid !== process.getuid?.() || !found.isDirectory()) {
    throw new Error(`mainstay: cluster: ${place} belongs to somebody else; set TMPDIR, or cluster: false`);
  }
  chmodSync(place, 0o700);
  for (const name of readdirSync(place)) removeIfDead(join(place, name));
}

/** A process that was killed leaves its socket behind. One that is young may be about to listen. */
function removeIfDead(path: string): void {
  if (Date.now() - lstatSync(path).mtimeMs < 60_000) return;
  const probe = connect(path);
  probe.on("connect", () => probe.destroy());
  probe.on("error", (error: NodeJS.ErrnoException) => error.code === "ECONNREFUSED" && rmSync(path, { force: true }));
}
