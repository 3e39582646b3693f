/**
 * A session that outlives a reload: token, positions and unacknowledged messages in `sessionStorage`, from the
 * moment the page goes to the moment it is back.
 *
 * Nothing is stored while the page lives, and what is found is taken out at once. So a duplicated tab, whose
 * `sessionStorage` is a copy, finds nothing and starts a session of its own. If two pages go on from one copy after
 * all, the later attach wins and the other ends with 4409: never in silence.
 */

import type { ClientSession, StoredSession } from "./session.js";
import type { Bytes, Data } from "./wire.js";

/** Stored in the place of a session that did not fit: something is lost, and that is said. */
const LOST = "lost";

export function storedIn(key: string, session: ClientSession, storage: Storage = sessionStorage) {
  const put = (value: string | undefined) => {
    try {
      if (value === undefined) storage.removeItem(key);
      else storage.setItem(key, value);
      return true;
    } catch {
      return false;
    }
  };
  return {
    load(): void {
      const found = storage.getItem(key);
      put(undefined);
      const stored = found && found !== LOST ? parse(found) : undefined;
      if (stored) session.restore(stored);
      else if (found) session.reportLoss();
    },
    store(): void {
      const stored = session.store();
      if (stored && !put(serialize(stored))) put(LOST);
    },
    unstore: () => void put(undefined),
  };
}

function serialize([token, received, acknowledged, kept]: StoredSession): string {
  return JSON.stringify([pack(token), received, acknowledged, kept.map(pack)]);
}

function parse(text: string): StoredSession | undefined {
  try {
    const [token, received, acknowledged, kept] = JSON.parse(text);
    return [unpack(token) as Bytes, received, acknowledged, kept.map(unpack)];
  } catch {
    return;
  }
}

const pack = (data: Data) =>
  typeof data === "string" ? data : [btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""))];
const unpack = (data: string | [string]): Data =>
  typeof data === "string" ? data : Uint8Array.from(atob(data[0]), (char) => char.charCodeAt(0));
