/** `host.ts` for browsers, which have every class. */

const platform: { [name: string]: any } = globalThis;

export const enum On {
  Browser = 1,
}

export function refuse(message: string, name = "SyntaxError"): never {
  throw new DOMException(message, name);
}

export const makeEvent = (name: string, type: string, fields: any): any => new platform[name](type, fields);

/** Nothing is asked of a class that is always there. */
export function needClass(_found: unknown): void {}

export function cutSoon(_connection: unknown, _isLeft: boolean): void {}
