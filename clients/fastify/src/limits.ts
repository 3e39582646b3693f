/**
 * Limits on clients that break no rule: connections of one address, sessions that wait for their clients, sessions
 * without messages, connections that are old.
 *
 * Nothing here is touched per message: {@link Lifetimes} compares counts now and then.
 */

import { isIPv6 } from "node:net";

/** An IPv6 network has a /64 at least, so all of that is one client. */
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

/** How many connections each address has. */
export class Addresses {
  private counts = new Map<string, number>();

  /** Returns how many it has now. */
  enter(address: string): number {
    const count = (this.counts.get(address) ?? 0) + 1;
    this.counts.set(address, count);
    return count;
  }

  leave(address: string): void {
    const count = this.counts.get(address)! - 1;
    if (count) this.counts.set(address, count);
    else this.counts.delete(address);
  }
}

/** Sessions whose clients are away, by address; the longest away first. */
export class Parked<Session> {
  private addresses = new Map<string, Set<Session>>();
  private places = new Map<Session, string>();

  /** Returns the one that gives way, if there are more than `most` now. */
  enter(session: Session, address: string, most: number): Session | undefined {
    const set = this.addresses.get(address) ?? new Set();
    this.addresses.set(address, set.add(session));
    this.places.set(session, address);
    return set.size > most ? set.values().next().value : undefined;
  }

  leave(session: Session): void {
    const address = this.places.get(session);
    if (address === undefined) return;
    this.places.delete(session);
    const set = this.addresses.get(address)!;
    set.delete(session);
    if (!set.size) this.addresses.delete(address);
  }
}

/** What {@link Lifetimes} looks at. */
export interface Aging {
  /** Counts messages, whichever direction. */
  readonly messages: number;
  /** Names the connection; undefined: there is none now. */
  readonly connectionId: number | undefined;
}

interface Watched {
  idleTimeout: number;
  maxLifetime: number;
  messages: number;
  activeAt: number;
  connection: number | undefined;
  oldAt: number;
  isTold: boolean;
}

/** What is to be done: end the session; ask its client to move; close the connection that was asked to move and stayed. */
export type Verdict = "idle" | "old" | "overstayed";

/** A client that was asked to move gets this long. */
export const MOVE_WITHIN = 15_000;

/** Which sessions carried no message for too long, and which connections are too old. Pure: time is an argument. */
export class Lifetimes<Session extends Aging> {
  private watched = new Map<Session, Watched>();
  /** How often to look: a tenth of the shortest limit. */
  interval = Infinity;
  private random: () => number;

  constructor(random: () => number) {
    this.random = random;
  }

  get size(): number {
    return this.watched.size;
  }

  watch(now: number, session: Session, idleTimeout = Infinity, maxLifetime = Infinity): void {
    if (idleTimeout === Infinity && maxLifetime === Infinity) return;
    this.interval = Math.min(this.interval, idleTimeout / 10, maxLifetime / 10);
    const watched = { idleTimeout, maxLifetime, messages: -1, activeAt: now, connection: undefined, oldAt: Infinity, isTold: false };
    this.watched.set(session, watched);
    this.renew(now, session, watched);
  }

  forget(session: Session): void {
    this.watched.delete(session);
  }

  /** Tells of those that are due, each once for one reason. */
  look(now: number, tell: (session: Session, verdict: Verdict) => void): void {
    for (const [session, watched] of this.watched) {
      const verdict = this.judge(now, session, watched);
      if (verdict) tell(session, verdict);
    }
  }

  private judge(now: number, session: Session, watched: Watched): Verdict | undefined {
    if (session.connectionId !== watched.connection) this.renew(now, session, watched);
    if (session.messages !== watched.messages) {
      watched.messages = session.messages;
      watched.activeAt = now;
    }
    if (watched.connection === undefined) return;
    if (now - watched.activeAt >= watched.idleTimeout) {
      watched.idleTimeout = Infinity;
      return "idle";
    }
    if (now < watched.oldAt) return;
    watched.oldAt = watched.isTold ? Infinity : now + MOVE_WITHIN;
    const verdict = watched.isTold ? "overstayed" : "old";
    watched.isTold = true;
    return verdict;
  }

  /** Another connection is young, and whose client is back is not idle. */
  private renew(now: number, session: Session, watched: Watched): void {
    watched.connection = session.connectionId;
    watched.activeAt = now;
    watched.isTold = false;
    watched.oldAt = now + watched.maxLifetime * (0.8 + 0.4 * this.random());
  }
}
