/**
 * One WebSocket: reports to its listener what arrives and, where the listener asks for it, when written bytes leave the
 * process.
 *
 * An idle connection allocates nothing beside this object: all sockets call the same functions.
 */

import { isAscii } from "node:buffer";
import type { Socket } from "node:net";
import { type Bytes, type Data, Type } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { WebSocket } from "ws";
import { writeMessage, writePing } from "./frame.js";
import type { Output } from "./server-session.js";
import { isOurs } from "./subprotocol.js";

/** Receives the events of a connection. */
export interface Listener {
  /** A message arrived. `length`: its bytes. */
  handleMessage(connection: Connection, data: Data, length: number): void;
  /** A Ping (nonce -1) or a Pong arrived. */
  handlePong(connection: Connection, nonce: number): void;
  /** The connection closed or began to close. It reports nothing after this. */
  handleLost(connection: Connection, code: number, reason: string): void;
  /**
   * Some written bytes have left the process, or all of them (`isAll`). Reported for writes with `isWatched`, and when a full
   * connection has room again.
   */
  handleWritten(connection: Connection, isAll: boolean): void;
}

/**
 * The largest control message, such as HELLO with credentials, in bytes. `maxMessage` limits messages of the application only.
 */
const MAX_CONTROL = 65_536;

/** Returns the largest WebSocket message that a connection accepts: the payload, and the type bytes in front of it. */
export const maxPayload = (maxMessage: number): number => Math.max(maxMessage, MAX_CONTROL) + 2;

const BROKEN = "the connection broke without a Close";

/** The code of the error that `ws` reports for a message above its `maxPayload`. */
const TOO_LARGE = "WS_ERR_UNSUPPORTED_MESSAGE_LENGTH";

/** A connection with more unsent bytes than this is full: further messages wait in their session. */
const FULL = 65_536;

const OWNER = Symbol("mainstay.connection");
type Owned = WebSocket & { [OWNER]: Connection };

/** One WebSocket of a client. */
export class Connection {
  readonly id: number;
  readonly request: FastifyRequest;
  listener: Listener | undefined;
  private socket: Owned;
  /** The TCP or TLS socket under the WebSocket. An injected connection has none. */
  private tcp: Socket | undefined;
  private maxMessage: number;
  private isPaused = false;
  private isCorked = false;
  /** `ws` compresses the messages, and queues those that wait for compression. */
  private isCompressed: boolean;
  /** {@link isFull} returned true, and the listener has to be called when there is room. */
  private isAwaited = false;
  /** A write of this turn is watched. */
  private isWatched = false;
  /** Watched writes that have not left the process. */
  private unsent = 0;
  /** The TCP socket's count of read bytes at the end of the last whole frame. */
  private wholeAt: number;
  /** The count of read bytes that the listener has seen. */
  private seen: number;
  /** How many bytes of a write the kernel had not accepted at the last check. */
  private left = 0;

  /** `maxMessage`: the largest message of the application, in payload bytes. */
  constructor(id: number, socket: WebSocket, request: FastifyRequest, maxMessage = Infinity) {
    this.id = id;
    this.socket = socket as Owned;
    this.socket[OWNER] = this;
    this.request = request;
    this.tcp = request.raw.socket ?? undefined;
    this.maxMessage = maxMessage;
    this.isCompressed = !!socket.extensions;
    this.wholeAt = this.seen = this.bytesRead;
    socket.on("message", onMessage).on("ping", onPing).on("pong", onPong).on("close", onClose).on("error", onError);
  }

  /** The subprotocol that was agreed on; "" is none. */
  get protocol(): string {
    return this.socket.protocol;
  }

  /** Whether too many bytes are unsent. After it was true, the listener's `handleWritten` reports when there is room. */
  get isFull(): boolean {
    if (this.socket.bufferedAmount <= FULL) return false;
    if (this.isAwaited || !this.tcp) return true;
    this.isAwaited = true;
    this.tcp.once("drain", () => {
      this.isAwaited = false;
      this.written();
    });
    return true;
  }

  /** Writes a message. `isWatched`: the listener's `handleWritten` reports when its bytes have left the process. */
  send(message: Data, isWatched = false): void {
    if (!this.tcp) return this.socket.send(message, this.watch());
    this.cork();
    this.isWatched ||= isWatched;
    // A compressed message that waits leaves without an event of the TCP socket.
    if (this.isCompressed) this.socket.send(message, this.watch());
    else if (this.isOpen) writeMessage(this.tcp, message);
  }

  /** Writes an RFC 6455 Ping with this nonce. */
  ping(nonce: number): void {
    if (!this.tcp) return this.socket.ping(nonceOf(nonce), false, this.watch());
    if (!this.isOpen) return;
    // In a session the PING follows at once; towards a plain client the Ping is nearly always alone in its turn.
    if (isOurs(this.protocol)) this.cork();
    writePing(this.tcp, nonce);
    if (!this.isCorked) this.watchAll();
    else this.isWatched = true;
  }

  /** Writes or does the next output of a session. */
  transmit(output: Output, isWatched: boolean): void {
    if (typeof output === "string" || output instanceof Uint8Array) this.send(output, isWatched);
    else if (output.kind === "ping") this.ping(output.nonce);
    else if (output.kind === "close") this.close(output.code, output.reason);
    else this.abort();
  }

  /** Sends a Close. The listener gets the code and the reason at once. */
  close(code: number, reason: string): void {
    this.resume();
    this.socket.close(code, reason);
    this.detach(code, reason);
  }

