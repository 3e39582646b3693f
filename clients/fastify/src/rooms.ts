/**
 * Rooms: names under which sessions are found together. A session joins and leaves; one that is over has left.
 *
 * A message to many is copied and framed once, whatever it is made of. What becomes of a member that is too far behind to take it
 * is the sender's choice, because a message that is left out in silence would be a hole in that member's stream.
 */

import { type Data, MessageTooLargeError } from "@mainstay/client/protocol";
import { shareFrame } from "./frame.js";
import { dataOf, type Sendable, type Session } from "./session.js";

/** To whom, and what about those that are too far behind. */
export interface SendOptions {
  /** Sessions that get nothing: mostly the session that it came from. */
  except?: Session | Iterable<Session> | undefined;
  /** Which sessions get it; all by default. */
  where?: ((session: Session) => boolean) | undefined;
  /**
   * A member that has no room for the message, as its client is away or slow and `keep` is full. `close` gives its
   * session up: a client of `mainstay.v1` comes back to a new one and is told exactly what it missed, a plain one is
   * closed with 1013. `skip`: it does not get this message and is not told; for what is sent again soon. With the
   * option `dropOldest` no member is ever full: the oldest message goes, and the client is told of the gap.
   * @default "close"
   */
  slow?: "close" | "skip" | undefined;
}

/** How many members a message was accepted for, and what became of the rest. */
export interface Sent {
  sent: number;
  /** Too far behind, or the message is larger than the client takes. */
  skipped: number;
  closed: number;
}

/** Sessions that get a message together. */
export interface Audience {
  /** Those that are there now, each once. */
  readonly sessions: ReadonlySet<Session>;
  /** Sends a message to each, without waiting. */
  send(data: Sendable, options?: SendOptions): Sent;
  /** The same outside the streams: lost for who is away, and nobody is closed. Returns how many were there. */
  sendVolatile(data: Sendable, options?: Omit<SendOptions, "slow">): number;
}

/** What a message to a session comes to. `close` gives the session up. */
export interface Member {
  trySend(data: Data): boolean;
  sendVolatile(data: Data): void;
  readonly isOpen: boolean;
  /** Bytes that its client takes at most. */
  readonly limit: number;
  giveUp(): void;
}

export class Rooms {
  private rooms = new Map<string, Set<Session>>();
  private members = new Map<Session, Set<string>>();

  join(session: Session, name: string): void {
    check(name);
    // It has left, and nobody would take it out again.
    if (session.state === "over") return;
    const room = this.rooms.get(name) ?? new Set();
    this.rooms.set(name, room.add(session));
    const joined = this.members.get(session) ?? new Set();
    this.members.set(session, joined.add(name));
  }

  leave(session: Session, name: string): void {
    const room = this.rooms.get(name);
    if (!room?.delete(session)) return;
    if (!room.size) this.rooms.delete(name);
    const joined = this.members.get(session)!;
    joined.delete(name);
    if (!joined.size) this.members.delete(session);
  }

  leaveAll(session: Session): void {
    for (const name of [...(this.members.get(session) ?? [])]) this.leave(session, name);
  }

  of(session: Session): ReadonlySet<string> {
    return new Set(this.members.get(session));
  }

  get names(): string[] {
    return [...this.rooms.keys()];
  }

  /** The sessions in these rooms, each once. */
  in(names: string[]): ReadonlySet<Session> {
    names.forEach(check);
    const sets = names.map((name) => this.rooms.get(name) ?? []);
    return new Set(sets.flatMap((set) => [...set]));
  }
}

function check(name: unknown): void {
  if (typeof name !== "string" || name === "") throw new TypeError("a room's name is a string that is not empty");
}

/** Sends to all of them. The copy of the data is made once. */
export function sendTo(sessions: Iterable<Session>, memberOf: (session: Session) => Member, data: Sendable, options: SendOptions = {}): Sent {
  const { slow = "close" } = options;
  if (slow !== "close" && slow !== "skip") throw new TypeError('slow must be "close" or "skip"');
  const message = dataOf(data);
  const size = Buffer.byteLength(message);
  const result = { sent: 0, skipped: 0, closed: 0 };
  const send = (session: Session): keyof Sent | undefined => {
    const member = memberOf(session);
    if (!member.isOpen) return;
    if (size > member.limit) {
      session.request.log.warn({ session: session.id, err: new MessageTooLargeError(size, member.limit) }, "a client got no message of its room");
      return "skipped";
    }
    if (member.trySend(message)) return "sent";
    if (slow === "skip") return "skipped";
    member.giveUp();
    return "closed";
  };
  shareFrame(message, () => {
    for (const session of chosen(sessions, options)) {
      const outcome = send(session);
      if (outcome) result[outcome]++;
    }
  });
  return result;
}

export function sendVolatileTo(sessions: Iterable<Session>, memberOf: (session: Session) => Member, data: Sendable, options: SendOptions = {}): number {
  const message = dataOf(data);
  const size = Buffer.byteLength(message);
  let there = 0;
  for (const session of chosen(sessions, options)) {
    const member = memberOf(session);
    if (!member.isOpen || session.state !== "attached" || size > member.limit) continue;
    member.sendVolatile(message);
    there++;
  }
  return there;
}

/** A list of its own: what is sent may make sessions join and leave. */
function chosen(sessions: Iterable<Session>, { except, where }: SendOptions): Session[] {
  const out = except === undefined ? undefined : new Set(Symbol.iterator in except && !("send" in except) ? except : [except as Session]);
  return [...sessions].filter((session) => !out?.has(session) && (!where || where(session)));
}
