/** A client that a test controls, over a real socket. */

import { type Control, type Data, decode, encode, encodeData, type Frame, type Hello, type Resume, type Welcome, type Window } from "@mainstay/client/protocol";
import { mainstay, type MainstayOptions, type SessionHandler } from "@mainstay/fastify";
import Fastify, { type FastifyInstance, type FastifyServerOptions } from "fastify";
import WebSocket from "ws";
import { DATA, HELLO, PING } from "./frames.js";

/** Starts a server with one route, `/`. */
export async function serve(options: MainstayOptions, handler: SessionHandler, fastify: FastifyServerOptions = {}): Promise<{ app: FastifyInstance; url: string }> {
  const app = Fastify(fastify);
  await app.register(mainstay, options);
  app.get("/", { websocket: true }, handler);
  const url = await app.listen({ port: 0, host: "127.0.0.1" });
  return { app, url: url.replace("http", "ws") };
}

/** Returns bytes that no other call returns: a count. */
let drawn = 0;
export function bytes(length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  new DataView(bytes.buffer).setUint32(0, ++drawn);
  return bytes;
}

/** The fields of a HELLO that tests set. */
export interface HelloFields {
  key?: Uint8Array<ArrayBuffer>;
  keyAgeMs?: number;
  instance?: Uint8Array<ArrayBuffer>;
  attempt?: number;
  resume?: Resume | undefined;
  credentials?: string;
  window?: Window;
  maxMessage?: number;
}

export function hello({ key = bytes(16), keyAgeMs = 0, instance = bytes(8), attempt = 1, resume, credentials, window = { messages: 1024, bytes: 4_194_304 }, maxMessage }: HelloFields = {}): Hello {
  return { type: HELLO, version: 1, window, key, keyAgeMs, instance, attempt, resume, credentials: credentials === undefined ? undefined : new TextEncoder().encode(credentials), maxMessage };
}

export class Peer {
  readonly socket: WebSocket;
  readonly closed: Promise<{ code: number; reason: string }>;
  private frames: (Frame | Data)[] = [];
  private wake: (() => void) | undefined;

  constructor(
    url: string,
    protocols: string[] = ["mainstay.v1", "plain"],
    private isPlain = false,
  ) {
    this.socket = new WebSocket(url, protocols);
    this.socket.on("message", (data: Buffer<ArrayBuffer>, isBinary) => {
      const message = isBinary ? data : data.toString();
      this.frames.push(this.isPlain ? message : decode(message));
      this.wake?.();
    });
    this.closed = new Promise((resolve) => this.socket.on("close", (code, reason) => resolve({ code, reason: reason.toString() })));
    this.socket.on("error", () => {});
  }

  static async attached(url: string, fields?: HelloFields): Promise<[peer: Peer, welcome: Welcome]> {
    const { peer, answer } = await Peer.greeted(url, fields);
    return [peer, answer];
  }

  /** Returns the answer to a HELLO: a WELCOME or a REFUSE. */
  static async greeted(url: string, fields?: HelloFields): Promise<{ peer: Peer; answer: any }> {
    const peer = await new Peer(url).opened();
    peer.write(hello(fields));
    return { peer, answer: await peer.next() };
  }

  opened(): Promise<this> {
    return new Promise((resolve) => this.socket.on("open", () => resolve(this)));
  }

  write(...messages: (Control | Data)[]): void {
    for (const message of messages) {
      const isControl = typeof message === "object" && "type" in message;
      this.socket.send(isControl ? encode(message) : this.isPlain ? message : encodeData(message));
    }
  }

  /** Returns the next message that is no PING. */
  async next(): Promise<any> {
    for (;;) {
      while (!this.frames.length) {
        const isClosed = await Promise.race([new Promise<void>((resolve) => (this.wake = resolve)), this.closed]);
        if (isClosed && !this.frames.length) throw new Error(`closed with ${isClosed.code} ${isClosed.reason}`);
      }
      const frame: any = this.frames.shift();
      if (frame?.type !== PING) return frame;
    }
  }

  /** Returns the next message of the application. */
  async text(): Promise<any> {
    for (;;) {
      const frame = await this.next();
      if (this.isPlain) return frame;
      if (frame.type === DATA) return frame.data;
    }
  }

  /** Breaks the connection, without a Close. */
  async cut(): Promise<void> {
    this.socket.terminate();
    await this.closed;
  }
}

/** Returns a generator of numbers in [0, 1) that are the same in every run (mulberry32). */
export function randomFrom(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
