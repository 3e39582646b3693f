/**
 * A client that uses little CPU, so that the benchmark measures the server: it makes a frame once and sends it again, and its
 * parser skips payloads that it does not need. It speaks three dialects: `plain` WebSocket, `session` (`mainstay.v1`) and
 * `socketio`.
 */

import { randomBytes } from "node:crypto";
import net from "node:net";
import { decode, encode } from "@mainstay/client/protocol";

// Opcodes of RFC 6455.
const TEXT = 1;
const BINARY = 2;
const CLOSE = 8;
const PING = 9;
const PONG = 10;

// Message types of mainstay.v1.
const HELLO = 1;
const WELCOME = 2;
const ACK = 3;
const SESSION_PING = 4;
const SESSION_PONG = 5;
const END = 8;

/** Returns a masked frame. The mask is not zero, so that the server has to unmask the payload. */
export function frame(opcode, payload) {
  const length = payload.length;
  const header = length < 126 ? [128 | length] : length < 65_536 ? [254, length >> 8, length & 255] : [255, 0, 0, 0, 0, length >>> 24, (length >> 16) & 255, (length >> 8) & 255, length & 255];
  const mask = [0x37, 0xfa, 0x21, 0x3d];
  const masked = Buffer.from(payload);
  for (let i = 0; i < length; i++) masked[i] ^= mask[i & 3];
  return Buffer.concat([Buffer.from([128 | opcode, ...header, ...mask]), masked]);
}

/** Returns the frame of a dialect's message with `size` bytes. */
export function echoFrame(dialect, size) {
  const text = "x".repeat(size);
  return frame(TEXT, Buffer.from(dialect === "socketio" ? `42["m","${text}"]` : text));
}

const CLOSING = frame(CLOSE, Buffer.from([3, 232]));
const CONNECT = frame(TEXT, Buffer.from("40"));
const ENGINE_PONG = frame(TEXT, Buffer.from("3"));

export class Client {
  /** Called for each message of the application. */
  onMessage = () => {};
  /** Called for each probe of the heartbeat. */
  onProbe = () => {};
  /** Messages of the session, in both directions. */
  sent = 0;
  received = 0;
  /** The number of the last acknowledged message, and the bytes that are not acknowledged. */
  acked = 0;
  unackedBytes = 0;
  #rest = undefined;
  #isUpgraded = false;
  #dialect;
  #ready;
  #socket;

  static open(port, dialect) {
    return new Promise((resolve, reject) => {
      const client = new Client();
      client.#dialect = dialect;
      client.#ready = () => resolve(client);
      const path = dialect === "socketio" ? "/echo/?EIO=4&transport=websocket" : "/echo";
      const protocols = dialect === "session" ? "Sec-WebSocket-Protocol: mainstay.v1\r\n" : "";
      client.#socket = net.connect({ port, host: "127.0.0.1", noDelay: true }, () => {
        client.#socket.write(
          `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
            `Sec-WebSocket-Key: ${randomBytes(16).toString("base64")}\r\nSec-WebSocket-Version: 13\r\n${protocols}\r\n`,
        );
      });
      client.#socket.on("error", reject);
      client.#socket.on("data", (chunk) => client.#read(chunk));
    });
  }

  write(frames) {
    this.#socket.write(frames);
  }

  /** Closes in order. The promise settles when the TCP connection has ended. */
  close() {
    return new Promise((resolve) => {
      this.#socket.on("close", resolve);
      this.#socket.on("end", () => this.#socket.end());
      // The server of a session closes the connection once the session has ended.
      if (this.#dialect === "session") this.write(frame(BINARY, encode({ type: END, code: 1000, reason: "", acknowledged: this.received, delivered: this.received })));
      else this.write(CLOSING);
    });
  }

  abort() {
    this.#socket.resetAndDestroy();
  }

  #read(chunk) {
    let data = this.#rest ? Buffer.concat([this.#rest, chunk]) : chunk;
    this.#rest = undefined;
    if (!this.#isUpgraded) {
      const end = data.indexOf("\r\n\r\n");
      if (end < 0) return (this.#rest = data);
      if (!data.subarray(0, 12).equals(Buffer.from("HTTP/1.1 101"))) throw new Error(data.subarray(0, end).toString());
      this.#isUpgraded = true;
      this.#greet();
      data = data.subarray(end + 4);
    }
    for (let at = 0; ; ) {
      const next = this.#frame(data, at);
      if (next === undefined) {
        if (at < data.length) this.#rest = data.subarray(at);
        return;
      }
      at = next;
    }
  }

  /** Handles one frame. Returns where it ends; undefined if it is incomplete. */
  #frame(data, at) {
    if (data.length < at + 2) return;
    let length = data[at + 1] & 127;
    let from = at + 2;
    if (length === 126) {
      if (data.length < at + 4) return;
      length = data.readUInt16BE(at + 2);
      from += 2;
    } else if (length === 127) {
      if (data.length < at + 10) return;
      length = Number(data.readBigUInt64BE(at + 2));
      from += 8;
    }
    if (data.length < from + length) return;
    this.#handle(data[at] & 15, data, from, from + length);
    return from + length;
  }

  #handle(opcode, data, from, to) {
    if (opcode === TEXT) this.#text(data, from, to - from);
    else if (opcode === BINARY) this.#control(decode(data.subarray(from, to)));
    else if (opcode === PING) {
      if (this.#dialect === "plain") this.onProbe();
      this.write(frame(PONG, data.subarray(from, to)));
    } else if (opcode === CLOSE && this.#dialect === "session") this.write(CLOSING);
  }

  #text(data, from, length) {
    if (this.#dialect === "socketio") {
      const type = data[from] - 48;
      if (type === 0) return this.write(CONNECT);
      if (type === 2) {
        this.onProbe();
        return this.write(ENGINE_PONG);
      }
      if (data[from + 1] === 48) return this.#ready();
    }
    // Acknowledges as often as @mainstay/client.
    this.unackedBytes += length;
    if (this.#dialect === "session" && (++this.received - this.acked >= 32 || this.unackedBytes >= 65_536)) {
      this.acked = this.received;
      this.unackedBytes = 0;
      this.write(frame(BINARY, encode({ type: ACK, acknowledged: this.received })));
    }
    this.onMessage();
  }

  #greet() {
    if (this.#dialect === "plain") this.#ready();
    if (this.#dialect !== "session") return;
    const window = { messages: 1024, bytes: 4_194_304 };
    this.write(frame(BINARY, encode({ type: HELLO, version: 1, window, key: randomBytes(16), keyAgeMs: 0, instance: randomBytes(8), attempt: 1 })));
  }

  #control(message) {
    if (message?.type === WELCOME) {
      this.write(frame(BINARY, encode({ type: ACK, acknowledged: 0 })));
      this.#ready();
    } else if (message?.type === SESSION_PING) {
      this.onProbe();
      this.acked = this.received;
      this.write(frame(BINARY, encode({ type: SESSION_PONG, nonce: message.nonce, sent: this.sent, acknowledged: this.received })));
    }
  }
}