  /** Ends the connection without a closing handshake. The listener gets the code and the reason at once. */
  abort(code = 1006, reason = ""): void {
    this.socket.terminate();
    this.detach(code, reason);
  }

  /** Stops reading. */
  pause(): void {
    if (!this.isPaused) this.socket.pause();
    this.isPaused = true;
  }

  /** Reads again. */
  resume(): void {
    if (this.isPaused) this.socket.resume();
    this.isPaused = false;
  }

  /**
   * Returns whether bytes arrived that the listener has not seen, such as those of an unfinished frame, or were left unread on
   * purpose.
   */
  hasNewBytes(): boolean {
    const { seen, bytesRead } = this;
    this.seen = bytesRead;
    return bytesRead !== seen || this.isPaused;
  }

  /** Returns whether the kernel accepted bytes of a large write since the last call. */
  hasWriteProgress(): boolean {
    const { left, tcp } = this;
    // Node's own idle timeout reads the same number.
    this.left = tcp?.writableLength ? ((tcp as any)._handle?.writeQueueSize ?? 0) : 0;
    return this.left < left;
  }

  /** Whether bytes arrived after the last whole frame: the client is in the middle of one. */
  get isMidFrame(): boolean {
    return this.bytesRead !== this.wholeAt;
  }

  private get bytesRead(): number {
    return this.tcp?.bytesRead ?? 0;
  }

  // ---- called by the socket -----------------------------------------------------------------------

  /** @internal */
  handleMessage(data: Buffer & Bytes, isBinary: boolean): void {
    this.wholeAt = this.seen = this.bytesRead;
    if (data.length > this.maxMessage && this.payloadOf(data, isBinary) > this.maxMessage) this.closeTooLarge();
    else this.listener?.handleMessage(this, isBinary ? data : textOf(data), data.length);
  }

  /** @internal */
  handlePong(nonce: number): void {
    this.wholeAt = this.seen = this.bytesRead;
    this.listener?.handlePong(this, nonce);
  }

  /** @internal `ws` closes the connection for a frame that RFC 6455 forbids, or that is too large. */
  handleError(error: Error & { code?: string }): void {
    if (error.code === TOO_LARGE) this.closeTooLarge();
    else this.detach(1006, error.message);
  }

  /** @internal Reports the end of the connection, once. */
  detach(code: number, reason: string): void {
    const { listener } = this;
    this.listener = undefined;
    listener?.handleLost(this, code, reason);
  }

  /** Returns the bytes of the application's message; 0 for a control message of the session protocol. */
  private payloadOf(data: Buffer, isBinary: boolean): number {
    if (!isBinary || !isOurs(this.protocol)) return data.length;
    const front = data[0] === Type.Data ? 1 : data[0] === Type.Volatile ? 2 : data.length;
    return data.length - front;
  }

  private closeTooLarge(): void {
    this.request.log.info("a client's message is larger than maxMessage: its connection is closed with 1009");
    this.close(1009, "the message is larger than this server accepts");
  }

  // ---- writing -------------------------------------------------------------------------------------

  /** Whether no closing handshake has begun. */
  private get isOpen(): boolean {
    return this.socket.readyState === this.socket.OPEN;
  }

  /** Collects the writes of one turn, which then leave in one system call. */
  private cork(): void {
    if (this.isCorked) return;
    this.isCorked = true;
    this.tcp!.cork();
    if (corked.push(this) === 1) process.nextTick(uncorkAll);
  }

  /** @internal */
  uncork(): void {
    const { tcp, isWatched } = this;
    this.isCorked = this.isWatched = false;
    tcp!.uncork();
    if (isWatched) this.watchAll();
  }

  /** Watches all writes of this turn. */
  private watchAll(): void {
    if (this.unsent) return;
    if (!this.tcp!.writableLength) this.written();
    // The callback of an empty write behind all others reports that all have left.
    else this.tcp!.write("", this.watch());
  }

  /** Returns the callback of a watched write. */
  private watch(): () => void {
    this.unsent++;
    return () => {
      this.unsent--;
      // Writes of one system call are reported once. Otherwise the second half of a probe looks like progress of the first.
      if (!this.unsent || this.tcp?.writableLength !== 0) this.written();
    };
  }

  private written(): void {
    this.listener?.handleWritten(this, !this.unsent && !this.socket.bufferedAmount);
  }
}

/** The connections that wrote in this turn. */
let corked: Connection[] = [];

function uncorkAll(): void {
  const all = corked;
  corked = [];
  for (const connection of all) connection.uncork();
}

function nonceOf(nonce: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt32BE(nonce, 4);
  return bytes;
}

/** Decodes a text message. Nearly all text is ASCII, which needs no decoding. */
function textOf(data: Buffer): string {
  return data.toString(data.length > 1024 && isAscii(data) ? "latin1" : "utf8");
}

function onMessage(this: WebSocket, data: Buffer<ArrayBuffer>, isBinary: boolean): void {
  (this as Owned)[OWNER].handleMessage(data, isBinary);
}

function onPing(this: WebSocket): void {
  (this as Owned)[OWNER].handlePong(-1);
}

function onPong(this: WebSocket, data: Buffer): void {
  // Our nonces have 32 bits.
  const isOurs = data.length === 8 && data.readUInt32BE(0) === 0;
  (this as Owned)[OWNER].handlePong(isOurs ? data.readUInt32BE(4) : -1);
}

function onClose(this: WebSocket, code: number, reason: Buffer): void {
  (this as Owned)[OWNER].detach(code, reason.toString() || (code === 1006 ? BROKEN : ""));
}

function onError(this: WebSocket, error: Error): void {
  (this as Owned)[OWNER].handleError(error);
}
