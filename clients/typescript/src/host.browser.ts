/** `host.ts` for browsers, which have every class, randomness, and connections that end and count bytes as the standard demands. */

const platform: { [name: string]: any } = globalThis;

export const enum On {
  Browser = 1,
}

export function refuse(message: string, name = "SyntaxError"): never {
  throw new DOMException(message, name);
}

/** An application that tests its bundle for browsers in Node may have no CloseEvent. */
export const makeEvent = (name: string, type: string, fields: any): any => new (platform[name] ?? Event)(type, fields);

/** Browsers always have the class. */
export function needClass(_found: unknown): void {}

export function cutSoon(_connection: unknown): void {}
