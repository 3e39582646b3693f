/** One WebSocket, as the driver sees it: what arrives is told to its listener, and what was written is watched leaving. */

import { type Data, Type } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { WebSocket } from "ws";
import type { Output } from "./server-session.js";
import { isOurs } from "./subprotocol.js";

/** Who is told about a connection. */
export interface Listener {
  message(connection: Connection, data: Data): void;
  /** A Ping (nonce -1) or a Pong arrived. */
  pong(connection: Connection, nonce: number): void;
  /** It is gone, or on its way out: nothing that it still brings matters. */
  lost(connection: Connection, code: number, reason: string): void;
  /** Some of what was written has left the process, or all. */
  wrote(connection: Connection, isAll: boolean): void;
}

/** A control message, such as HELLO with credentials, may have so many bytes however few a message of the application may. */
const CONTROL = 65_536;

/** The largest WebSocket message that is taken: payload, and the bytes in front of it. */
export const maxPayload = (maxMessage: number): number => Math.max(maxMessage, CONTROL) + 2;

const BROKEN = "the connection broke without a Close";

/** The error of `ws` for a message that is larger than it was told to take. */
const TOO_LARGE = "WS_ERR_UNSUPPORTED_MESSAGE_LENGTH";

/** Above so much unsent the rest waits where it is still ours. */
const FULL = 65_536;

export class Connection {
  readonly id: number;
  readonly request: FastifyRequest;
  listener: Listener | undefined;
  private socket: WebSocket;
  /** Writes whose end was not reported. */
  private unsent = 0;
  private isPaused = false;
  private isCorked = false;
  /** What the TCP socket had read when something whole last came, and what of that is known to the listener. */
  private wholeAt: number;
  private seen: number;
  /** What the kernel had left to take of a write when it was last looked at. */
  private left = 0;

  /** `maxMessage`: of the application's payload, in bytes. */
  constructor(id: number, socket: WebSocket, request: FastifyRequest, maxMessage = Infinity) {
    this.id = id;
    this.socket = socket;
    this.request = request;
    this.wholeAt = this.seen = this.bytesRead;
    socket.on("message", (data: Buffer<ArrayBuffer>, isBinary) => {
      this.wholeAt = this.seen = this.bytesRead;
      if (this.payloadOf(data, isBinary) > maxMessage) this.refuse();
      else this.listener?.message(this, isBinary ? data : data.toString());
    });
    socket.on("ping", () => this.arrived(-1));
    socket.on("pong", (data) => this.arrived(data.length === 8 ? Number(data.readBigUInt64BE()) : -1));
    socket.on("close", (code, reason) => this.leave(code, reason.toString() || (code === 1006 ? BROKEN : "")));
    // A frame that RFC 6455 does not allow, or one that is too large: `ws` closes, and says why.
    socket.on("error", (error: Error & { code?: string }) => {
      if (error.code === TOO_LARGE) this.refuse();
      else this.leave(1006, error.message);
    });
  }

  get protocol(): string {
    return this.socket.protocol;
  }

  get isFull(): boolean {
    return this.socket.bufferedAmount > FULL;
  }

  /** Does it. A Close, or an end without one, is the last. */
  put(output: Output): void {
    this.cork();
    if (typeof output === "string" || output instanceof Uint8Array) {
      this.unsent++;
      this.socket.send(output, this.written);
    } else if ("ping" in output) {
      const nonce = Buffer.alloc(8);
      nonce.writeBigUInt64BE(BigInt(output.ping));
      this.unsent++;
      this.socket.ping(nonce, false, this.written);
    } else if ("code" in output) this.close(output.code, output.reason);
    else this.abort();
  }

  close(code: number, reason: string): void {
    this.resume();
    this.socket.close(code, reason);
    this.leave(code, reason);
  }

  /** Without a closing handshake; the listener gets the code and the reason. */
  abort(code = 1006, reason = ""): void {
    this.socket.terminate();
    this.leave(code, reason);
  }

  pause(): void {
    this.isPaused = true;
    this.socket.pause();
  }

  resume(): void {
    if (this.isPaused) this.socket.resume();
    this.isPaused = false;
  }

  /** Whether bytes came that the listener does not know of, those of an unfinished frame, or were left unread on purpose. */
  tookBytes(): boolean {
    const { seen, bytesRead } = this;
    this.seen = bytesRead;
    return bytesRead !== seen || this.isPaused;
  }

  /** Whether the kernel took some of one large write since the last call. */
  madeProgress(): boolean {
    const { left } = this;
    // Node's own idle timeout looks at the same number.
    this.left = (this.request.raw.socket as any)?._handle?.writeQueueSize ?? 0;
    return this.left < left;
  }

  /** Bytes came after the last whole message: it is in the middle of one. */
  get isMidFrame(): boolean {
    return this.bytesRead !== this.wholeAt;
  }

  private get bytesRead(): number {
    // A connection that was injected has no TCP socket.
    return this.request.raw.socket?.bytesRead ?? 0;
  }

  /** Bytes of the application's message; a session's other messages are of the protocol. */
  private payloadOf(data: Buffer, isBinary: boolean): number {
    if (!isBinary || !isOurs(this.protocol)) return data.length;
    const front = data[0] === Type.Data ? 1 : data[0] === Type.Volatile ? 2 : data.length;
    return data.length - front;
  }

  private refuse(): void {
    this.request.log.info("a client's message is larger than maxMessage: its connection is closed with 1009");
    this.close(1009, "the message is larger than this server takes");
  }

  private arrived(nonce: number): void {
    this.wholeAt = this.seen = this.bytesRead;
    this.listener?.pong(this, nonce);
  }

  /** What is written in one turn leaves in one system call. */
  private cork(): void {
    const { socket } = this.request.raw;
    if (this.isCorked || !socket) return;
    this.isCorked = true;
    socket.cork();
    process.nextTick(() => {
      this.isCorked = false;
      socket.uncork();
    });
  }

  private written = (): void => {
    this.unsent--;
    this.listener?.wrote(this, !this.unsent);
  };

  private leave(code: number, reason: string): void {
    const { listener } = this;
    this.listener = undefined;
    listener?.lost(this, code, reason);
  }
}
