/** A client that does what a test tells it, over a real socket. */

import { type Control, type Data, decode, encode, encodeData, type Frame, type Hello, type Welcome } from "@mainstay/client/protocol";
import Fastify, { type FastifyInstance, type FastifyServerOptions } from "fastify";
import WebSocket from "ws";
import { mainstay, type MainstayOptions, type SessionHandler } from "@mainstay/fastify";

/** A listening server with one route, `/`. */
export async function serve(options: MainstayOptions, handler: SessionHandler, fastify: FastifyServerOptions = {}): Promise<{ app: FastifyInstance; url: string }> {
  const app = Fastify(fastify);
  await app.register(mainstay, { drain: 0, ...options });
  app.get("/", { websocket: true }, handler);
  const url = await app.listen({ port: 0, host: "127.0.0.1" });
  return { app, url: url.replace("http", "ws") };
}

/** Bytes that no other call gave: a count. */
let drawn = 0;
export function bytes(length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  new DataView(bytes.buffer).setUint32(0, ++drawn);
  return bytes;
}

/** The fields of a HELLO that matter to a test. */
export interface Hi {
  key?: Uint8Array<ArrayBuffer>;
  instance?: Uint8Array<ArrayBuffer>;
  attempt?: number;
  resume?: Hello[7];
  credentials?: string;
  window?: [number, number];
  maxMessage?: number;
}

export function hello({ key = bytes(16), instance = bytes(8), attempt = 1, resume, credentials, window = [1024, 4_194_304], maxMessage }: Hi = {}): Hello {
  return [1, 1, window, key, 0, instance, attempt, resume, credentials === undefined ? undefined : new TextEncoder().encode(credentials), undefined, maxMessage] as unknown as Hello;
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

  static async attached(url: string, hi?: Hi): Promise<[peer: Peer, welcome: Welcome]> {
    const peer = await new Peer(url).opened();
    peer.write(hello(hi));
    return [peer, (await peer.next()) as Welcome];
  }

  opened(): Promise<this> {
    return new Promise((resolve) => this.socket.on("open", () => resolve(this)));
  }

  write(...messages: (Control | Data)[]): void {
    for (const message of messages) this.socket.send(Array.isArray(message) ? encode(message) : this.isPlain ? message : encodeData(message));
  }

  /** The next message. PINGs are passed over, unless they are what is waited for. */
  async next(): Promise<any> {
    for (;;) {
      while (!this.frames.length) {
        const isClosed = await Promise.race([new Promise<void>((resolve) => (this.wake = resolve)), this.closed]);
        if (isClosed && !this.frames.length) throw new Error(`closed with ${isClosed.code} ${isClosed.reason}`);
      }
      const frame = this.frames.shift();
      if (!(Array.isArray(frame) && frame[0] === 4)) return frame;
    }
  }

  /** The next application message. */
  async text(): Promise<any> {
    for (;;) {
      const frame = await this.next();
      if (frame[0] === 0 || this.isPlain) return this.isPlain ? frame : frame[1];
    }
  }

  /** The connection breaks, without a word. */
  async cut(): Promise<void> {
    this.socket.terminate();
    await this.closed;
  }
}

/** Numbers in [0, 1), the same in every run (mulberry32). */
export function randomFrom(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
