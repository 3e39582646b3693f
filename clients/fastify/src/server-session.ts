/**
 * The server's end of one session.
 *
 * A session is *attached* (bound to a connection) or *parked* (waiting for its client to come back). Messages go in
 * and out all the same; while parked they are kept. An attach bumps the epoch and fences the connection before it:
 * from then on nothing that the old one still brings is looked at. `registry.ts` decides which session a HELLO
 * belongs to; this machine decides whether that HELLO may have it.
 *
 * Pure: time and randomness are arguments. Source: `docs/PROTOCOL.md` "Attaching", "Closing".
 */

import {
  type Account,
  type Bytes,
  type Control,
  type Data,
  type Delay,
  type Delivery,
  encode,
  Flow,
  type Frame,
  type Hello,
  Inbox,
  type Lane,
  Outbox,
  ProtocolError,
  Type,
  type Welcome,
  type Window,
} from "@mainstay/client/protocol";
import { type Action, Heartbeat } from "./heartbeat.js";
import { type Name, toHex } from "./names.js";
import { DroppingFlow } from "./outbox.js";
import { sizeOf } from "./queue.js";
import { Volatiles } from "./volatiles.js";

/** What all sessions of a server share. Times are milliseconds. */
export interface SessionConfig {
  /** The time between two probes. */
  heartbeat: number;
  /** How long a parked session is kept, unless its client asks for less. */
  resumeWindow: number;
  /** What is kept for a client until it acknowledges. */
  keep: Window;
  /** What a client may send above what the application has taken. */
  accept: Window;
  /** A full buffer drops the oldest message that was never written, instead of refusing the new one. */
  dropOldest: boolean;
  /** The largest message that a client may send, in payload bytes, as it is told. */
  maxMessage?: number;
}

/** What is to be done to a connection: a message, an RFC 6455 Ping, a Close, or an end without one. */
export type Output = Data | { ping: number } | { code: number; reason: string } | { abort: true };

/** Why a session is over. `code` is that of END, as far as one passed. */
export interface Over {
  why: "ended" | "expired" | "evicted" | "lost";
  code: number;
  reason: string;
  byUs: boolean;
}

type Life =
  | { is: "parked"; since: number }
  | { is: "attached" }
  /** Ended by us: END leaves once everything before it is acknowledged, and at the latest `until` then. */
  /** `until`: when END goes out whatever is acknowledged, or parked, when it is over; never later than `by`. */
  | { is: "closing"; code: number; reason: string; until: number; by: number }
  /** END is written; only the client's END is awaited, and not for ever. */
  | { is: "end sent"; code: number; reason: string; until: number }
  /** The client's END came; what was taken before it is still being handed over. */
  | { is: "end received"; code: number; reason: string }
  | { is: "over"; over: Over };

/** The connection that a session is bound to. */
interface Attached {
  connection: number;
  lane: Lane;
  welcome: Welcome | undefined;
  heartbeat: Heartbeat;
  /** What is still to be written of the newest probe; one that waits gives way to it. The RFC Ping goes first. */
  probe: { nonce: number; hasPinged: boolean } | undefined;
  /** What goes out before any message, in order. */
  queue: Output[];
  volatiles: Volatiles;
  /** New credentials, until AUTH_RESULT. */
  auth: Bytes | "judging" | { accepted: boolean } | undefined;
}

/** What an attempt to attach came to. */
export type Attach =
  | { is: "done"; fenced: Fenced | undefined; dropped: (Name | undefined)[] }
  /** A later attempt of the same instance holds it already. */
  | { is: "stale" }
  /** The name is only a name by now, or another instance's; or the counts are those of another copy of this client. */
  | { is: "not yours" }
  /** END was sent: nobody attaches to this session again. */
  | { is: "ending" };

/** A connection that lost its session to a later attach: close it with 4409 and this reason, best effort. */
export interface Fenced {
  connection: number;
  reason: string;
}

/** What a dead session leaves behind. `ended`: the code of an END that we sent. */
export interface Remains {
  acknowledged: number;
  delivered: number;
  sent: number;
  cause: number;
  ended: number | undefined;
}

