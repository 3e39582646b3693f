/**
 * What a platform that is no browser lacks, or has of its own: words for the developer who is without a WebSocket, the class
 * of `ws`, what Node prints of an event. In the bundles for browsers `host.browser.ts` stands in the place of this file.
 */

/** The classes of the platform, which may lack any, and which tests replace. */
const platform: { [name: string]: any } = globalThis;

/**
 * Browsers have randomness, fire `close` after every `error` and no cause with it, and count what was written until the task is
 * over. What only others need is left out of their bundles by this.
 */
export const enum On {
  Browser = 0,
}

/** Throws the error that `WebSocket` throws, by its name. */
export function refuse(message: string, name = "SyntaxError"): never {
  const { DOMException } = platform;
  throw DOMException ? new DOMException(message, name) : Object.assign(new Error(message), { name });
}

/** An event of the platform's class of this name, or of the nearest one that it has: Node 20 has no CloseEvent. Node prints its fields too. */
export function makeEvent(name: string, type: string, fields: any): Event {
  const event = new (platform[name] ?? Event)(type, fields);
  if (name !== "MessageEvent") event[Symbol.for("nodejs.util.inspect.custom")] = () => ({ type, ...fields });
  return event;
}

/** What connections are made of, if it can make any. @throws TypeError */
export function needClass(found: unknown): void {
  if (typeof found !== "function") throw new TypeError('no WebSocket here: pass one as option, { WebSocket }, in Node 20 that of "ws"');
}

/** `ws` would wait half a minute for a peer that is gone, and keep the process for as long. `isLeft`: its closing handshake had begun before. */
export function cutSoon(connection: any, isLeft: boolean): void {
  if (!(connection?.readyState < 3) || !connection.terminate) return;
  const timer: any = setTimeout(() => connection.bufferedAmount || connection.terminate(), isLeft ? 0 : 1000);
  timer["unref"]?.();
  connection.onclose = () => clearTimeout(timer);
}
