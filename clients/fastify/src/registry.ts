/**
 * The server's directory: which session a HELLO may have, and what became of those that are gone.
 *
 * It keeps names of live sessions and, for sessions that ended, *tombstones*: what was received, for a day, in
 * bounded number. Attach, END and expiry happen one at a time, each as one call.
 *
 * Pure: time and randomness are arguments. Source: `docs/PROTOCOL.md` "Attaching".
 */

import { type Account, type Bytes, type Delay, type Hello, type Refuse, Type } from "@mainstay/client/protocol";
import { type Name, nameOf, toHex } from "./names.js";
import { type Attach, type Fenced, type Remains, ServerSession, type SessionConfig, type Token } from "./server-session.js";

export interface RegistryConfig {
  /** How many sessions live at a time, parked ones included. */
  sessions: number;
  /** How many tombstones are kept; the oldest go first. */
  tombstones: number;
  /** What every token begins with. */
  name?: Bytes | undefined;
}

/** What a HELLO came to. */
export type Answer =
  /** The connection is bound to a session; `isNew`: its handler is to be called. */
  | { session: ServerSession; isNew: boolean; fenced: Fenced | undefined; refuse?: undefined }
  /** Nothing was taken, no session changed: send this and close. */
  | { refuse: Refuse };

interface Tombstone {
  names: Name[];
  remains: Remains;
  buried: number;
  /** Which instance got the account: it may send again what was not delivered. A copy of it gets none. */
  told: string | undefined;
}

const TOMBSTONE_LIFE = 86_400_000;
/** The longest that a HELLO is on its way: the client gives an attempt up after this. */
const HELLO_TRANSIT = 10_000;
/** So long that asking again costs little, so spread that not everybody asks at once. */
const NO_ROOM: Delay = { earliestMs: 1000, latestMs: 30_000 };
const ENDED = 2;

export class Registry {
  /** Sessions made and not buried; plain ones are counted here by who makes them. */
  live = 0;
  private names = new Map<Name, ServerSession | Tombstone>();
  /** The oldest first. */
  private tombstones = new Set<Tombstone>();
  /** A key older than this may have named a session that is forgotten by now. */
  private remembersSince: number;
  private config: RegistryConfig;
  private sessions: SessionConfig;
  private random: (length: number) => Bytes;

  /** `random` gives bytes of the platform's cryptographic randomness. */
  constructor(now: number, config: RegistryConfig, sessions: SessionConfig, random: (length: number) => Bytes) {
    this.remembersSince = now;
    this.config = config;
    this.sessions = sessions;
    this.random = random;
  }

  get hasRoom(): boolean {
    return this.live < this.config.sessions;
  }

  /** How many names and tombstones are held. */
  get size(): { names: number; tombstones: number } {
    return { names: this.names.size, tombstones: this.tombstones.size };
  }

  /** Answers a HELLO; `sessions` is what a new session is made with. Unknown, wrong and foreign tokens get the same answer: a fresh session. */
  hello(now: number, connection: number, owner: string, hello: Hello, sessions = this.sessions): Answer {
    this.forgetOld(now);
    const resumed = hello.resume && this.resume(now, connection, owner, hello, hello.resume.token);
    return resumed?.answer ?? this.open(now, connection, owner, hello, resumed?.account, sessions);
  }

  /** Whether a session lives that this HELLO presents a token of. */
  holds(owner: string, hello: Hello): boolean {
    return !!hello.resume && this.names.get(nameOf(owner, hello.resume.token)) instanceof ServerSession;
  }

  /** The session that the token names, or what became of it. */
  private resume(now: number, connection: number, owner: string, hello: Hello, secret: Bytes): { answer?: Answer; account?: Account | undefined } {
    const { acknowledged } = hello.resume!;
    const presented = nameOf(owner, secret);
    const found = this.find(now, presented);
    if (!found) return {};
    if (!(found instanceof ServerSession)) {
      if (found.remains.ended !== undefined) return { answer: refuseEnded(found.remains, acknowledged) };
      found.told ??= toHex(hello.instance);
      return { account: found.told === toHex(hello.instance) ? accountOf(found.remains, acknowledged) : undefined };
    }
    const token = this.newToken(owner);
    const attach = found.attachByToken(now, connection, hello, presented, token, this.fraction);
    if (attach.is === "not yours") return {};
    return { answer: this.answer(found, false, attach, token, acknowledged) };
  }