/** A new secret, and what it is found by. */
export interface Token {
  secret: Bytes;
  name: Name;
}

/** An END that nobody answers is waited for this long. */
export const CLOSE_TIMEOUT = 10_000;
/** A client that acknowledges nothing of what precedes END has this long. */
const LAST_WORDS = 5000;
const VOLATILES: Window = { messages: 64, bytes: 262_144 };
const CAUSES = { expired: 1, ended: 2, evicted: 3, lost: 0 };

export class ServerSession {
  epoch = 0;
  readonly id: Bytes;
  /** Whose it is: what their secrets are named with. */
  readonly owner: string;
  /** Where the client's key leads; a secret until the first epoch is confirmed, then only a name. */
  readonly key: Name;
  /** A token that is valid no longer but still stands in the registry, until the next attach. */
  spent: Name | undefined;
  readonly flow: Flow;
  /** The largest message that the client takes, as its newest HELLO says. */
  limit = Infinity;
  /** The token that was presented to attach, valid until the epoch is confirmed. */
  private presented: Name | undefined;
  /** The token issued with the newest WELCOME. */
  private issued: Name | undefined;
  private resumeWindow: number;
  private isConfirmed = false;
  private instance: string;
  private attempt = 0;
  /** The fate of the session that this one replaces; rides in WELCOME until the epoch is confirmed. */
  private account: Account | undefined;
  private life: Life;
  private attached: Attached | undefined;
  /** What came outside the stream and waits for the application. */
  private volatiles = new Volatiles(VOLATILES);
  private config: SessionConfig;

  constructor(now: number, config: SessionConfig, id: Bytes, owner: string, key: Name, hello: Hello, account: Account | undefined) {
    this.config = config;
    this.id = id;
    this.owner = owner;
    this.key = key;
    this.instance = toHex(hello.instance);
    this.account = account;
    this.resumeWindow = config.resumeWindow;
    this.life = { is: "parked", since: now };
    const inbox = new Inbox(config.accept);
    this.flow = config.dropOldest ? new DroppingFlow(config.keep, inbox) : new Flow(new Outbox(config.keep), inbox);
  }

  // ---- attaching --------------------------------------------------------------------------------

  /** A HELLO without `resume`, or whose token led nowhere: it names this session by its key. */
  attachByKey(now: number, connection: number, hello: Hello, token: Token, random: () => number): Attach {
    const refusal = this.refusal(hello);
    if (refusal) return refusal;
    if (this.isConfirmed || toHex(hello.instance) !== this.instance) return { is: "not yours" };
    // A client that sent `resume` has written nothing and starts where WELCOME says; one that did not is already
    // writing from 1.
    const lane = { wrote: 0, read: hello.resume ? this.flow.inbox.acknowledged : 0 };
    return this.takeOver(now, connection, hello, lane, undefined, token, random);
  }

  /** A HELLO that presents a token of this session. */
  attachByToken(now: number, connection: number, hello: Hello, presented: Name, token: Token, random: () => number): Attach {
    const { outbox, inbox } = this.flow;
    const { resume } = hello;
    if (!resume || (presented !== this.presented && presented !== this.issued)) return { is: "not yours" };
    const refusal = this.refusal(hello);
    if (refusal) return refusal;
    const { acknowledged, sent, firstHeld } = resume;
    const isPossible =
      acknowledged <= outbox.written && acknowledged >= outbox.acknowledged && sent >= inbox.received && firstHeld <= inbox.acknowledged + 1;
    if (!isPossible) return { is: "not yours" };
    outbox.acknowledge(acknowledged);
    return this.takeOver(now, connection, hello, { wrote: acknowledged, read: inbox.acknowledged }, presented, token, random);
  }

  private refusal(hello: Hello): Attach | undefined {
    const { life } = this;
    if (life.is === "end sent" || life.is === "end received") return { is: "ending" };
    if (life.is === "over") return { is: "not yours" };
    return toHex(hello.instance) === this.instance && hello.attempt <= this.attempt ? { is: "stale" } : undefined;
  }

