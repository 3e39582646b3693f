/**
 * Limits for clients that follow the protocol: connections from one address, parked sessions, sessions without messages,
 * and old connections.
 *
 * No message touches anything here: {@link Lifetimes} compares message counts from time to time.
 */

import { isIPv6 } from "node:net";

/** Returns the network of an address, which counts as one client. A subscriber has a whole /64 of IPv6. */
export function networkOf(address: string): string {
  if (!isIPv6(address)) return address;
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address);
  if (mapped) return mapped[1]!;
  const [front = "", back] = address.replace(/%.*/, "").split("::");
  const groups = front ? front.split(":") : [];
  const missing = back === undefined ? 0 : 8 - groups.length - (back ? back.split(":").length : 0);
  const all = [...groups, ...Array<string>(Math.max(missing, 0)).fill("0"), ...(back ? back.split(":") : [])];
  return `${all.slice(0, 4).map((group) => parseInt(group, 16).toString(16)).join(":")}::/64`;
}

/** Counts the connections of each address. */
export class Addresses {
  private counts = new Map<string, number>();

  /** Counts one connection more. Returns how many the address has now. */
  enter(address: string): number {
    const count = (this.counts.get(address) ?? 0) + 1;
    this.counts.set(address, count);
    return count;
  }

  /** Counts one connection less. */
  leave(address: string): void {
    const count = this.counts.get(address)! - 1;
    if (count) this.counts.set(address, count);
    else this.counts.delete(address);
  }
}

/** The parked sessions of each address; the one that has been parked for the longest comes first. */
export class Parked<Session> {
  private addresses = new Map<string, Set<Session>>();
  private places = new Map<Session, string>();

  /** Adds a session. Returns the oldest of its address if there are more than `most` now. */
  enter(session: Session, address: string, most: number): Session | undefined {
    const set = this.addresses.get(address) ?? new Set();
    this.addresses.set(address, set.add(session));
    this.places.set(session, address);
    return set.size > most ? set.values().next().value : undefined;
  }

  /** Removes a session, if it is here. */
  leave(session: Session): void {
    const address = this.places.get(session);
    if (address === undefined) return;
    this.places.delete(session);
    const set = this.addresses.get(address)!;
    set.delete(session);
    if (!set.size) this.addresses.delete(address);
  }
}

/** The properties of a session that {@link Lifetimes} reads. */
export interface Aging {
  /** Counts the messages in both directions. */
  readonly messages: number;
  /** Identifies the connection; undefined while the session is parked. */
  readonly connectionId: number | undefined;
}

interface Watched {
  idleTimeoutMs: number;
  maxLifetimeMs: number;
  messages: number;
  activeAt: number;
  connection: number | undefined;
  oldAt: number;
  isReported: boolean;
}

/** What a session exceeded: end an idle one, ask the client of an old connection to move, close the connection if it stays. */
export type Exceeded = "idle" | "old" | "overstayed";

/** How long a client that was asked to move has. Milliseconds. */
export const MOVE_WITHIN_MS = 15_000;

/** Finds sessions that carried no message for too long, and connections that are too old. Pure: time is an argument. */
export class Lifetimes<Session extends Aging> {
  private watched = new Map<Session, Watched>();
  /** How often to call {@link check}: a tenth of the shortest limit, in milliseconds. */
  interval = Infinity;
  private random: () => number;

  constructor(random: () => number) {
    this.random = random;
  }

  /** How many sessions have a limit. */
  get size(): number {
    return this.watched.size;
  }

  /** Watches a session from now on, unless it has no limit. */
  watch(now: number, session: Session, idleTimeoutMs = Infinity, maxLifetimeMs = Infinity): void {
    if (idleTimeoutMs === Infinity && maxLifetimeMs === Infinity) return;
    this.interval = Math.min(this.interval, idleTimeoutMs / 10, maxLifetimeMs / 10);
    const watched = { idleTimeoutMs, maxLifetimeMs, messages: -1, activeAt: now, connection: undefined, oldAt: Infinity, isReported: false };
    this.watched.set(session, watched);
    this.renew(now, session, watched);
  }

  /** Stops watching a session. */
  forget(session: Session): void {
    this.watched.delete(session);
  }

  /** Reports every session that exceeds a limit, once for each limit. */
  check(now: number, report: (session: Session, exceeded: Exceeded) => void): void {
    for (const [session, watched] of this.watched) {
      const exceeded = this.exceededBy(now, session, watched);
      if (exceeded) report(session, exceeded);
    }
  }

  private exceededBy(now: number, session: Session, watched: Watched): Exceeded | undefined {
    if (session.connectionId !== watched.connection) this.renew(now, session, watched);
    if (session.messages !== watched.messages) {
      watched.messages = session.messages;
      watched.activeAt = now;
    }
    if (watched.connection === undefined) return;
    if (now - watched.activeAt >= watched.idleTimeoutMs) {
      watched.idleTimeoutMs = Infinity;
      return "idle";
    }
    if (now < watched.oldAt) return;
    const exceeded = watched.isReported ? "overstayed" : "old";
    watched.oldAt = watched.isReported ? Infinity : now + MOVE_WITHIN_MS;
    watched.isReported = true;
    return exceeded;
  }

  /** Restarts both limits for a new connection. */
  private renew(now: number, session: Session, watched: Watched): void {
    watched.connection = session.connectionId;
    watched.activeAt = now;
    watched.isReported = false;
    watched.oldAt = now + watched.maxLifetimeMs * (0.8 + 0.4 * this.random());
  }
}
