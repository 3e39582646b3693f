/**
 * Several processes behind one port, as `node:cluster` and pm2 run them: a returning client reaches any of them, but its
 * session lives in one.
 *
 * The first bytes of a resume token name the process that issued it. A process that receives another process's token relays
 * the connection to that process over a local socket, without looking at the messages. If that process is gone, the session
 * is lost, and the client receives a gap as after any restart.
 *
 * The connection is relayed message by message, because its handle cannot be moved once TLS or a compressor has state for
 * it, and because pm2's parent process passes no handles on. Hooks run in both processes.
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

// The same `ws` as that of @fastify/websocket.
const require = createRequire(import.meta.url);
const { WebSocket } = createRequire(require.resolve("@fastify/websocket"))("ws") as { WebSocket: typeof Ws };

/** How many bytes of a token name its process. */
const NAME_LENGTH = 6;
/** The header field with the client's address, as the process saw it that accepted the connection. */
const ADDRESS = "mainstay-address";
/** With more unsent bytes than this in one direction, the relay stops reading the other side. */
const FULL = 65_536;

/** Returns the folder for the sockets of one application: of the processes of one parent, one script and one user. */
function folder(): string {
  const group = createHash("sha256").update(`${process.ppid}\n${process.argv[1] ?? ""}`).digest("hex").slice(0, 12);
  return process.platform === "win32" ? `\\\\.\\pipe\\mainstay-${group}-` : join(tmpdir(), `mainstay-${process.getuid?.() ?? 0}-${group}`);
}

const pathOf = (name: string) => (process.platform === "win32" ? folder() + name : join(folder(), `${name}.sock`));

/** Returns the name of the process that issued a token. */
export const processOf = (secret: Uint8Array): string => Buffer.from(secret.subarray(0, NAME_LENGTH)).toString("hex");

/** This process as a member of the cluster. */
export class Cluster {
  /** The first bytes of this process's tokens. */
  readonly name: Bytes;
  private server: HttpServer;
  private relays = new Set<Relay>();
  /** Runs while there are relays. */
  private signsOfLife: NodeJS.Timeout | undefined;

  /** `route` receives the upgrade requests that other processes pass on. */
  constructor(random: (length: number) => Bytes, route: (request: IncomingMessage, socket: Duplex, head: Buffer) => void) {
    this.name = random(NAME_LENGTH);
    this.server = createServer((_request, response) => response.writeHead(404).end());
    this.server.on("upgrade", (request, socket: Socket, head) => {
      if (restoreAddress(request, socket)) route(request, socket, head);
      else socket.destroy();
    });
  }

  /** Listens for the other processes. @throws Error if the folder for the sockets cannot be made. */
  async listen(): Promise<void> {
    if (process.platform !== "win32") prepare(folder());
    // `exclusive`: this process listens itself, not through the cluster's parent.
    this.server.listen({ path: pathOf(processOf(this.name)), exclusive: true });
    await once(this.server, "listening");
    this.server.unref();
  }

  /** Closes the relayed connections. Their sessions go on in their own processes. */
  closeRelays(code: number, reason: string): void {
    for (const relay of this.relays) relay.close(code, reason);
  }

  /** Stops listening for the other processes. */
  close(): void {
    this.server.close();
  }

  /** Returns whether `name` names this process. */
  isHere(name: string): boolean {
    return name === processOf(this.name);
  }

  /**
   * Relays a connection to the process `name`, beginning with the message `first`, if `isWanted` still returns true once the
   * process accepted. Returns false if there is no such process, or it does not accept within `timeoutMs`.
   */
  async pass(connection: Connection, name: string, first: Data, timeoutMs: number, isWanted: () => boolean): Promise<boolean> {
    const upstream = dial(connection.request, pathOf(name), timeoutMs);
    const isOpen = await new Promise<boolean>((settle) => upstream.once("open", () => settle(true)).on("error", () => settle(false)));
    if (!isOpen || !isWanted()) {
      upstream.terminate();
      return false;
    }
    const relay = new Relay(connection, upstream, () => this.forget(relay));
    this.relays.add(relay);
    this.signsOfLife ??= setInterval(() => this.relays.forEach((relay) => relay.reportLife()), 1000).unref();
    relay.handleMessage(connection, first);
    return true;
  }

  private forget(relay: Relay): void {
    this.relays.delete(relay);
    if (this.relays.size) return;
    clearInterval(this.signsOfLife);
    this.signsOfLife = undefined;
  }
}

/** One connection between a client and the process that has its session. */
class Relay implements Listener {
  private connection: Connection;
  /** The connection to the process that has the session. */
  private upstream: Ws;
  private onEnd: () => void;