  /** The one step in which a session changes hands: fence first, then look at our own `acknowledged`. */
  private takeOver(now: number, connection: number, hello: Hello, lane: Lane, presented: Name | undefined, token: Token, random: () => number): Attach {
    const { flow, config, attached, life } = this;
    this.instance = toHex(hello.instance);
    this.attempt = hello.attempt;
    const fenced = attached && { connection: attached.connection, reason: `${this.instance} ${flow.inbox.acknowledged}` };
    flow.pong = undefined;
    this.epoch++;
    this.isConfirmed = false;
    // Of the two that were valid, only the one that was presented stays so.
    const other = [this.presented, this.issued].find((name) => name !== undefined && name !== presented);
    const dropped = [this.spent, other];
    this.spent = undefined;
    this.presented = presented;
    this.issued = token.name;
    flow.outbox.peer = hello.window;
    this.limit = hello.maxMessage ?? Infinity;
    flow.outbox.trim(lane.wrote);
    this.resumeWindow = Math.min(hello.resumeWindowMs ?? Infinity, config.resumeWindow);
    this.attached = {
      connection,
      lane,
      welcome: {
        type: Type.Welcome,
        id: this.id,
        token: token.secret,
        epoch: this.epoch,
        resumed: presented !== undefined,
        acknowledged: flow.inbox.ack(),
        first: lane.wrote + 1,
        resumeWindowMs: this.resumeWindow,
        heartbeatIntervalMs: config.heartbeat,
        window: flow.inbox.window,
        account: this.account,
        maxMessage: config.maxMessage,
      },
      heartbeat: new Heartbeat(now, config.heartbeat, random),
      probe: undefined,
      queue: [],
      volatiles: new Volatiles(VOLATILES),
      auth: undefined,
    };
    this.life = life.is === "closing" ? { ...life, until: Math.min(now + LAST_WORDS, life.by) } : { is: "attached" };
    this.queueEndIfDue(now);
    return { is: "done", fenced, dropped };
  }

  /** The client's first control message after WELCOME: the token it presented is spent. */
  private confirmEpoch(): void {
    this.isConfirmed = true;
    this.spent = this.presented;
    this.presented = undefined;
    this.account = undefined;
  }

  /** The names under which this session may be attached now, its key included. */
  get names(): Name[] {
    return [this.key, this.presented, this.issued].filter((name) => name !== undefined);
  }

  // ---- what connections bring -------------------------------------------------------------------

  /**
   * Takes what a connection brought; from a fenced one it is dropped. `length`: the bytes of a message of the application.
   * @throws {@link ProtocolError}: fail this connection with 4400. The session is kept, unless the error is fatal.
   */
  receive(now: number, connection: number, frame: Frame, length?: number): void {
    const { attached, flow } = this;
    if (attached?.connection !== connection) return;
    attached.heartbeat.bytes(now);
    // A type that ends ignore which do not know it stays ignored where it means nothing.
    if (!frame || frame.type === Type.Replaced) return;
    if (frame.type === Type.Data) {
      // After our close, or an END, nothing is handed over any more, but the position moves.
      if (!this.isOpen) attached.lane.read++;
      else flow.readData(attached.lane, frame.data, length);
      return;
    }
    if (!this.isConfirmed) this.confirmEpoch();
    const { acknowledged } = flow.outbox;
    try {
      this.receiveControl(now, attached, frame);
    } catch (error) {
      if (error instanceof ProtocolError && error.isFatal) this.endNow(now, 4400, "positions differ");
      throw error;
    }
    const { life } = this;
    // One that goes on acknowledging has more time.
    if (life.is === "closing" && flow.outbox.acknowledged > acknowledged) life.until = Math.min(now + LAST_WORDS, life.by);
    this.trim();
    this.queueEndIfDue(now);
  }

