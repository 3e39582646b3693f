/**
 * A session that outlives a reload: token, positions and unacknowledged messages in `sessionStorage`, from the
 * moment the page goes to the moment it is back.
 *
 * Nothing is stored while the page lives, and what is found is taken out at once. So a duplicated tab, whose
 * `sessionStorage` is a copy, finds nothing and starts a session of its own. If two pages go on from one copy after
 * all, the later attach wins and the other ends with 4409: never in silence.
 *
 * Several sockets to one URL each have a place of their own, by their subprotocols and in the order in which they are
 * made. A page that may not store anything (a sandboxed frame, blocked cookies) has a socket without this.
 */

import type { SessionStore } from "./options.js";
import type { SessionDriver } from "./session-driver.js";
import type { ClientSession } from "./session.js";
import type { Bytes, Data } from "./wire.js";

/** All that another instance goes on from. The token opens the session: a secret. */
type Stored = [token: Bytes, received: number, acknowledged: number, kept: Data[]];

/** Stored in the place of a session that did not fit: something is lost, and that is said. */
const LOST = "lost";

/** The keys of the sockets that live in this page. */
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
    // What comes after the copy was made would be lost with it.
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
  // How much is not known.
  else if (found) session.lose();
}

/** What a new instance needs to go on from here. From now on everything kept counts as written: either may write it. */
function store({ token, isOpen, flow: { outbox, inbox } }: ClientSession): Stored | undefined {
  if (!token || !isOpen) return;
  outbox.written = outbox.last;
  return [token, inbox.acknowledged, outbox.acknowledged, outbox.after(outbox.acknowledged)];
}

/** Goes on from what another instance stored. */
function restore(session: ClientSession, [token, received, acknowledged, kept]: Stored): void {
  const { outbox, inbox } = session.flow;
  session.token = token;
  inbox.received = inbox.delivered = inbox.acknowledged = inbox.acked = received;
  outbox.base = outbox.acknowledged = acknowledged;
  for (const data of kept) outbox.push(data);
  // Their numbers are given: what the new page sends first comes behind them.
  outbox.written = outbox.ready = outbox.last;
  session.isRestored = true;
}

/** Stores it, or removes what is there. False: there is no room, or no leave. */
function put(key: string, value?: string): boolean {
  try {
    if (value === undefined) sessionStorage.removeItem(key);
    else sessionStorage.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}

/** What is stored, where there is leave to look. */
function find(key: string): string | null | undefined {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return;
  }
}

function serialize([token, received, acknowledged, kept]: Stored): string {
  return JSON.stringify([pack(token), received, acknowledged, kept.map(pack)]);
}

function parse(text: string): Stored | undefined {
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
