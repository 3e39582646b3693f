/**
 * Globals of browsers and Node for platforms that lack them: mini-programs, and React Native in part. `build.mjs` puts these in place
 * of the globals of the same names, in the bundles `wx` and `native` only. They implement what the rest of this package needs, and do
 * not become globals of the application.
 */

const native: { [name: string]: any } = globalThis;

/** A listener, and whether it is for one event only. */
type Entry = [listener: any, once: boolean];

class OwnEvent {
  readonly target: unknown = null;
  defaultPrevented = false;
  readonly timeStamp = Date.now();
  /** No other listener is called. */
  isStopped = false;

  constructor(readonly type: string) {}

  preventDefault(): void {
    this.defaultPrevented = true;
  }

  stopImmediatePropagation(): void {
    this.isStopped = true;
  }
}

class OwnEventTarget {
  private entries: { [type: string]: Entry[] } = {};

  addEventListener(type: string, listener: any, options?: any): void {
    const entries = (this.entries[type] ??= []);
    if (!listener || entries.some(([other]) => other === listener)) return;
    entries.push([listener, !!options?.once]);
    options?.signal?.addEventListener("abort", () => this.removeEventListener(type, listener));
  }

  removeEventListener(type: string, listener: any): void {
    this.entries[type] = (this.entries[type] ?? []).filter(([other]) => other !== listener);
  }

  dispatchEvent(event: any): boolean {
    event.target = event.currentTarget = this;
    for (const entry of this.entries[event.type] ?? []) {
      const [listener, once] = entry;
      if (event.isStopped || !this.entries[event.type]!.includes(entry)) continue;
      if (once) this.removeEventListener(event.type, listener);
      try {
        if (typeof listener === "function") listener.call(this, event);
        else listener.handleEvent(event);
      } catch (error) {
        report(error);
      }
    }
    return !event.defaultPrevented;
  }
}

/** Reports the error of a listener, which ends nothing. */
function report(error: unknown): void {
  setTimeout(() => {
    throw error;
  });
}

/** An absolute URL. React Native has a class of this name that does not implement enough, so this one is always used. */
class OwnURL {
  readonly href: string;
  readonly origin: string;

  constructor(url: unknown) {
    const [, scheme, host, rest] = /^\s*([a-z]+:)\/\/([^/?#\s]+)(\S*)\s*$/i.exec(`${url}`) ?? [];
    if (!host) throw new TypeError(`no absolute URL: ${url}`);
    this.origin = `${scheme}//${host.replace(/^.*@/, "")}`.toLowerCase();
    this.href = `${scheme!.toLowerCase()}//${host.toLowerCase()}${/^\//.test(rest!) ? "" : "/"}${rest}`;
  }
}

class OwnTextEncoder {
  encode(text: string): Uint8Array {
    const bytes: number[] = [];
    for (const char of text) {
      const point = char.codePointAt(0)!;
      // A lone surrogate is U+FFFD.
      const code = point >= 0xd800 && point < 0xe000 ? 0xfffd : point;
      if (code < 0x80) bytes.push(code);
      else if (code < 0x800) bytes.push(0xc0 | (code >> 6), 0x80 | (code & 63));
      else if (code < 0x10000) bytes.push(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
      else bytes.push(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 63), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
    }
    return Uint8Array.from(bytes);
  }
}

/** Refuses bytes that are not UTF-8, as this package needs it. */
class OwnTextDecoder {
  decode(bytes: Uint8Array): string {
    let text = "";
    for (let at = 0; at < bytes.length; ) {
      const first = bytes[at++]!;
      const more = first < 0x80 ? 0 : first < 0xc2 ? -1 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : -1;
      let code = more > 0 ? first & (63 >> more) : first;
      for (let i = 0; i < more; i++) {
        const next = bytes[at++] ?? 0;
        if (next >> 6 !== 2) throw new TypeError("no UTF-8");
        code = (code << 6) | (next & 63);
      }
      const isShorter = code < [0, 0x80, 0x800, 0x10000][more]!;
      if (more < 0 || isShorter || (code >= 0xd800 && code < 0xe000) || code > 0x10ffff) throw new TypeError("no UTF-8");
      text += String.fromCodePoint(code);
    }
    return text;
  }
}

/** Random bytes of a platform whose call for them answers later, for callers that cannot wait. */
export const pool: number[] = [];

/** From the pool, which is cryptographic if the platform is; else only as unguessable as `Math.random`. */
const ownCrypto = {
  getRandomValues: (bytes: Uint8Array) => bytes.map(() => (pool.pop() ?? 0) ^ (Math.random() * 256)),
};

const hasEvents = native.EventTarget && native.Event;
export const EventTarget = hasEvents ? native.EventTarget : OwnEventTarget;
export const Event = hasEvents ? native.Event : OwnEvent;
export const URL = OwnURL;
export const TextEncoder = native.TextEncoder ?? OwnTextEncoder;
export const TextDecoder = native.TextDecoder ?? OwnTextDecoder;
export const queueMicrotask = native.queueMicrotask ?? ((act: () => void) => void Promise.resolve().then(act).catch(report));
export const console = native.console ?? { warn() {} };
export const platformCrypto = native.crypto?.getRandomValues ? native.crypto : ownCrypto;