  private receiveControl(now: number, attached: Attached, frame: Control): void {
    const { flow } = this;
    switch (frame.type) {
      case Type.Ack:
        flow.outbox.acknowledge(frame.acknowledged);
        flow.outbox.peer = frame.window ?? flow.outbox.peer;
        return;
      case Type.Pong:
        attached.heartbeat.pong(now, frame.nonce);
        return flow.readBeat(attached.lane, frame);
      case Type.Ping:
        return flow.readBeat(attached.lane, frame);
      case Type.Gap:
        return flow.readGap(attached.lane, frame.first, frame.count);
      case Type.Volatile:
        return this.volatiles.push(frame.data);
      case Type.End:
        this.receiveEnd(frame.code, frame.reason);
        return flow.outbox.acknowledge(frame.acknowledged);
      case Type.Auth:
        if (attached.auth) throw new ProtocolError("AUTH before AUTH_RESULT");
        attached.auth = frame.credentials;
        return;
      default:
        throw new ProtocolError(`message type ${frame.type} is not allowed here`);
    }
  }

  private receiveEnd(code: number, reason: string): void {
    const { life } = this;
    if (life.is === "end sent") this.finish({ why: "ended", code: life.code, reason: life.reason, byUs: true });
    else if (life.is !== "over") {
      this.life = { is: "end received", code, reason };
      this.answerEndIfHanded();
    }
  }

  /** Any bytes arrived on the attached connection, for example an RFC 6455 Pong. */
  bytes(now: number, connection: number): void {
    if (this.attached?.connection === connection) this.attached.heartbeat.bytes(now);
  }

  /** An RFC 6455 Pong: bytes, and no more. Only the PONG answers a probe. */
  pong(now: number, connection: number, _nonce: number): void {
    this.bytes(now, connection);
  }

  /** Everything given out so far has left the process: probes count from here. */
  flushed(now: number, connection: number): void {
    const { attached } = this;
    // A probe that was not even given out has not left.
    if (attached?.connection === connection && !attached.probe) attached.heartbeat.flushed(now);
  }

  /** The socket took some of what was given out, but not all. */
  progress(now: number, connection: number): void {
    if (this.attached?.connection === connection) this.attached.heartbeat.progress(now);
  }

  /** The connection is gone, however that came about. The session parks. */
  lost(now: number, connection: number): void {
    const { attached, life } = this;
    if (attached?.connection !== connection) return;
    this.attached = undefined;
    this.flow.pong = undefined;
    this.flow.outbox.trim(Infinity);
    if (life.is === "attached") this.life = { is: "parked", since: now };
    else if (life.is === "closing") life.until = Math.min(now + Math.max(this.resumeWindow, CLOSE_TIMEOUT), life.by);
    // Our END may or may not have arrived; the tombstone tells a client that asks.
    else if (life.is === "end sent") this.finish({ why: "ended", code: life.code, reason: life.reason, byUs: true });
    else if (life.is === "end received") this.finish({ why: "ended", code: life.code, reason: life.reason, byUs: false });
  }

  // ---- what the application does ----------------------------------------------------------------

  /** Accepts a message for the client and keeps it until acknowledged. False: no room, or it is ending. */
  send(data: Data): boolean {
    return this.isOpen && this.flow.outbox.push(data, false, sizeOf(data)) > 0;
  }

  /** Writes a message that is not numbered, kept or replayed. Dropped while nobody is attached. */
  sendVolatile(data: Data): void {
    this.attached?.volatiles.push(data);
  }

  /** The next message or gap for the application, in order. Handed over means received. */
  handOver(now: number): Delivery | undefined {
    if (!this.handsOver) return;
    const delivery = this.flow.inbox.deliver(now);
    this.answerEndIfHanded();
    return delivery;
  }

  /** The next message from outside the stream. */
  handOverVolatile(): Data | undefined {
    return this.handsOver ? this.volatiles.shift() : undefined;
  }

  /** The session is open, or its client ended it and what came before waits. The end that closes hands over nothing more. */
  get handsOver(): boolean {
    return this.isOpen || this.life.is === "end received";
  }

  /** Credentials that the client sent for the live session, once each; {@link verdict} takes what was said of them. */
  takeAuth(): { connection: number; credentials: Bytes } | undefined {
    const { attached } = this;
    if (!(attached?.auth instanceof Uint8Array)) return;
    const credentials = attached.auth;
    attached.auth = "judging";
    return { connection: attached.connection, credentials };
  }

