/**
 * What makes a class the `WebSocket` that the platform has: what its constructor and methods refuse and how, its events,
 * and attributes, handlers and constants as Web IDL has them. Where the platform lacks a class for one of these (Node 20
 * has no CloseEvent), the nearest one that it has stands in.
 *
 * Source: WHATWG "WebSockets"; Web IDL; HTML "Event handlers".
 */

import { bytesOf } from "./text.js";
import type { Data } from "./wire.js";

/** The classes of the platform, which may lack any, and which tests replace. */
const platform: { [name: string]: any } = globalThis;

/** The error that `WebSocket` throws, by its name. */
export function refuse(name: "SyntaxError" | "InvalidAccessError", message: string): never {
  const { DOMException } = platform;
  throw DOMException ? new DOMException(message, name) : Object.assign(new Error(message), { name });
}

/** The error of a call without its first argument. */
export const missing = () => new TypeError("an argument is missing");

/** Relative to the page, http as ws. @throws SyntaxError */
export function readUrl(url: string | URL): string {
  let read = "";
  try {
    read = new URL(url, platform.document?.baseURI ?? platform.location?.href).href.replace(/^http/, "ws");
  } catch {}
  if (!/^wss?:[^#]*$/.test(read)) refuse("SyntaxError", `url ${`${url}`.split("?")[0]}: ws: or http:, without a fragment`);
  return read;
}

/** The subprotocols by name; null is none, as libraries pass it. @throws SyntaxError */
export function readProtocols(protocols: any): string[] {
  const names: string[] = [protocols ?? []].flat().map(String);
  names.forEach((name, index) => {
    const isFirst = names.findIndex((other) => other.toLowerCase() === name.toLowerCase()) === index;
    if (!isFirst || !/^[\w!#$%&'*+.^`|~-]+$/.test(name)) refuse("SyntaxError", `protocols: "${name}" is ${isFirst ? "no token" : "repeated"}`);
  });
  return names;
}

/** A close code and reason as they travel. @throws InvalidAccessError, SyntaxError */
export function readFarewell(code: any = 1000, reason: any = ""): [code: number, reason: string] {
  const whole = Math.round(code);
  if (whole !== 1000 && !(whole > 2999 && whole < 5000)) refuse("InvalidAccessError", `close code ${code}: 1000 or 3000-4999`);
  const text = `${reason}`;
  const { length } = bytesOf(text);
  if (length > 123) refuse("SyntaxError", `close reason: ${length} bytes, at most 123`);
  return [whole, text];
}

/** The name of its class, of this window or another. */
const tagOf = (payload: unknown): string => Object.prototype.toString.call(payload);

export const isBlob = (payload: unknown): payload is Blob => /Blob]$|File]$/.test(tagOf(payload));

/** A copy, as what was sent may be changed later. What is neither bytes nor a Blob is made text, as `WebSocket` does it. */
export const dataOf = (payload: any): Data =>
  ArrayBuffer.isView(payload) || /ArrayBuffer]$/.test(tagOf(payload))
    ? new Uint8Array((payload as any).buffer ?? payload, (payload as any).byteOffset, payload.byteLength).slice()
    : `${payload}`;

/** An event of the platform's class for it, with all of these fields; Node prints them too. */
export function eventOf(type: string, fields: any = {}): Event {
  const { data } = fields;
  const Class = platform[type === "close" ? "CloseEvent" : data == null ? "Event" : "MessageEvent"] ?? Event;
  const event = new Class(type, fields);
  for (const name in fields) if (!(name in event)) event[name] = fields[name];
  if (data == null) event[Symbol.for("nodejs.util.inspect.custom")] = () => ({ type, ...fields });
  return event;
}

/** The listener behind every handler. One that is an object and no function is kept and not called. */
function handle(this: any, event: Event): void {
  const handler = this.handlers[event.type];
  if (typeof handler === "function") handler.call(this, event);
}

const define = (target: object, name: string | symbol, member?: PropertyDescriptor) =>
  Object.defineProperty(target, name, { enumerable: true, configurable: true, ...member });

/**
 * Makes of a class and what it extends what Web IDL would: members that can be listed, where their names do not begin with
 * `_` as private ones do, constants, and handlers, each of which is a listener from when it is first set.
 */
export function complete(Class: { prototype: object }, Base: { prototype: object }): void {
  const { prototype } = Class;
  for (const target of [prototype, Base.prototype]) {
    for (const name of Object.getOwnPropertyNames(target)) if (!/^_|^constr/.test(name)) define(target, name);
  }
  define(prototype, Symbol.toStringTag, { value: "WebSocket" });
  ["CONNECTING", "OPEN", "CLOSING", "CLOSED"].forEach((name, value) => {
    for (const target of [Class, prototype]) define(target, name, { value, configurable: false });
  });
  for (const type of ["open", "message", "close", "error"]) {
    define(prototype, `on${type}`, {
      get(this: any) {
        return this.handlers[type] ?? null;
      },
      set(this: any, handler: unknown) {
        const isHandler = Object(handler) === handler;
        this.handlers[type] = isHandler ? handler : null;
        this[isHandler ? "addEventListener" : "removeEventListener"](type, handle);
      },
    });
  }
}
