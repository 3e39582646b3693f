/**
 * The server's directory of sessions: decides to which session a HELLO attaches, and remembers the sessions that ended.
 *
 * The registry keeps the names of live sessions. For a session that ended it keeps a *tombstone*: the session's counts, for
 * a day, in limited number. Every attach, END and expiry is one call.
 *
 * Pure: time and randomness are arguments. Source: `docs/PROTOCOL.md` "Attaching".
 */

import { type Account, type Bytes, type Delay, type Hello, type Refuse, type Resume, Type } from "@mainstay/client/protocol";
import { type Name, nameOf, toHex } from "./names.js";
import { type Attach, type Fenced, type Remains, ServerSession, type SessionConfig, type Token } from "./server-session.js";

export interface RegistryConfig {
  /** The most live sessions, parked ones included. */
  sessions: number;
  /** The most tombstones. The oldest is dropped first. */
  tombstones: number;
  /** The first bytes of every token. */
  name?: Bytes | undefined;
}

/** The answer to a HELLO. */
export type Answer =
  /** The connection is attached to a session. `isNew`: the server calls the handler. */
  | { kind: "attached"; session: ServerSession; isNew: boolean; fenced: Fenced | undefined }
  /** No session changed: the server sends this REFUSE and closes the connection. */
  | { kind: "refused"; refuse: Refuse };

interface Tombstone {
  names: Name[];
  remains: Remains;
  buriedAt: number;
  /**
   * The instance that received the account. It may send again what was not delivered; a copy of that client gets no account.
   */
  reportedTo: string | undefined;
}

const TOMBSTONE_LIFE_MS = 86_400_000;
/** The longest transit time of a HELLO: the client abandons the attempt after it. */
const HELLO_TRANSIT_MS = 10_000;
/** When a client that found no room may ask again: rarely enough to cost little, and spread over time. */
const NO_ROOM: Delay = { earliestMs: 1000, latestMs: 30_000 };
const AT_ONCE: Delay = { earliestMs: 0, latestMs: 0 };
/** The cause of an account on the wire: one of the ends ended the session. */
const ENDED = 2;

/** The sessions of one server by name. */
export class Registry {
  /** Sessions that were made and not buried. The server adds its plain sessions. */
  live = 0;
  private names = new Map<Name, ServerSession | Tombstone>();
  /** In the order in which they were buried. */
  private tombstones = new Set<Tombstone>();
  /** A key that is older than this time may have named a session that the registry does not remember. */
  private remembersSince: number;
  private config: RegistryConfig;
  private sessions: SessionConfig;
  private random: (length: number) => Bytes;

  /** `random` returns cryptographically random bytes. */
  constructor(now: number, config: RegistryConfig, sessions: SessionConfig, random: (length: number) => Bytes) {
    this.remembersSince = now;
    this.config = config;
    this.sessions = sessions;
    this.random = random;
  }

  /** Whether there is room for one more session. */
  get hasRoom(): boolean {
    return this.live < this.config.sessions;
  }

  /** The number of names and tombstones. */
  get size(): { names: number; tombstones: number } {
    return { names: this.names.size, tombstones: this.tombstones.size };
  }

  /**
   * Answers a HELLO. A new session gets the configuration `sessions`. Unknown, wrong and foreign tokens get the same answer: a
   * fresh session.
   */
  handleHello(now: number, connection: number, owner: string, hello: Hello, sessions = this.sessions): Answer {
    this.forgetExpired(now);
    const resumed = hello.resume && this.resume(now, connection, owner, hello, hello.resume);
    return resumed?.answer ?? this.open(now, connection, owner, hello, resumed?.account, sessions);
  }

  /** Whether this HELLO presents the token of a live session. */
  holds(owner: string, { resume }: Hello): boolean {
    return !!resume && this.names.get(nameOf(owner, resume.token)) instanceof ServerSession;
  }

  /** Finds the session that the token names, or the account of a session that ended. */
  private resume(now: number, connection: number, owner: string, hello: Hello, resume: Resume): { answer?: Answer; account?: Account | undefined } {
    const presented = nameOf(owner, resume.token);
    const found = this.find(now, presented);
    if (!found) return {};
    if (!(found instanceof ServerSession)) {
      if (found.remains.ended !== undefined) return { answer: refuseEnded(found.remains, resume.acknowledged) };
      found.reportedTo ??= toHex(hello.instance);
      return { account: found.reportedTo === toHex(hello.instance) ? accountOf(found.remains, resume.acknowledged) : undefined };
    }
    const token = this.newToken(owner);
    const attach = found.attachByToken(now, connection, hello, presented, token, this.fraction);
    if (attach.kind === "not yours") return {};
    return { answer: this.answer(found, false, attach, token, resume.acknowledged) };
  }