  /** Who the credentials prove that the client is; undefined: they were refused. So is another owner. The session goes on. */
  verdict(connection: number, owner: string | undefined): void {
    const { attached } = this;
    // A verdict that comes after its connection was lost tells nobody: the next HELLO has credentials.
    if (attached?.connection !== connection || attached.auth !== "judging") return;
    // Another AUTH is too early until this is written, or results would pile up for a client that reads nothing.
    attached.auth = { accepted: owner === this.owner };
  }

  /**
   * Ends the session in order: what was accepted before is delivered first, then END. Nothing more is handed over. A client
   * that acknowledges nothing for 5 s, or not everything within the resume window (10 s at least), gets END without:
   * nobody can put off its end.
   */
  close(now: number, code: number, reason: string): void {
    const { life, resumeWindow } = this;
    if (life.is === "parked") {
      // It has the resume window to come back, and then time to take what waits.
      const until = life.since + resumeWindow;
      this.life = { is: "closing", code, reason, until, by: until + CLOSE_TIMEOUT };
    } else if (life.is === "attached") {
      this.life = { is: "closing", code, reason, until: now + LAST_WORDS, by: now + Math.max(resumeWindow, CLOSE_TIMEOUT) };
    } else return;
    this.flow.inbox.queue = [];
    this.volatiles.clear();
    this.queueEndIfDue(now);
  }

  /** Asks the client to leave this connection after a delay; nothing is lost. */
  goAway(reason: string, delay: Delay, closeIn: number): void {
    this.attached?.queue.push(encode({ type: Type.GoAway, reason, delay, closeInMs: closeIn }));
  }

  /** Gives the session up without END, as if its resume window had passed. */
  evict(reason: string): void {
    if (this.life.is !== "over") this.finish({ why: "evicted", code: 1006, reason, byUs: true });
  }

  private queueEndIfDue(now: number): void {
    const { life, flow } = this;
    const isFlushed = flow.outbox.acknowledged === flow.outbox.last;
    if (life.is !== "closing" || !this.attached || !(isFlushed || life.until <= now)) return;
    this.endNow(now, life.code, life.reason, isFlushed ? CLOSE_TIMEOUT : LAST_WORDS);
  }

  /** Final: nothing more is written or handed over. The client has so long for its answer. */
  private endNow(now: number, code: number, reason: string, patience = CLOSE_TIMEOUT): void {
    this.flow.inbox.queue = [];
    this.life = { is: "end sent", code, reason, until: now + patience };
    this.queueEnd(code, reason);
  }

  private answerEndIfHanded(): void {
    const { life } = this;
    if (life.is !== "end received" || this.flow.inbox.queue.length) return;
    this.queueEnd(life.code, "");
    this.finish({ why: "ended", code: life.code, reason: life.reason, byUs: false });
  }

  private queueEnd(code: number, reason: string): void {
    const { acknowledged, delivered } = this.flow.inbox;
    this.attached?.queue.push(encode({ type: Type.End, code, reason, acknowledged, delivered }));
  }

  private finish(over: Over): void {
    this.flow.inbox.queue = [];
    this.volatiles.clear();
    this.life = { is: "over", over };
    this.attached?.queue.push(over.why === "ended" ? { code: 1000, reason: "" } : { abort: true });
  }

  // ---- output and time --------------------------------------------------------------------------

