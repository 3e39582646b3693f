/** The vectors of `conformance/`, and the conversion between their JSON and the objects of `wire.ts`. */

import { readFileSync } from "node:fs";
import { type Control, type Data, decode, type Delay, encode, encodeData, type Frame, toHex, type Window } from "@mainstay/client/protocol";

export const vectors = (name: string) =>
  JSON.parse(readFileSync(new URL(`../../conformance/vectors/${name}.json`, import.meta.url), "utf8"));

/** The types of control messages by name. */
const TYPES: { [name: string]: number } = {
  HELLO: 1,
  WELCOME: 2,
  ACK: 3,
  PING: 4,
  PONG: 5,
  GOAWAY: 6,
  GAP: 7,
  END: 8,
  AUTH: 9,
  AUTH_RESULT: 10,
  VOLATILE: 11,
  REFUSE: 12,
  REPLACED: 128,
};
export const CAUSES = ["unknown", "expired", "ended", "evicted", "restarted", "replaced"];
const GAP_CAUSES = ["", "overflow", "coalesced"];
/** Fields that are text; every other string in the JSON is bytes in hex. */
const TEXTS = ["reason", "endpoint", "resumeAt"];

export const unhex = (hex: string): Uint8Array<ArrayBuffer> => Uint8Array.from(Buffer.from(hex.replaceAll(" ", ""), "hex"));

export const toDelay = ([earliestMs, latestMs]: [number, number]): Delay => ({ earliestMs, latestMs });
export const fromDelay = ({ earliestMs, latestMs }: Delay): [number, number] => [earliestMs, latestMs];
const toWindow = ([messages, bytes]: [number, number]): Window => ({ messages, bytes });

const toSnake = (name: string) => (name === "delay" ? "delay_ms" : name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
const toCamel = (name: string) => (name === "delay_ms" ? "delay" : name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()));

export function dataToJson(data: Data): object {
  return typeof data === "string" ? { text: data } : { binary: toHex(data) };
}

export function toJson(frame: Frame): any {
  if (!frame) return { reserved: true };
  const { type, ...fields } = frame;
  const name = Object.keys(TYPES).find((name) => TYPES[name] === type);
  if (!name) return dataToJson((frame as { data: Data }).data);
  return { [name]: name === "VOLATILE" ? dataToJson((frame as { data: Data }).data) : objectToJson(fields, name) };
}

function objectToJson(fields: object, name = ""): object {
  const kept = Object.entries(fields).filter(([field, value]) => value !== undefined && field !== "version");
  return Object.fromEntries(kept.map(([field, value]) => [toSnake(field), valueToJson(field, value, name)]));
}

function valueToJson(field: string, value: any, name: string): unknown {
  if (field === "window") return [value.messages, value.bytes];
  if (field === "delay") return fromDelay(value);
  if (field === "resume" || field === "account") return objectToJson(value);
  if (field === "cause") return (name === "GAP" ? GAP_CAUSES : CAUSES)[value];
  return value instanceof Uint8Array ? toHex(value as Uint8Array<ArrayBuffer>) : value;
}

export function fromJson(json: any): Frame {
  if (json.reserved) return undefined;
  if ("text" in json || "binary" in json) return { type: 0, data: dataFromJson(json) };
  const [[name, values]] = Object.entries(json) as [[string, any]];
  const fields = name === "VOLATILE" ? { data: dataFromJson(values) } : objectFromJson(values, name);
  return { type: TYPES[name], ...(name === "HELLO" && { version: 1 }), ...fields } as unknown as Frame;
}

const dataFromJson = (json: any): Data => ("text" in json ? json.text : unhex(json.binary));

function objectFromJson(values: object, name = ""): object {
  return Object.fromEntries(Object.entries(values).map(([field, value]) => [toCamel(field), valueFromJson(toCamel(field), value, name)]));
}

function valueFromJson(field: string, value: any, name: string): unknown {
  if (field === "window") return toWindow(value);
  if (field === "delay") return toDelay(value);
  if (field === "resume" || field === "account") return objectFromJson(value);
  if (field === "cause") return (name === "GAP" ? GAP_CAUSES : CAUSES).indexOf(value);
  return typeof value === "string" && !TEXTS.includes(field) ? unhex(value) : value;
}

/** Returns the WebSocket message that carries this frame. */
export function onTheWire(frame: Frame): Data {
  if (!frame) throw new Error("reserved types are never sent");
  return frame.type ? encode(frame as Control) : encodeData((frame as { data: Data }).data);
}

/** Returns a WebSocket message as a transcript shows it. */
export const inTranscript = (message: Data) => toJson(decode(message));
