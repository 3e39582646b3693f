/** A client that does what a test tells it, over a real socket. */

import { type Control, type Data, decode, encode, encodeData, type Frame } from "@mainstay/client/protocol";
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

/** A message by its values, in the order of the wire; windows, delays, accounts and resumes too. */
export type Tuple = [type: number, ...values: any[]];

const WINDOW = ["messages", "bytes"];
const FIELDS: { [type: number]: string[] } = {
  0: ["data"],
  1: ["version", "window", "key", "keyAgeMs", "instance", "attempt", "resume", "credentials", "resumeWindowMs", "maxMessage"],
  2: ["id", "token", "epoch", "resumed", "acknowledged", "first", "resumeWindowMs", "heartbeatIntervalMs", "window", "account", "resumeAt", "maxMessage"],
  3: ["acknowledged", "window"],
  4: ["nonce", "sent", "acknowledged"],
  5: ["nonce", "sent", "acknowledged"],
  6: ["reason", "delay", "closeInMs", "endpoint"],
  7: ["first", "count", "cause"],
  8: ["code", "reason", "acknowledged", "delivered"],
  9: ["credentials"],
  10: ["accepted", "expiresInMs"],
  11: ["data"],
  12: ["code", "temporary", "delay", "account"],
  128: ["after", "count"],
};
const PARTS: { [field: string]: string[] } = {
  window: WINDOW,
  delay: ["earliestMs", "latestMs"],
  account: ["acknowledged", "delivered", "firstLost", "count", "cause"],
  resume: ["token", "acknowledged", "sent", "firstHeld"],
};

/** The message of these values. */
export function frameOf([type, ...values]: Tuple): Control {
  const object = (names: string[], values: any[]): object =>
    Object.fromEntries(names.map((name, i) => [name, PARTS[name] && values[i] ? object(PARTS[name], values[i]) : values[i]]));
  return { type, ...object(FIELDS[type]!, values) } as Control;
}

/** The values of a message, without the optional ones that are missing at its end. */
export function tupleOf(frame: Frame): Tuple {
  const values = (names: string[], object: any): any[] => names.map((name) => (PARTS[name] && object[name] ? values(PARTS[name], object[name]) : object[name]));
  const tuple: Tuple = [frame!.type, ...values(FIELDS[frame!.type]!, frame)];
  while (tuple.at(-1) === undefined) tuple.pop();
  return tuple;
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
  resume?: [token: Uint8Array<ArrayBuffer>, acknowledged: number, sent: number, firstHeld: number] | undefined;
  credentials?: string;
  window?: [number, number];
  maxMessage?: number;
}

export function hello({ key = bytes(16), instance = bytes(8), attempt = 1, resume, credentials, window = [1024, 4_194_304], maxMessage }: Hi = {}): Tuple {
  return [1, 1, window, key, 0, instance, attempt, resume, credentials === undefined ? undefined : new TextEncoder().encode(credentials), undefined, maxMessage];
}

export class Peer {
  readonly socket: WebSocket;
  readonly closed: Promise<{ code: number; reason: string }>;
  private frames: (Tuple | Data)[] = [];
  private wake: (() => void) | undefined;

  constructor(
    url: string,
    protocols: string[] = ["mainstay.v1", "plain"],
    private isPlain = false,
  ) {
    this.socket = new WebSocket(url, protocols);
    this.socket.on("message", (data: Buffer<ArrayBuffer>, isBinary) => {
      const message = isBinary ? data : data.toString();
      this.frames.push(this.isPlain ? message : tupleOf(decode(message)));
      this.wake?.();
    });
    this.closed = new Promise((resolve) => this.socket.on("close", (code, reason) => resolve({ code, reason: reason.toString() })));
    this.socket.on("error", () => {});
  }

  static async attached(url: string, hi?: Hi): Promise<[peer: Peer, welcome: Tuple]> {
    const peer = await new Peer(url).opened();
    peer.write(hello(hi));
    return [peer, await peer.next()];
  }

  opened(): Promise<this> {
    return new Promise((resolve) => this.socket.on("open", () => resolve(this)));
  }

  write(...messages: (Tuple | Data)[]): void {
    for (const message of messages) this.socket.send(Array.isArray(message) ? encode(frameOf(message)) : this.isPlain ? message : encodeData(message));
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
