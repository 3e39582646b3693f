/**
 * A session that outlives a reload: the resume token, positions and unacknowledged messages are in `sessionStorage` from the moment
 * the page goes to the moment it is back.
 *
 * The store is empty while the page lives: the page removes an entry as soon as it reads it. So a duplicated tab, whose
 * `sessionStorage` is a copy, finds no entry and starts a session of its own. If two pages go on from one copy all the same, the later
 * attach wins and the other page ends with 4409: never in silence.
 *
 * Several sockets to one URL have one entry each, by their subprotocols and in the order in which the page makes them. A page that
 * may not store anything (a sandboxed frame, blocked cookies) has a socket without this.
 */

import type { SessionStore } from "./options.js";
import type { SessionDriver } from "./session-driver.js";
import type { ClientSession } from "./session.js";
import type { Bytes, Data } from "./wire.js";

/** The state from which another instance goes on. The token opens the session: it is a secret. */
interface Stored {
  token: Bytes;
  /** The number up to which messages were received and acknowledged. */
  received: number;
  acknowledged: number;
  kept: Data[];
}

/** Stored in place of a session that did not fit: messages are lost, and the next page reports it. */
const LOST = "lost";

/** The keys of the live sockets of this page. */
const used = new Set<string>();

/**
 * For the option `persist`: keeps the session in the tab's `sessionStorage` while the page is away.
 *
 * `key` names it there, for a page that makes its sockets to one URL in another order each time. Default: the URL without
 * its query.
 */
export const sessionStorageStore =
  ({ key }: { key?: string } = {}): SessionStore =>
  (driver, protocols) => persist(driver, protocols, key);

function persist(driver: SessionDriver, protocols: unknown, name?: string): void {
  const { session, url } = driver;
  const { document } = globalThis;
  if (!url && !name) throw new TypeError("sessionStorageStore needs a key where the URL is a function: sessionStorageStore({ key })");
  let key = `mainstay ${name ?? url.split("?")[0]}`;
  if (typeof protocols !== "function" && `${protocols}`) key += ` ${protocols}`;
  while (used.has(key)) key += " +";
  const free = () => used.delete(key);
  driver.target.addEventListener("close", free);

  const leave = () => {
    // A message received after the copy was made would be lost with it.
    const stored = store(session);
    if (stored && !put(key, serialize(stored))) put(key, LOST);
    driver.hide();
    free();
  };
  const enter = () => {
    put(key);
    used.add(key);
  };
  driver.listen(document, "freeze", "lifecycle", leave);
  driver.listen(globalThis, "pagehide", "lifecycle", leave);
  driver.listen(document, "resume", "lifecycle", enter);
  driver.listen(globalThis, "pageshow", "lifecycle", ({ persisted }) => persisted && enter());

  const found = find(key);
  enter();
  const stored = found && found !== LOST ? parse(found) : undefined;
  if (stored) restore(session, stored);
  // The number of lost messages is not known.
  else if (found) session.lose();
}

/** Returns the state from which a new instance goes on. From now on every kept message counts as written: either instance may write it. */
function store({ token, isOpen, flow: { outbox, inbox } }: ClientSession): Stored | undefined {
  if (!token || !isOpen) return;
  outbox.written = outbox.last;
  return { token, received: inbox.acknowledged, acknowledged: outbox.acknowledged, kept: outbox.after(outbox.acknowledged) };
}

/** Goes on from the state of another instance. */
function restore(session: ClientSession, { token, received, acknowledged, kept }: Stored): void {
  const { outbox, inbox } = session.flow;
  session.token = token;
  inbox.received = inbox.delivered = inbox.acknowledged = inbox.acked = received;
  outbox.base = outbox.acknowledged = acknowledged;
  for (const data of kept) outbox.push(data);
  // Their numbers are fixed: messages that the new page sends come after them.
  outbox.written = outbox.ready = outbox.last;
  session.isRestored = true;
}

/** Stores the value, or removes the entry. Returns false if there is no room, or no permission. */
function put(key: string, value?: string): boolean {
  try {
    if (value === undefined) sessionStorage.removeItem(key);
    else sessionStorage.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}

/** Returns the entry, if the page may read it. */
function find(key: string): string | null | undefined {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return;
  }
}

/** A list, as names differ between builds. */
function serialize({ token, received, acknowledged, kept }: Stored): string {
  return JSON.stringify([pack(token), received, acknowledged, kept.map(pack)]);
}

function parse(text: string): Stored | undefined {
  try {
    const [token, received, acknowledged, kept] = JSON.parse(text);
    return { token: unpack(token) as Bytes, received, acknowledged, kept: kept.map(unpack) };
  } catch {
    return;
  }
}

const pack = (data: Data) =>
  typeof data === "string" ? data : [btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""))];
const unpack = (data: string | [string]): Data =>
  typeof data === "string" ? data : Uint8Array.from(atob(data[0]), (char) => char.charCodeAt(0));
