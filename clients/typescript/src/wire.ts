/**
 * The messages of `mainstay.v1` and their bytes. A text message is application text, untouched; a binary one starts
 * with a type byte: `00` is application binary, `01`-`80` are control messages, `81`-`ff` are ignored.
 *
 * A control message is a tuple: its type, its fixed fields, its optional ones. One table says what they are, and
 * reading and writing both follow it.
 *
 * Source: `docs/PROTOCOL.md` "Framing". Durations are milliseconds.
 */

import { bytesOf, textOf } from "./text.js";

export { bytesOf, viewOf } from "./text.js";

/** Bytes of a buffer that is not shared. Said so that TypeScript below 5.7, which has no word for that, reads it too. */
export type Bytes = ReturnType<Uint8ArrayConstructor["of"]>;

/** Application data. */
export type Data = string | Bytes;

/** What one end accepts above what it has received. */
export type Window = [messages: number, bytes: number];

/** When to come; 0 and 0 is no advice. */
export type Delay = [earliest: number, latest: number];

/** What became of a lost session, as the peer tells it. Causes: 0 unknown, 1 expired, 2 ended, 3 evicted, 4 restarted, 5 replaced. */
export type Account = [received: number, handed: number, firstLost: number, count: number, cause: number];

export type Resume = [token: Bytes, received: number, sent: number, firstHeld: number];

/** The type of a control message. 0 stands for application data. */
export const enum Type {
  Data,
  Hello,
  Welcome,
  Ack,
  Ping,
  Pong,
  GoAway,
  Gap,
  End,
  Auth,
  AuthResult,
  Volatile,
  Refuse,
  /** In the range that ends which do not know it ignore. */
  Replaced = 128,
}

export type Hello = [
  type: Type.Hello,
  version: 1,
  window: Window,
  key: Bytes,
  keyAge: number,
  instance: Bytes,
  attempt: number,
  resume?: Resume | undefined,
  credentials?: Bytes | undefined,
  resumeWindow?: number | undefined,
  maxMessage?: number | undefined,
];
export type Welcome = [
  type: Type.Welcome,
  id: Bytes,
  token: Bytes,
  epoch: number,
  resumed: boolean,
  received: number,
  first: number,
  resumeWindow: number,
  heartbeatInterval: number,
  window: Window,
  account?: Account | undefined,
  resumeAt?: string | undefined,
  maxMessage?: number | undefined,
];
export type Ack = [type: Type.Ack, received: number, window?: Window | undefined];
export type Beat = [type: Type.Ping | Type.Pong, nonce: number, sent: number, received: number];
export type GoAway = [type: Type.GoAway, reason: string, delay: Delay, closeIn: number, endpoint?: string | undefined];
export type Gap = [type: Type.Gap, first: number, count: number, cause: number];
export type End = [type: Type.End, code: number, reason: string, received: number, handed: number];
export type Auth = [type: Type.Auth, credentials: Bytes];
export type AuthResult = [type: Type.AuthResult, accepted: boolean, expiresIn: number];
export type Volatile = [type: Type.Volatile, data: Data];
export type Refuse = [type: Type.Refuse, code: number, temporary: boolean, delay: Delay, account?: Account | undefined];
export type Replaced = [type: Type.Replaced, after: number, count: number];

export type Control = Hello | Welcome | Ack | Beat | GoAway | Gap | End | Auth | AuthResult | Volatile | Refuse | Replaced;

/** What one WebSocket message carries; nothing, if its type is reserved. */
export type Frame = Control | [type: Type.Data, data: Data] | undefined;

/** A message that is not allowed: its connection is failed with 4400. `isFatal`: the session is over as well. */
export class ProtocolError extends Error {
  override name = "ProtocolError";
  declare isFatal: boolean | undefined;

  constructor(message: string, isFatal?: boolean) {
    super(message);
    this.isFatal = isFatal;
  }
}

export function fail(message: string, isFatal?: boolean): never {
  throw new ProtocolError(message, isFatal);
}

/** The largest number on the wire: a JavaScript number holds it exactly. */
export const MAX_INTEGER = Number.MAX_SAFE_INTEGER;

// A letter for each field, by message type; after `|` the optional ones, by their types from 1. v version; i integer;
// p integer above 0; f flag; b bytes; k 16 bytes; n 8 bytes; t text; w window; d delay; c cause of a GAP; A account;
// u its cause; R resume; and up to the end: B bytes, T text, D kind and data.
const SHAPES = /* @__PURE__ */ Object.assign(" vwkini|RBii nbpfipiiw|ATi i|w iii iii tdi|T ppc itii b fi D ifd|A".split(" "), { 128: "ip" });
const PARTS: Record<string, string> = { w: "pi", d: "ii", A: "iiiiu", R: "biii" };

