/**
 * One message to many sessions. It is copied and framed once, whatever its type. The sender decides what happens to a session
 * that has no room for the message, because a message that is left out in silence makes a hole in that session's stream.
 */

import { MessageTooLargeError } from "@mainstay/client/protocol";
import { shareFrame } from "./frame.js";
import { dataOf, driverOf, type Sendable, type Session } from "./session.js";

/** Which sessions receive a message, and what happens to a session that has no room for it. */
export interface SendOptions {
  /** Sessions that do not receive the message: usually the one that it came from. @default none */
  except?: Session | Iterable<Session> | undefined;
  /** Selects the sessions that receive the message. @default all */
  where?: ((session: Session) => boolean) | undefined;
  /**
   * What happens to a member whose `keep` is full, because its client is away or slow. `"disconnect"` ends its session: a
   * client of `mainstay.v1` comes back to a new session and learns from one gap exactly what it missed, and a plain client is
   * closed with 1013. `"skip"` leaves the message out without a report to that client, for messages that are soon replaced by
   * newer ones. With the option `dropOldest` no member is ever full: its oldest message is dropped, and the client receives a
   * gap.
   * @default "disconnect"
   */
  slow?: "disconnect" | "skip" | undefined;
}

/** How many members a message was accepted for, and what happened to the others. */
export interface Sent {
  /** Sessions that accepted the message. */
  sent: number;
  /** Sessions that were skipped: their `keep` is full, or the message is larger than their client accepts. */
  skipped: number;
  /** Sessions that were ended because their `keep` is full. */
  disconnected: number;
}

/** Several sessions as one target of messages. */
export interface Audience {
  /** The sessions that are members now, each once. */
  readonly sessions: ReadonlySet<Session>;
  /** Sends a message to each session, without waiting. */
  send(data: Sendable, options?: SendOptions): Sent;
  /**
   * Sends a message outside the streams: it is lost for a client that is away, and no session is ended. Returns how many
   * clients were there.
   */
  sendVolatile(data: Sendable, options?: Omit<SendOptions, "slow">): number;
}

/** Sends a message to all of these sessions. Copies the data once. */
export function sendTo(sessions: Iterable<Session>, data: Sendable, options: SendOptions = {}): Sent {
  const { slow = "disconnect" } = options;
  if (slow !== "disconnect" && slow !== "skip") throw new TypeError('slow must be "disconnect" or "skip"');
  const message = dataOf(data);
  const size = Buffer.byteLength(message);
  const result: Sent = { sent: 0, skipped: 0, disconnected: 0 };
  const send = (session: Session): keyof Sent | undefined => {
    const member = driverOf(session);
    if (!member.isOpen) return;
    if (size > member.limit) {
      session.request.log.warn({ session: session.id, err: new MessageTooLargeError(size, member.limit) }, "a client did not get a message of its room");
      return "skipped";
    }
    if (member.trySend(message)) return "sent";
    if (slow === "skip") return "skipped";
    member.evictSlow();
    return "disconnected";
  };
  shareFrame(message, () => {
    for (const session of chosen(sessions, options)) {
      const outcome = send(session);
      if (outcome) result[outcome]++;
    }
  });
  return result;
}

/** Sends a message outside the streams to all of these sessions that are attached. Returns how many there were. */
export function sendVolatileTo(sessions: Iterable<Session>, data: Sendable, options: SendOptions = {}): number {
  const message = dataOf(data);
  const size = Buffer.byteLength(message);
  let attached = 0;
  for (const session of chosen(sessions, options)) {
    const member = driverOf(session);
    if (!member.isOpen || session.state !== "attached" || size > member.limit) continue;
    member.sendVolatile(message);
    attached++;
  }
  return attached;
}

/** Returns the chosen sessions as a new list, because sending may make sessions join and leave. */
function chosen(sessions: Iterable<Session>, { except, where }: SendOptions): Session[] {
  const out = except === undefined ? undefined : new Set(Symbol.iterator in except && !("send" in except) ? except : [except as Session]);
  return [...sessions].filter((session) => !out?.has(session) && (!where || where(session)));
}
