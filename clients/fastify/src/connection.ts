/**
 * One WebSocket, as the driver sees it: what arrives is told to its listener, and what was written is watched leaving
 * where somebody waits for that.
 *
 * A connection that is idle keeps nothing of its own beside this object: the functions that its socket calls are the same
 * for all of them.
 */

import { isAscii } from "node:buffer";
import type { Socket } from "node:net";
import { type Bytes, type Data, Type } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { WebSocket } from "ws";
import { writeMessage, writePing } from "./frame.js";
import type { Output } from "./server-session.js";
import { isOurs } from "./subprotocol.js";

/** Who is told about a connection. */
export interface Listener {
  /** `length`: of all its bytes. */
  message(connection: Connection, data: Data, length: number): void;
  /** A Ping (nonce -1) or a Pong arrived. */
  pong(connection: Connection, nonce: number): void;
  /** It is gone, or on its way out: nothing that it still brings matters. */
  lost(connection: Connection, code: number, reason: string): void;
  /** Some of what was written has left the process, or all. Told of what was put with `isWatched`, and when a full connection has room. */
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

const OWNER = Symbol("mainstay.connection");
type Owned = WebSocket & { [OWNER]: Connection };

export class Connection {
  readonly id: number;
  readonly request: FastifyRequest;
  listener: Listener | undefined;
  private socket: Owned;
  /** What the WebSocket runs on. A connection that was injected has none. */
  private tcp: Socket | undefined;
  private maxMessage: number;
  private isPaused = false;
  private isCorked = false;
  /** `ws` compresses, and holds what waits for that. */
  private isCompressed: boolean;
  /** The driver was told that it is full, and is told when it is not. */
  private isAwaited = false;
  /** Something that was written in this turn is watched. */
  private isWatched = false;
  /** Writes whose end is watched for, and was not reported. */
  private unsent = 0;
  /** What the TCP socket had read when something whole last came, and what of that is known to the listener. */
  private wholeAt: number;
  private seen: number;
  /** What the kernel had left to take of a write when it was last looked at. */
  private left = 0;

  /** `maxMessage`: of the application's payload, in bytes. */
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

  get protocol(): string {
    return this.socket.protocol;
  }

  /** Once this was true, `wrote` says when there is room. */
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

  /** Does it. A Close, or an end without one, is the last. `isWatched`: `wrote` says when it has left. */
  put(output: Output, isWatched = false): void {
    if (typeof output === "string" || output instanceof Uint8Array) this.write(output, isWatched);
    else if ("ping" in output) this.ping(output.ping);
    else if ("code" in output) this.close(output.code, output.reason);
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
    if (!this.isPaused) this.socket.pause();
    this.isPaused = true;
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
    const { left, tcp } = this;
    // Node's own idle timeout looks at the same number.
    this.left = tcp?.writableLength ? ((tcp as any)._handle?.writeQueueSize ?? 0) : 0;
    return this.left < left;
  }

  /** Bytes came after the last whole message: it is in the middle of one. */
  get isMidFrame(): boolean {
    return this.bytesRead !== this.wholeAt;
  }

  private get bytesRead(): number {
    return this.tcp?.bytesRead ?? 0;
  }

  // ---- what the socket calls ----------------------------------------------------------------------

  /** @internal */
  read(data: Buffer & Bytes, isBinary: boolean): void {
    this.wholeAt = this.seen = this.bytesRead;
    if (data.length > this.maxMessage && this.payloadOf(data, isBinary) > this.maxMessage) this.refuse();
    else this.listener?.message(this, isBinary ? data : textOf(data), data.length);
  }

  /** @internal */
  arrived(nonce: number): void {
    this.wholeAt = this.seen = this.bytesRead;
    this.listener?.pong(this, nonce);
  }

  /** @internal A frame that RFC 6455 does not allow, or one that is too large: `ws` closes, and says why. */
  failed(error: Error & { code?: string }): void {
    if (error.code === TOO_LARGE) this.refuse();
    else this.leave(1006, error.message);
  }

  /** @internal */
  leave(code: number, reason: string): void {
    const { listener } = this;
    this.listener = undefined;
    listener?.lost(this, code, reason);
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

  // ---- writing -------------------------------------------------------------------------------------

  private write(message: Data, isWatched: boolean): void {
    if (!this.tcp) return this.socket.send(message, this.watch());
    this.cork();
    this.isWatched ||= isWatched;
    // What waits to be compressed makes room without a word of the TCP socket.
    if (this.isCompressed) this.socket.send(message, this.watch());
    else if (this.isOpen) writeMessage(this.tcp, message);
  }

  private ping(nonce: number): void {
    if (!this.tcp) return this.socket.ping(nonceOf(nonce), false, this.watch());
    if (!this.isOpen) return;
    // The PING of a session follows; in front of a plain client it is alone in nearly every turn.
    if (isOurs(this.protocol)) this.cork();
    writePing(this.tcp, nonce);
    if (!this.isCorked) this.watchAll();
    else this.isWatched = true;
  }

  /** No closing handshake has begun. */
  private get isOpen(): boolean {
    return this.socket.readyState === this.socket.OPEN;
  }

  /** What is written in one turn leaves in one system call. */
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

  /** What was written in this turn is out of the cork. */
  private watchAll(): void {
    if (this.unsent) return;
    if (!this.tcp!.writableLength) this.written();
    // The callback of nothing, written behind all, says that all has left.
    else this.tcp!.write("", this.watch());
  }

  private watch(): () => void {
    this.unsent++;
    return () => {
      this.unsent--;
      // What left in one system call is told once, or the second half of a probe would look like progress of the first.
      if (!this.unsent || this.tcp?.writableLength !== 0) this.written();
    };
  }

  private written(): void {
    this.listener?.wrote(this, !this.unsent && !this.socket.bufferedAmount);
  }
}

/** Those that wrote in this turn. */
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

/** Nearly all text is ASCII, which needs no decoding. */
function textOf(data: Buffer): string {
  return data.toString(data.length > 1024 && isAscii(data) ? "latin1" : "utf8");
}

function onMessage(this: WebSocket, data: Buffer<ArrayBuffer>, isBinary: boolean): void {
  (this as Owned)[OWNER].read(data, isBinary);
}

function onPing(this: WebSocket): void {
  (this as Owned)[OWNER].arrived(-1);
}

function onPong(this: WebSocket, data: Buffer): void {
  // A nonce has 32 bits; a larger number is none of ours.
  const isOurs = data.length === 8 && data.readUInt32BE(0) === 0;
  (this as Owned)[OWNER].arrived(isOurs ? data.readUInt32BE(4) : -1);
}

function onClose(this: WebSocket, code: number, reason: Buffer): void {
  (this as Owned)[OWNER].leave(code, reason.toString() || (code === 1006 ? BROKEN : ""));
}

function onError(this: WebSocket, error: Error): void {
  (this as Owned)[OWNER].failed(error);
}
