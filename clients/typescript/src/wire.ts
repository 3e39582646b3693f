/**
 * The messages of `mainstay.v1` and their bytes. A text message is application text, untouched; a binary one starts
 * with a type byte: `00` is application binary, `01`-`80` are control messages, `81`-`ff` are ignored.
 *
 * A control message is an object with its `type`. {@link SHAPES} names its fields in the order of the wire, and both
 * reading and writing follow that table.
 *
 * Source: `docs/PROTOCOL.md` "Framing". Durations are milliseconds.
 */

import { type Bytes, bytesOf, type Data, textOf } from "./text.js";

export { type Bytes, bytesOf, type Data, type Received, viewOf } from "./text.js";

/** A bound of a buffer: how many messages it holds, and how many payload bytes. */
export interface Window {
  messages: number;
  bytes: number;
}

/** When to make the next attempt: at random between the two. Both are 0 where the server gives no advice. */
export interface Delay {
  earliestMs: number;
  latestMs: number;
}

/** The cause in an {@link Account}. */
export const enum Cause {
  Unknown,
  Expired,
  Ended,
  Evicted,
  Restarted,
  Replaced,
}

/** What the server reports of a lost session. Lost are `count` of its messages, the first of them `firstLost`. */
export interface Account {
  acknowledged: number;
  delivered: number;
  firstLost: number;
  count: number;
  cause: Cause;
}

/** Which session a client resumes, and up to where it has both streams. */
export interface Resume {
  token: Bytes;
  acknowledged: number;
  sent: number;
  firstHeld: number;
}

/** The type of a message. 0 stands for application data. */
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
  /** In the range that an implementation ignores if it does not implement the type. */
  Replaced = 128,
}

export interface Hello {
  type: Type.Hello;
  version: 1;
  window: Window;
  key: Bytes;
  keyAgeMs: number;
  instance: Bytes;
  attempt: number;
  resume?: Resume | undefined;
  credentials?: Bytes | undefined;
  resumeWindowMs?: number | undefined;
  maxMessage?: number | undefined;
}

export interface Welcome {
  type: Type.Welcome;
  id: Bytes;
  token: Bytes;
  epoch: number;
  resumed: boolean;
  acknowledged: number;
  first: number;
  resumeWindowMs: number;
  heartbeatIntervalMs: number;
  window: Window;
  account?: Account | undefined;
  resumeAt?: string | undefined;
  maxMessage?: number | undefined;
}

export interface Ack {
  type: Type.Ack;
  acknowledged: number;
  window?: Window | undefined;
}

/** A probe of the session, or its answer. */
export interface Beat {
  type: Type.Ping | Type.Pong;
  nonce: number;
  sent: number;
  acknowledged: number;
}

export interface GoAway {
  type: Type.GoAway;
  reason: string;
  delay: Delay;
  closeInMs: number;
  endpoint?: string | undefined;
}

export interface Gap {
  type: Type.Gap;
  first: number;
  count: number;
  /** 1: an overflow; 2: coalesced. */
  cause: number;
}

export interface End {
  type: Type.End;
  code: number;
  reason: string;
  acknowledged: number;
  delivered: number;
}

export interface Auth {
  type: Type.Auth;
  credentials: Bytes;
}

export interface AuthResult {
  type: Type.AuthResult;
  accepted: boolean;
  expiresInMs: number;
}

export interface Volatile {
  type: Type.Volatile;
  data: Data;
}

export interface Refuse {
  type: Type.Refuse;
  code: number;
  temporary: boolean;
  delay: Delay;
  account?: Account | undefined;
}

export interface Replaced {
  type: Type.Replaced;
  after: number;
  count: number;
}

export type Control = Hello | Welcome | Ack | Beat | GoAway | Gap | End | Auth | AuthResult | Volatile | Refuse | Replaced;

/** The content of one WebSocket message; undefined if its type is reserved. */
export type Frame = Control | { type: Type.Data; data: Data } | undefined;

/** A message that the protocol does not allow: its connection is failed with 4400. `isFatal`: the session ends too. */
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

/** The values that a field may have. From `RestBytes` on a value has no length: it reaches to the end. */
const enum Kind {
  Version,
  Integer,
  Positive,
  GapCause,
  AccountCause,
  Flag,
  Bytes,
  Bytes8,
  Bytes16,
  Text,
  RestBytes,
  RestText,
  /** A flag for binary, and the payload. */
  RestData,
}

/** Fields by name, in the order of the wire. */
interface Fields {
  [name: string]: Kind | Fields;
}

/** An optional field has its own type and length: types count from 1 in this order. */
type Shape = [fixed: Fields, optional?: Fields];

const WINDOW: Fields = { messages: Kind.Positive, bytes: Kind.Integer };
const DELAY: Fields = { earliestMs: Kind.Integer, latestMs: Kind.Integer };
const ACCOUNT: Fields = { acknowledged: Kind.Integer, delivered: Kind.Integer, firstLost: Kind.Integer, count: Kind.Integer, cause: Kind.AccountCause };
const RESUME: Fields = { token: Kind.Bytes, acknowledged: Kind.Integer, sent: Kind.Integer, firstHeld: Kind.Integer };
const BEAT: Shape = [{ nonce: Kind.Integer, sent: Kind.Integer, acknowledged: Kind.Integer }];

