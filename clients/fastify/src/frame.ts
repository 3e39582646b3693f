/**
 * Writes the frames of messages and Pings as a server sends them: unmasked and unfragmented, so each frame is a header of
 * a few bytes in front of its payload. `ws` reads the clients' frames and performs the closing handshake.
 *
 * Source: RFC 6455 section 5.2.
 */

import type { Socket } from "node:net";
import type { Data } from "@mainstay/client/protocol";

const FINAL = 0x80;
const TEXT = 1;
const BINARY = 2;
const PING = 9;

/** A payload of up to this many bytes is copied behind its header into one chunk from Node's buffer pool. */
const SMALL = 2048;

/** A message that goes to many connections, and its frame from the first write on. */
let shared: { data: Data; chunks: Buffer[] | undefined } | undefined;

/** Calls `act`. Meanwhile `data` is framed only once, however many connections it is written to. */
export function shareFrame(data: Data, act: () => void): void {
  const outer = shared;
  shared = { data, chunks: undefined };
  try {
    act();
  } finally {
    shared = outer;
  }
}

/** Writes a message as one frame. */
export function writeMessage(to: Socket, data: Data): void {
  if (shared?.data === data) {
    for (const chunk of (shared.chunks ??= chunksOf(data))) to.write(chunk);
  } else writeOnce(to, data);
}

function chunksOf(data: Data): Buffer[] {
  const isText = typeof data === "string";
  const payload = isText ? Buffer.from(data) : Buffer.from(data.buffer, data.byteOffset, data.length);
  const opcode = isText ? TEXT : BINARY;
  if (payload.length > SMALL) return [header(opcode, payload.length, 0), payload];
  const frame = header(opcode, payload.length, payload.length);
  frame.set(payload, frame.length - payload.length);
  return [frame];
}

function writeOnce(to: Socket, data: Data): void {
  const isText = typeof data === "string";
  const length = isText ? Buffer.byteLength(data) : data.length;
  const opcode = isText ? TEXT : BINARY;
  if (length > SMALL) {
    to.write(header(opcode, length, 0));
    // Text of as many bytes as characters is ASCII, which needs no encoding.
    if (isText) to.write(data, length === data.length ? "latin1" : "utf8");
    else to.write(data);
    return;
  }
  const frame = header(opcode, length, length);
  const from = frame.length - length;
  if (!isText) frame.set(data, from);
  else frame.write(data, from, length === data.length ? "latin1" : "utf8");
  to.write(frame);
}

/** Writes a Ping whose payload is a nonce of 32 bits, as a number of 64. */
export function writePing(to: Socket, nonce: number): void {
  const frame = header(PING, 8, 8);
  frame.writeUInt32BE(0, 2);
  frame.writeUInt32BE(nonce, 6);
  to.write(frame);
}

/** Returns a frame's header for a payload of `length` bytes, in a buffer with `room` bytes behind it. */
function header(opcode: number, length: number, room: number): Buffer {
  if (length < 126) {
    const frame = Buffer.allocUnsafe(2 + room);
    frame[0] = FINAL | opcode;
    frame[1] = length;
    return frame;
  }
  const isLong = length > 65_535;
  const frame = Buffer.allocUnsafe((isLong ? 10 : 4) + room);
  frame[0] = FINAL | opcode;
  frame[1] = isLong ? 127 : 126;
  if (!isLong) frame.writeUInt16BE(length, 2);
  else frame.writeBigUInt64BE(BigInt(length), 2);
  return frame;
}