  /** Finds the session that the client's key names, or makes a new one under that key. */
  private open(now: number, connection: number, owner: string, hello: Hello, account: Account | undefined, sessions: SessionConfig): Answer {
    const key = nameOf(owner, hello.key);
    const found = this.find(now, key);
    if (found && !(found instanceof ServerSession)) return refused(4411, false, accountOf(found.remains, 0));
    // A client that sent `resume` has written nothing under this key.
    if (!found && !hello.resume && this.mayHaveLived(now, hello.keyAgeMs)) return refused(4411, false);
    // The tombstone keeps the account for a HELLO that gets a session.
    if (!found && !this.hasRoom) return refused(4413, true);
    const session = found ?? new ServerSession(now, sessions, this.random(8), owner, key, hello, account);
    if (!found) {
      this.live++;
      this.names.set(key, session);
    }
    const token = this.newToken(owner);
    return this.answer(session, !found, session.attachByKey(now, connection, hello, token, this.fraction), token, 0);
  }

  private answer(session: ServerSession, isNew: boolean, attach: Attach, token: Token, acknowledged: number): Answer {
    if (attach.kind === "stale") return refused(4410, true);
    if (attach.kind === "ending") return refuseEnded(session.remains, acknowledged);
    if (attach.kind === "not yours") return refused(4411, false, accountOf(session.remains, 0));
    for (const name of attach.dropped) if (name !== undefined) this.names.delete(name);
    this.names.set(token.name, session);
    return { kind: "attached", session, isNew, fenced: attach.fenced };
  }

  /** Buries a session that has ended: its names lead to a tombstone from now on. A second call does nothing. */
  bury(now: number, session: ServerSession): void {
    if (!session.closed || this.names.get(session.key) !== session) return;
    this.forgetExpired(now);
    this.live--;
    if (session.spent !== undefined) this.names.delete(session.spent);
    const { names, remains } = session;
    const tombstone: Tombstone = { names, remains, buriedAt: now, reportedTo: undefined };
    for (const name of names) this.names.set(name, tombstone);
    this.tombstones.add(tombstone);
    while (this.tombstones.size > this.config.tombstones) this.forgetFirst();
  }

  /** Finds a session or a tombstone. A session that has ended and is not buried yet is buried first. */
  private find(now: number, name: Name): ServerSession | Tombstone | undefined {
    const found = this.names.get(name);
    if (found instanceof ServerSession) this.bury(now, found);
    return this.names.get(name);
  }

  /**
   * Whether a key that a client has presented before may have named a session that the registry does not remember. The client
   * counts the key's age without the transit time, so the comparison has a margin.
   */
  private mayHaveLived(now: number, keyAgeMs: number): boolean {
    // One process of a cluster does not see the keys of the others.
    return keyAgeMs > 0 && (!!this.config.name || now - keyAgeMs < this.remembersSince + HELLO_TRANSIT_MS);
  }

  private forgetExpired(now: number): void {
    for (const { buriedAt } of this.tombstones) {
      if (now - buriedAt < TOMBSTONE_LIFE_MS) return;
      this.forgetFirst();
    }
  }

  private forgetFirst(): void {
    const [first] = this.tombstones;
    if (!first) return;
    this.tombstones.delete(first);
    for (const name of first.names) if (this.names.get(name) === first) this.names.delete(name);
    this.remembersSince = Math.max(this.remembersSince, first.buriedAt);
  }

  private newToken(owner: string): Token {
    const secret = this.random(24);
    secret.set(this.config.name ?? []);
    return { secret, name: nameOf(owner, secret) };
  }

  /** Returns a number that is uniform in [0, 1), for purposes other than secrets. */
  private fraction = (): number => {
    return this.random(4).reduce((sum, byte) => (sum + byte) / 256, 0);
  };
}

/** Returns the REFUSE with a code of `docs/PROTOCOL.md` "Closing". */
export function refuse(code: number, temporary: boolean, account?: Account): Refuse {
  return { type: Type.Refuse, code, temporary, delay: code === 4413 ? NO_ROOM : AT_ONCE, account };
}

function refused(code: number, temporary: boolean, account?: Account): Answer {
  return { kind: "refused", refuse: refuse(code, temporary, account) };
}

function refuseEnded(remains: Remains, acknowledged: number): Answer {
  return refused(remains.ended ?? 4500, false, accountOf(remains, acknowledged));
}

/** Returns the account of a session. `byClient`: the number up to which the client acknowledges; it lost the rest. */
function accountOf({ acknowledged, delivered, sent, cause, ended }: Remains, byClient: number): Account {
  return { acknowledged, delivered, firstLost: byClient + 1, count: Math.max(sent - byClient, 0), cause: ended === undefined ? cause : ENDED };
}