/** A message as a connection gives it, which is asked for array buffers. */
export type Received = string | ArrayBuffer;

export const toHex = (bytes: Bytes): string => Array.from(bytes, (byte) => (byte | 256).toString(16).slice(1)).join("");

/** What a WebSocket message carries. @throws {@link ProtocolError}, its message as in `conformance/vectors/malformed.json`. */
export function decode(message: Data): Frame {
  if (typeof message === "string") return [Type.Data, message];
  const type = message[0]!;
  if (!message.length) fail("Empty");
  if (type > 128) return;
  const body = message.subarray(1);
  if (!type) return [Type.Data, body];
  if (!SHAPES[type]) fail("UnknownType");
  return [type, ...readFields(body, SHAPES[type]!)] as Frame;
}

/** The bytes of a control message. */
export function encode([type, ...values]: Control): Bytes {
  const [fixed, optional] = SHAPES[type]!.split("|") as [string, string?];
  const out = [type as number];
  [...fixed].forEach((letter, i) => write(out, letter, values[i]));
  [...(optional ?? "")].forEach((letter, i) => {
    const value = values[fixed.length + i];
    if (value === undefined) return;
    const field: number[] = [];
    write(field, letter, value);
    out.push(i + 1);
    write(out, "b", field);
  });
  return Uint8Array.from(out);
}

/** Application data as it travels. */
export function encodeData(data: Data): Data {
  if (typeof data === "string") return data;
  const message = new Uint8Array(data.length + 1);
  message.set(data, 1);
  return message;
}

function readFields(bytes: Bytes, shape: string): unknown[] {
  let at = 0;

  const take = (length: number) => {
    if (at + length > bytes.length) fail("Truncated");
    return bytes.subarray(at, (at += length));
  };

  /** RFC 9000 section 16, any of its forms. */
  const integer = (least = 0, most = MAX_INTEGER, error = "BadValue") => {
    const first = take(1)[0]!;
    let value = first & 63;
    for (const byte of take((1 << (first >> 6)) - 1)) value = value * 256 + byte;
    if (value > MAX_INTEGER) fail("IntegerTooLarge");
    if (value < least || value > most) fail(error);
    return value;
  };

  const read = (letter: string): any => {
    if (PARTS[letter]) return [...PARTS[letter]].map(read);
    if (letter === "v") return integer(1, 1, "Version");
    if (letter === "i") return integer();
    if (letter === "p") return integer(1);
    if (letter === "c") return integer(1, 2);
    if (letter === "u") return [0, 1, 2, 3, 4, 5][integer()] ?? 0;
    if (letter === "f") return !!integer(0, 1);
    if (letter === "D") return read(read("f") ? "B" : "T");
    // Bytes, or text: what is left, or so many.
    const value = take("BT".includes(letter) ? bytes.length - at : integer());
    const length = { k: 16, n: 8 }[letter];
    if (length && value.length !== length) fail("BadValue");
    if (!"tT".includes(letter)) return value;
    try {
      return textOf(value);
    } catch {
      fail("BadValue");
    }
  };

  const [fixed, optional = ""] = shape.split("|") as [string, string?];
  const values = [...fixed].map(read);
  if (shape.endsWith("c") && values[0] + values[1] > MAX_INTEGER) fail("BadValue");
  for (const seen: number[] = []; at < bytes.length; ) {
    const type = integer();
    const field = take(integer());
    if (seen.includes(type)) fail("RepeatedField");
    if (seen.push(type) > 32) fail("TooManyFields");
    const letter = optional[type - 1];
    if (letter) [values[fixed.length + type - 1]] = readFields(field, letter + "|");
  }
  return values;
}

function write(out: number[], letter: string, value: any): void {
  if (PARTS[letter]) [...PARTS[letter]].forEach((part, i) => write(out, part, value[i]));
  else if (typeof value === "number" || typeof value === "boolean") {
    // Whole, not below 0, not above 2^53-1, in the shortest form.
    const whole = Math.min(Math.max(Math.floor(+value), 0), MAX_INTEGER);
    const form = whole < 64 ? 0 : whole < 16384 ? 1 : whole < 2 ** 30 ? 2 : 3;
    for (let i = (1 << form) - 1, mark = form << 6; i >= 0; i--, mark = 0) out.push((Math.floor(whole / 256 ** i) % 256) | mark);
  } else {
    if (letter === "D") out.push(+(typeof value !== "string"));
    const bytes = bytesOf(value);
    if (letter > "Z") write(out, "i", bytes.length);
    for (const byte of bytes) out.push(byte);
  }
}
