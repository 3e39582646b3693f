/**
 * What makes a class a drop-in for the `WebSocket` of the platform: the arguments that its constructor and methods refuse, its
 * events, and attributes, handlers and constants as in Web IDL.
 *
 * Source: WHATWG "WebSockets"; Web IDL; HTML "Event handlers".
 */

import { makeEvent, refuse } from "./host.js";
import { bytesOf } from "./text.js";
import type { Data } from "./wire.js";

/** The error of a call without its first argument. */
export const missing = () => new TypeError("an argument is missing");

/** Returns the absolute URL: relative to the page, and with ws for http. @throws SyntaxError */
export function readUrl(url: string | URL): string {
  let read = "";
  try {
    read = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href.replace(/^http/, "ws");
  } catch {}
  return /^wss?:[^#]*$/.test(read) ? read : refuse(`url ${`${url}`.split("?")[0]}: ws: or http:, without a fragment`);
}

/** Returns the names of the subprotocols. Null means none, as some libraries pass it. @throws SyntaxError */
export function readProtocols(protocols: any): string[] {
  const names: string[] = [protocols ?? []].flat().map(String);
  const different = new Set(names.map((name) => name.toLowerCase()));
  if (different.size < names.length || names.some((name) => !/^[\w!#$%&'*+.^`|~-]+$/.test(name))) refuse(`protocols "${names}": tokens, each once`);
  return names;
}

/** Returns a close code and reason as they are sent. @throws InvalidAccessError, SyntaxError */
export function readFarewell(code: any = 1000, reason: any = ""): [code: number, reason: string] {
  const whole = Math.round(code);
  const text = `${reason}`;
  if (whole !== 1000 && !(whole > 2999 && whole < 5000)) refuse(`close code ${code}: 1000 or 3000-4999`, "InvalidAccessError");
  if (bytesOf(text).length > 123) refuse("close reason: at most 123 bytes");
  return [whole, text];
}

/** The name of the class of a value, which may come from another window. */
const tagOf = (payload: unknown): string => Object.prototype.toString.call(payload);

export const isBlob = (payload: unknown): payload is Blob => /Blob]$|File]$/.test(tagOf(payload));

/** Returns a copy, as the application may change the bytes later. A value that is neither bytes nor a Blob becomes text, as with `WebSocket`. */
export const dataOf = (payload: any): Data =>
  ArrayBuffer.isView(payload) || /ArrayBuffer]$/.test(tagOf(payload))
    ? new Uint8Array((payload as any).buffer ?? payload, (payload as any).byteOffset, payload.byteLength).slice()
    : `${payload}`;

/** Returns an event of the platform's class for this type, with all of these fields. */
export function eventOf(type: string, fields: any = {}): Event {
  const event: any = makeEvent(type === "close" ? "CloseEvent" : fields.data == null ? "Event" : "MessageEvent", type, fields);
  for (const name in fields) if (!(name in event)) event[name] = fields[name];
  return event;
}

const define = (target: object, name: string | symbol, member?: PropertyDescriptor) =>
  Object.defineProperty(target, name, { enumerable: true, configurable: true, ...member });

/**
 * Completes a class and its base as Web IDL demands: enumerable members, constants, and handlers, each of which is a listener from
 * when it is first set.
 */
export function complete(Class: { prototype: object }, Base: { prototype: object }): void {
  const { prototype } = Class;
  for (const target of [prototype, Base.prototype]) {
    for (const name of Object.getOwnPropertyNames(target)) if (name !== "constructor") define(target, name);
  }
  define(prototype, Symbol.toStringTag, { value: "WebSocket" });
  ["CONNECTING", "OPEN", "CLOSING", "CLOSED"].forEach((name, value) => {
    for (const target of [Class, prototype]) define(target, name, { value, configurable: false });
  });
  for (const type of ["open", "message", "close", "error"]) {
    /** The handlers of all sockets. One that is an object and no function is kept and not called. */
    const handlers = new WeakMap<object, unknown>();
    function handle(this: any, event: Event): void {
      const handler = handlers.get(this);
      if (typeof handler === "function") handler.call(this, event);
    }
    define(prototype, `on${type}`, {
      get(this: any) {
        return handlers.get(this) ?? null;
      },
      set(this: any, handler: unknown) {
        const isHandler = Object(handler) === handler;
        handlers.set(this, isHandler ? handler : null);
        this[isHandler ? "addEventListener" : "removeEventListener"](type, handle);
      },
    });
  }
}