const SHAPES: { [type: number]: Shape } = {
  [Type.Hello]: [
    { version: Kind.Version, window: WINDOW, key: Kind.Bytes16, keyAgeMs: Kind.Integer, instance: Kind.Bytes8, attempt: Kind.Integer },
    { resume: RESUME, credentials: Kind.RestBytes, resumeWindowMs: Kind.Integer, maxMessage: Kind.Integer },
  ],
  [Type.Welcome]: [
    {
      id: Kind.Bytes8,
      token: Kind.Bytes,
      epoch: Kind.Positive,
      resumed: Kind.Flag,
      acknowledged: Kind.Integer,
      first: Kind.Positive,
      resumeWindowMs: Kind.Integer,
      heartbeatIntervalMs: Kind.Integer,
      window: WINDOW,
    },
    { account: ACCOUNT, resumeAt: Kind.RestText, maxMessage: Kind.Integer },
  ],
  [Type.Ack]: [{ acknowledged: Kind.Integer }, { window: WINDOW }],
  [Type.Ping]: BEAT,
  [Type.Pong]: BEAT,
  [Type.GoAway]: [{ reason: Kind.Text, delay: DELAY, closeInMs: Kind.Integer }, { endpoint: Kind.RestText }],
  [Type.Gap]: [{ first: Kind.Positive, count: Kind.Positive, cause: Kind.GapCause }],
  [Type.End]: [{ code: Kind.Integer, reason: Kind.Text, acknowledged: Kind.Integer, delivered: Kind.Integer }],
  [Type.Auth]: [{ credentials: Kind.Bytes }],
  [Type.AuthResult]: [{ accepted: Kind.Flag, expiresInMs: Kind.Integer }],
  [Type.Volatile]: [{ data: Kind.RestData }],
  [Type.Refuse]: [{ code: Kind.Integer, temporary: Kind.Flag, delay: DELAY }, { account: ACCOUNT }],
  [Type.Replaced]: [{ after: Kind.Integer, count: Kind.Positive }],
};

export const toHex = (bytes: Bytes): string => Array.from(bytes, (byte) => (byte | 256).toString(16).slice(1)).join("");

/** Returns the content of a WebSocket message. @throws {@link ProtocolError}, its message as in `conformance/vectors/malformed.json`. */
export function decode(message: Data): Frame {
  if (typeof message === "string") return { type: Type.Data, data: message };
  const type = message[0]!;
  if (!message.length) fail("Empty");
  if (type > 128) return;
  const data = message.subarray(1);
  if (!type) return { type, data };
  return { type, ...readFields(data, SHAPES[type] ?? fail("UnknownType")) } as Frame;
}

/** Returns the bytes of a control message. */
export function encode(message: Control): Bytes {
  const { type } = message;
  const [fixed, optional] = SHAPES[type]!;
  const out: number[] = [type];
  write(out, fixed, message);
  Object.keys(optional ?? {}).forEach((name, index) => {
    const value = (message as any)[name];
    if (value === undefined) return;
    const field: number[] = [];
    write(field, optional![name]!, value);
    out.push(index + 1);
    write(out, Kind.Bytes, field);
  });
  return Uint8Array.from(out);
}

/** Returns application data as it travels. */
export function encodeData(data: Data): Data {
  if (typeof data === "string") return data;
  const message = new Uint8Array(data.length + 1);
  message.set(data, 1);
  return message;
}

function readFields(bytes: Bytes, [fixed, optional]: Shape): any {
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

  const read = (kind: Kind | Fields): any => {
    if (typeof kind === "object") {
      const values: any = {};
      for (const name in kind) values[name] = read(kind[name]!);
      return values;
    }
    if (kind === Kind.Version) return integer(1, 1, "Version");
    if (kind === Kind.Integer) return integer();
    if (kind === Kind.Positive) return integer(1);
    if (kind === Kind.GapCause) return integer(1, 2);
    if (kind === Kind.AccountCause) {
      const cause = integer();
      return cause > Cause.Replaced ? Cause.Unknown : cause;
    }
    if (kind === Kind.Flag) return !!integer(0, 1);
    if (kind === Kind.RestData) return read(integer(0, 1) ? Kind.RestBytes : Kind.RestText);
    const value = take(kind < Kind.RestBytes ? integer() : bytes.length - at);
    if ((kind === Kind.Bytes8 && value.length !== 8) || (kind === Kind.Bytes16 && value.length !== 16)) fail("BadValue");
    if (kind !== Kind.Text && kind !== Kind.RestText) return value;
    try {
      return textOf(value);
    } catch {
      fail("BadValue");
    }
  };

  const values = read(fixed);
  // The last number of a GAP is on the wire too.
  if (values.first + values.count > MAX_INTEGER) fail("BadValue");
  const names = Object.keys(optional ?? {});
  for (const seen: number[] = []; at < bytes.length; ) {
    const type = integer();
    const field = take(integer());
    if (seen.includes(type)) fail("RepeatedField");
    if (seen.push(type) > 32) fail("TooManyFields");
    const name = names[type - 1];
    if (name) values[name] = readFields(field, [{ name: optional![name]! }]).name;
  }
  return values;
}

function write(out: number[], kind: Kind | Fields, value: any): void {
  if (typeof kind === "object") for (const name in kind) write(out, kind[name]!, value[name]);
  else if (kind < Kind.Bytes) {
    // Whole, not below 0, not above 2^53-1, in the shortest form.
    const whole = Math.min(Math.max(Math.floor(+value), 0), MAX_INTEGER);
    const form = whole < 64 ? 0 : whole < 16384 ? 1 : whole < 2 ** 30 ? 2 : 3;
    for (let i = (1 << form) - 1, mark = form << 6; i >= 0; i--, mark = 0) out.push((Math.floor(whole / 256 ** i) % 256) | mark);
  } else {
    if (kind === Kind.RestData) out.push(+(typeof value !== "string"));
    const bytes = bytesOf(value);
    if (kind < Kind.RestBytes) write(out, Kind.Integer, bytes.length);
    for (const byte of bytes) out.push(byte);
  }
}
