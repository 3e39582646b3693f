/**
 * The differences of platforms other than browsers: an error for a developer who has no WebSocket, the class of `ws`, and what Node
 * prints of an event. The bundles for browsers have `host.browser.ts` in place of this file.
 */

/** The classes of the platform. It may lack any of them, and tests replace them. */
const platform: { [name: string]: any } = globalThis;

/**
 * Browsers have randomness, fire `close` after every `error` without a cause, and count written bytes until the task is over. Code
 * that only other platforms need is left out of the bundles for browsers by this.
 */
export const enum On {
  Browser = 0,
}

/** Throws an error of this name, as `WebSocket` does. */
export function refuse(message: string, name = "SyntaxError"): never {
  const { DOMException } = platform;
  throw DOMException ? new DOMException(message, name) : Object.assign(new Error(message), { name });
}

/** Returns an event of the platform's class of this name, or of the nearest that it has: Node 20 has no CloseEvent. Node prints its fields too. */
export function makeEvent(name: string, type: string, fields: any): Event {
  const event = new (platform[name] ?? Event)(type, fields);
  if (name !== "MessageEvent") event[Symbol.for("nodejs.util.inspect.custom")] = () => ({ type, ...fields });
  return event;
}

/** Checks that there is a class of connections. @throws TypeError */
export function needClass(found: unknown): void {
  if (typeof found !== "function") throw new TypeError('no WebSocket here: pass one as option, { WebSocket }, in Node 20 that of "ws"');
}

/** Cuts a connection of `ws` that is about to be closed. It would wait half a minute for a peer that is gone, and keep the process for as long. */
export function cutSoon(connection: any): void {
  if (!(connection?.readyState < 3) || !connection.terminate) return;
  // At once if its closing handshake began earlier.
  const timer: any = setTimeout(() => connection.bufferedAmount || connection.terminate(), connection.readyState === 2 ? 0 : 1000);
  timer["unref"]?.();
  connection.onclose = () => clearTimeout(timer);
}