  constructor(connection: Connection, upstream: Ws, onEnd: () => void) {
    this.connection = connection;
    this.upstream = upstream;
    this.onEnd = onEnd;
    connection.listener = this;
    upstream.on("message", (data: Buffer<ArrayBuffer>, isBinary) => this.sendToClient(isBinary ? data : data.toString()));
    upstream.on("ping", (data) => connection.ping(data.length === 8 ? data.readUInt32BE(4) : 0));
    upstream.on("close", (code, reason) => this.finish(() => (code === 1006 ? connection.abort() : connection.close(code === 1005 ? 1000 : code, reason.toString()))));
  }

  /**
   * Reports to the other process that its client is alive while a large message arrives, which it sees only once it is whole.
   */
  reportLife(): void {
    if (this.connection.isMidFrame && this.connection.hasNewBytes()) this.upstream.pong();
  }

  handleMessage(_connection: Connection, data: Data): void {
    const { upstream, connection } = this;
    upstream.send(data, () => upstream.bufferedAmount <= FULL && connection.resume());
    if (upstream.bufferedAmount > FULL) connection.pause();
  }

  handlePong(_connection: Connection, nonce: number): void {
    if (nonce < 0) return this.upstream.pong();
    const data = Buffer.alloc(8);
    data.writeUInt32BE(nonce, 4);
    this.upstream.pong(data);
  }

  handleLost(_connection: Connection, code: number, reason: string): void {
    this.finish(() => (isSendable(code) ? this.upstream.close(code, reason) : this.upstream.terminate()));
  }

  handleWritten(): void {
    if (!this.connection.isFull) this.upstream.resume();
  }

  close(code: number, reason: string): void {
    this.connection.close(code, reason);
  }

  private sendToClient(data: Data): void {
    this.connection.send(data, true);
    if (this.connection.isFull) this.upstream.pause();
  }

  private finish(closeOther: () => void): void {
    this.onEnd();
    closeOther();
  }
}

/** Whether a Close may carry this code. */
const isSendable = (code: number) => (code >= 1000 && code <= 1014 && ![1004, 1005, 1006].includes(code)) || (code >= 3000 && code <= 4999);

/** Repeats the client's upgrade request towards another process. */
function dial({ raw }: FastifyRequest, path: string, timeoutMs: number): Ws {
  const { connection, upgrade, ...headers } = raw.headers;
  const own = Object.fromEntries(Object.entries(headers).filter(([name]) => !name.startsWith("sec-websocket-")));
  const { remoteAddress, remotePort } = raw.socket ?? {};
  own[ADDRESS] = `${remoteAddress ?? ""} ${remotePort ?? ""} ${!!(raw.socket as any)?.encrypted}`;
  const requested = String(raw.headers["sec-websocket-protocol"] ?? "").split(",").map((name) => name.trim());
  return new WebSocket(`ws://cluster${raw.url}`, requested, {
    headers: own as Record<string, string>,
    createConnection: () => connect(path),
    handshakeTimeout: timeoutMs,
    perMessageDeflate: false,
    autoPong: false,
    maxPayload: 0,
  });
}

/**
 * Gives the socket the address of the client, as the other process states it. Only processes of the same user reach this
 * socket, so the statement is trusted. Returns false if there is none.
 */
function restoreAddress(request: IncomingMessage, socket: Socket): boolean {
  const stated = request.headers[ADDRESS];
  delete request.headers[ADDRESS];
  const at = request.rawHeaders.findIndex((name) => name.toLowerCase() === ADDRESS);
  if (at >= 0) request.rawHeaders.splice(at, 2);
  const [, remoteAddress, remotePort, encrypted] = /^(\S*) (\d*) (true|false)$/.exec(String(stated)) ?? [];
  if (encrypted === undefined) return false;
  const facts = { remoteAddress, remotePort: Number(remotePort), encrypted: encrypted === "true" };
  for (const [name, value] of Object.entries(facts)) Object.defineProperty(socket, name, { value, configurable: true });
  return true;
}

/** Makes the folder, which only this user may enter, and removes the sockets of processes that were killed. */
function prepare(path: string): void {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const found = lstatSync(path);
  if (found.uid !== process.getuid?.() || !found.isDirectory()) {
    throw new Error(`mainstay: cluster: ${path} is not a folder of this user; set TMPDIR, or cluster: false`);
  }
  chmodSync(path, 0o700);
  for (const name of readdirSync(path)) removeIfDead(join(path, name));
}

/** Removes the socket that a killed process left behind. A young socket stays: its process may be about to listen. */
function removeIfDead(path: string): void {
  if (Date.now() - lstatSync(path).mtimeMs < 60_000) return;
  const probe = connect(path);
  probe.on("connect", () => probe.destroy());
  probe.on("error", (error: NodeJS.ErrnoException) => error.code === "ECONNREFUSED" && rmSync(path, { force: true }));
}
