/** `host.ts` for browsers, which have every class, randomness, and connections that end and count as the standard says. */

const platform: { [name: string]: any } = globalThis;

export const enum On {
  Browser = 1,
}

export function refuse(message: string, name = "SyntaxError"): never {
  throw new DOMException(message, name);
}

/** Those who test in Node what they bundle for browsers may be without a CloseEvent. */
export const makeEvent = (name: string, type: string, fields: any): any => new (platform[name] ?? Event)(type, fields);

/** Nothing is asked of a class that is always there. */
export function needClass(_found: unknown): void {}

export function cutSoon(_connection: unknown, _isLeft: boolean): void {}
