/** The vectors of `conformance/`, and what stands between their JSON and the tuples of `wire.ts`. */

import { readFileSync } from "node:fs";
import { type Control, type Data, decode, encode, encodeData, type Frame, toHex } from "@mainstay/client/protocol";

export const vectors = (name: string) =>
  JSON.parse(readFileSync(new URL(`../../conformance/vectors/${name}.json`, import.meta.url), "utf8"));

/** The messages by type: names of the fields, in the order of their tuples. */
const FIELDS: { [type: number]: [string, ...string[]] } = {
  ...([
    [""],
    ["HELLO", "version", "window", "key", "key_age_ms", "instance", "attempt", "resume", "credentials", "resume_window_ms", "max_message"],
    ["WELCOME", "id", "token", "epoch", "resumed", "acknowledged", "first", "resume_window_ms", "heartbeat_interval_ms", "window", "account", "resume_at", "max_message"],
    ["ACK", "acknowledged", "window"],
    ["PING", "nonce", "sent", "acknowledged"],
    ["PONG", "nonce", "sent", "acknowledged"],
    ["GOAWAY", "reason", "delay_ms", "close_in_ms", "endpoint"],
    ["GAP", "first", "count", "cause"],
    ["END", "code", "reason", "acknowledged", "delivered"],
    ["AUTH", "credentials"],
    ["AUTH_RESULT", "accepted", "expires_in_ms"],
    ["VOLATILE", "message"],
    ["REFUSE", "code", "temporary", "delay_ms", "account"],
  ] as [string, ...string[]][]),
  128: ["REPLACED", "after", "count"],
};
const RESUME = ["token", "acknowledged", "sent", "first_held"];
const ACCOUNT = ["acknowledged", "delivered", "first_lost", "count", "cause"];
export const CAUSES = ["unknown", "expired", "ended", "evicted", "restarted", "replaced"];
const GAP_CAUSES = ["", "overflow", "coalesced"];
const TEXTS = ["reason", "endpoint", "resume_at"];

export const unhex = (hex: string): Uint8Array<ArrayBuffer> => Uint8Array.from(Buffer.from(hex.replaceAll(" ", ""), "hex"));

export function dataToJson(data: Data): object {
  return typeof data === "string" ? { text: data } : { binary: toHex(data) };
}

export function toJson(frame: Frame): any {
  if (!frame) return { reserved: true };
  const [type, ...values] = frame as [number, ...any[]];
  if (type === 0) return dataToJson(values[0]);
  const [name, ...fields] = FIELDS[type]!;
  if (name === "VOLATILE") return { VOLATILE: dataToJson(values[0]) };
  return { [name]: object(fields, values, name) };
}

function object(fields: string[], values: any[], name: string): object {
  const pairs = fields.map((field, i) => [field, valueToJson(field, values[i], name)] as const);
  return Object.fromEntries(pairs.filter(([field, value]) => value !== undefined && field !== "version"));
}

function valueToJson(field: string, value: any, name: string): unknown {
  if (value === undefined) return undefined;
  if (field === "resume") return object(RESUME, value, "");
  if (field === "account") return object(ACCOUNT, value, "");
  if (field === "cause") return (name === "GAP" ? GAP_CAUSES : CAUSES)[value];
  return value instanceof Uint8Array ? toHex(value as Uint8Array<ArrayBuffer>) : value;
}

export function fromJson(json: any): Frame {
  if (json.reserved) return undefined;
  if ("text" in json || "binary" in json) return [0, dataFromJson(json)];
  const [[name, values]] = Object.entries(json) as [[string, any]];
  const type = Number(Object.keys(FIELDS).find((type) => FIELDS[+type]![0] === name));
  if (name === "VOLATILE") return [type, dataFromJson(values)] as unknown as Frame;
  const tuple = FIELDS[type]!.slice(1).map((field) => (field === "version" ? 1 : valueFromJson(field, values[field], name)));
  while (tuple.at(-1) === undefined) tuple.pop();
  return [type, ...tuple] as unknown as Frame;
}

const dataFromJson = (json: any): Data => ("text" in json ? json.text : unhex(json.binary));

function valueFromJson(field: string, value: any, name: string): unknown {
  if (value === undefined) return undefined;
  if (field === "resume") return RESUME.map((part) => valueFromJson(part, value[part], ""));
  if (field === "account") return ACCOUNT.map((part) => valueFromJson(part, value[part], ""));
  if (field === "cause") return (name === "GAP" ? GAP_CAUSES : CAUSES).indexOf(value);
  return typeof value === "string" && !TEXTS.includes(field) ? unhex(value) : value;
}

/** The WebSocket message that carries this. */
export function onTheWire(frame: Frame): Data {
  if (!frame) throw new Error("reserved types are never sent");
  return frame[0] === 0 ? encodeData(frame[1] as Data) : encode(frame as Control);
}

/** What a WebSocket message is in a transcript. */
export const inTranscript = (message: Data) => toJson(decode(message));
