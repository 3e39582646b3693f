/**
 * What makes a class the `WebSocket` that the platform has: what its constructor and methods refuse and how, its events,
 * and attributes, handlers and constants as Web IDL has them.
 *
 * Source: WHATWG "WebSockets"; Web IDL; HTML "Event handlers".
 */

import { makeEvent, refuse } from "./host.js";
import { bytesOf } from "./text.js";
import type { Data } from "./wire.js";

/** The error of a call without its first argument. */
export const missing = () => new TypeError("an argument is missing");

/** Relative to the page, http as ws. @throws SyntaxError */
export function readUrl(url: string | URL): string {
  let read = "";
  try {
    read = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href.replace(/^http/, "ws");
  } catch {}
  return /^wss?:[^#]*$/.test(read) ? read : refuse(`url ${`${url}`.split("?")[0]}: ws: or http:, without a fragment`);
}

/** The subprotocols by name; null is none, as libraries pass it. @throws SyntaxError */
export function readProtocols(protocols: any): string[] {
  const names: string[] = [protocols ?? []].flat().map(String);
  const different = new Set(names.map((name) => name.toLowerCase()));
  if (different.size < names.length || names.some((name) => !/^[\w!#$%&'*+.^`|~-]+$/.test(name))) refuse(`protocols "${names}": tokens, each once`);
  return names;
}

/** A close code and reason as they travel. @throws InvalidAccessError, SyntaxError */
export function readFarewell(code: any = 1000, reason: any = ""): [code: number, reason: string] {
  const whole = Math.round(code);
  const text = `${reason}`;
  if (whole !== 1000 && !(whole > 2999 && whole < 5000)) refuse(`close code ${code}: 1000 or 3000-4999`, "InvalidAccessError");
  if (bytesOf(text).length > 123) refuse("close reason: at most 123 bytes");
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

/** An event of the platform's class for it, with all of these fields. */
export function eventOf(type: string, fields: any = {}): Event {
  const event: any = makeEvent(type === "close" ? "CloseEvent" : fields.data == null ? "Event" : "MessageEvent", type, fields);
  for (const name in fields) if (!(name in event)) event[name] = fields[name];
  return event;
}

/** The `on...` attributes of each socket. */
const handlers = new WeakMap<object, { [type: string]: unknown }>();

/** The listener behind every handler. A handler that is an object and no function is kept and not called. */
function handle(this: any, event: Event): void {
  const handler = handlers.get(this)![event.type];
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
        return handlers.get(this)?.[type] ?? null;
      },
      set(this: any, handler: unknown) {
        const isHandler = Object(handler) === handler;
        handlers.set(this, { ...handlers.get(this), [type]: isHandler ? handler : null });
        this[isHandler ? "addEventListener" : "removeEventListener"](type, handle);
      },
    });
  }
}