  /** The next thing to do to a connection. A fenced one gets nothing. */
  transmit(now: number, connection: number): Output | undefined {
    const { attached, flow } = this;
    if (attached?.connection !== connection) return;
    const { welcome, probe, lane, queue, auth } = attached;
    if (welcome) {
      attached.welcome = undefined;
      return encode(welcome);
    }
    if (probe) {
      // A client that answers only the RFC Ping is alive, if not listening.
      attached.probe = probe.hasPinged ? undefined : { ...probe, hasPinged: true };
      return probe.hasPinged ? flow.writeBeat(Type.Ping, probe.nonce, lane) : { ping: probe.nonce };
    }
    if (typeof auth === "object" && "accepted" in auth) {
      attached.auth = undefined;
      return encode({ type: Type.AuthResult, accepted: auth.accepted, expiresInMs: 0 });
    }
    if (queue.length) return queue.shift();
    if (this.life.is === "end sent" || this.life.is === "over") {
      // A client that still hands over what came before END asks whether anybody is there.
      const { pong } = flow;
      flow.pong = undefined;
      return this.life.is === "end sent" && pong !== undefined ? flow.writeBeat(Type.Pong, pong, lane) : undefined;
    }
    const volatile = attached.volatiles.shift();
    if (volatile !== undefined) return encode({ type: Type.Volatile, data: volatile });
    return flow.writeOwed(now, lane) ?? flow.writeData(lane);
  }

  /** Does what is due. Call it when {@link dueAt} passed, until it returns nothing or `dead`; earlier does nothing. */
  timeout(now: number): Action | undefined {
    if (this.expiresAt <= now) this.finish({ why: "expired", code: 1006, reason: "the resume window passed", byUs: true });
    this.queueEndIfDue(now);
    const { life, attached } = this;
    if (life.is === "end sent" && life.until <= now) {
      this.finish({ why: "ended", code: life.code, reason: life.reason, byUs: true });
      if (attached) {
        attached.probe = undefined;
        attached.queue = [{ abort: true }];
      }
      // Whatever still waits to be written.
      return { is: "dead", evidence: "silent" };
    }
    const action = attached?.heartbeat.timeout(now);
    if (action?.is === "probe") attached!.probe = { nonce: action.nonce, hasPinged: false };
    return action;
  }

  /** When {@link timeout} has something to do, or an acknowledgement is due even if nothing more comes. */
  get dueAt(): number {
    const { life, attached } = this;
    const end = "until" in life ? life.until : this.expiresAt;
    return attached ? Math.min(end, attached.heartbeat.dueAt, this.flow.inbox.ackDueAt) : end;
  }

  private get expiresAt(): number {
    const { life } = this;
    if (life.is === "parked") return life.since + this.resumeWindow;
    return life.is === "closing" && !this.attached ? life.until : Infinity;
  }

  private trim(): void {
    this.flow.outbox.trim(this.attached?.lane.wrote ?? Infinity);
  }

  // ---- facts ------------------------------------------------------------------------------------

  /** Something waits for the application. */
  get hasInput(): boolean {
    return this.flow.inbox.queue.length > 0 || this.volatiles.length > 0;
  }

  /** A probe is not answered: {@link flushed} and {@link progress} matter. */
  get isProbing(): boolean {
    return !!this.attached?.heartbeat.isProbing;
  }

  /** The connection it is bound to; undefined while parked. */
  get connection(): number | undefined {
    return this.attached?.connection;
  }

  /** Set once the session is over. */
  get over(): Over | undefined {
    return this.life.is === "over" ? this.life.over : undefined;
  }

  /** Whether new messages are accepted. */
  get isOpen(): boolean {
    return this.life.is === "parked" || this.life.is === "attached";
  }

  /** Messages handed to the application, and accepted for the client. */
  get traffic(): [received: number, sent: number] {
    return [this.flow.inbox.delivered, this.flow.outbox.last];
  }

  /** Payload bytes that wait, either way. */
  get queueBytes(): number {
    return this.flow.outbox.bytes + this.flow.inbox.openBytes;
  }

  /** The smoothed round-trip time of the current connection's heartbeats. */
  get rtt(): number | undefined {
    return this.attached?.heartbeat.rtt;
  }

  get remains(): Remains {
    const { life, flow } = this;
    const { acknowledged, delivered } = flow.inbox;
    const remains = { acknowledged, delivered, sent: flow.outbox.last, cause: 0, ended: undefined };
    if (life.is === "end sent") return { ...remains, cause: CAUSES.ended, ended: life.code };
    if (life.is !== "over") return remains;
    const { why, byUs, code } = life.over;
    return { ...remains, cause: CAUSES[why], ended: why === "ended" && byUs ? code : undefined };
  }
}