  /** The session that the client's key names, or a new one under that key. */
  private open(now: number, connection: number, owner: string, hello: Hello, account: Account | undefined, sessions: SessionConfig): Answer {
    const key = nameOf(owner, hello.key);
    const found = this.find(now, key);
    if (found && !(found instanceof ServerSession)) return refuse(4411, false, accountOf(found.remains, 0));
    // With `resume` it has written nothing under this key.
    if (!found && !hello.resume && this.mayHaveLived(now, hello.keyAgeMs)) return refuse(4411, false);
    // The account waits for the HELLO that gets a session.
    if (!found && !this.hasRoom) return refuse(4413, true);
    const session = found ?? new ServerSession(now, sessions, this.random(8), owner, key, hello, account);
    if (!found) {
      this.live++;
      this.names.set(key, session);
    }
    const token = this.newToken(owner);
    return this.answer(session, !found, session.attachByKey(now, connection, hello, token, this.fraction), token, 0);
  }

  private answer(session: ServerSession, isNew: boolean, attach: Attach, token: Token, acknowledged: number): Answer {
    if (attach.is === "stale") return refuse(4410, true);
    if (attach.is === "ending") return refuseEnded(session.remains, acknowledged);
    if (attach.is === "not yours") return refuse(4411, false, accountOf(session.remains, 0));
    for (const name of attach.dropped) if (name !== undefined) this.names.delete(name);
    this.names.set(token.name, session);
    return { session, isNew, fenced: attach.fenced };
  }

  /** Buries a session that is over: its names lead to a tombstone from now on. Does nothing else, and nothing twice. */
  bury(now: number, session: ServerSession): void {
    if (!session.over || this.names.get(session.key) !== session) return;
    this.forgetOld(now);
    this.live--;
    if (session.spent !== undefined) this.names.delete(session.spent);
    const { names, remains } = session;
    const tombstone: Tombstone = { names, remains, buried: now, told: undefined };
    for (const name of names) this.names.set(name, tombstone);
    this.tombstones.add(tombstone);
    while (this.tombstones.size > this.config.tombstones) this.forgetFirst();
  }

  /** A session that is over, but not buried yet, is answered from its tombstone. */
  private find(now: number, name: Name): ServerSession | Tombstone | undefined {
    const found = this.names.get(name);
    if (found instanceof ServerSession) this.bury(now, found);
    return this.names.get(name);
  }

  /**
   * Whether a key that a client has presented before may have named a session that is forgotten. Its age is counted
   * by the client and says nothing of the time on the way, so the limit has a margin.
   */
  private mayHaveLived(now: number, keyAge: number): boolean {
    // One process of several does not know the keys of the others.
    return keyAge > 0 && (!!this.config.name || now - keyAge < this.remembersSince + HELLO_TRANSIT);
  }

  private forgetOld(now: number): void {
    for (const { buried } of this.tombstones) {
      if (now - buried < TOMBSTONE_LIFE) return;
      this.forgetFirst();
    }
  }

  private forgetFirst(): void {
    const [first] = this.tombstones;
    if (!first) return;
    this.tombstones.delete(first);
    for (const name of first.names) if (this.names.get(name) === first) this.names.delete(name);
    this.remembersSince = Math.max(this.remembersSince, first.buried);
  }

  private newToken(owner: string): Token {
    const secret = this.random(24);
    secret.set(this.config.name ?? []);
    return { secret, name: nameOf(owner, secret) };
  }

  /** Uniform in [0, 1), for what is no secret. */
  private fraction = (): number => {
    return this.random(4).reduce((sum, byte) => (sum + byte) / 256, 0);
  };
}

/** The REFUSE with a code of the table in `docs/PROTOCOL.md` "Closing". */
export function refuse(code: number, isRetryable: boolean, account?: Account): { refuse: Refuse } {
  return { refuse: { type: Type.Refuse, code, temporary: isRetryable, delay: code === 4413 ? NO_ROOM : { earliestMs: 0, latestMs: 0 }, account } };
}

function refuseEnded(remains: Remains, acknowledged: number): Answer {
  return refuse(remains.ended ?? 4500, false, accountOf(remains, acknowledged));
}

/** `seen`: the number up to which the client acknowledged, so that the messages that it lacks can be counted. */
function accountOf({ acknowledged, delivered, sent, cause, ended }: Remains, seen: number): Account {
  return { acknowledged, delivered, firstLost: seen + 1, count: Math.max(sent - seen, 0), cause: ended === undefined ? cause : ENDED };
}
