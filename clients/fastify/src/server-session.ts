/**
 * The server's end of one session.
 *
 * A session is *attached* to a connection, or *parked* until its client comes back. Messages are accepted and delivered in
 * both states; a parked session keeps the messages for its client. An attach increments the epoch and fences the previous
 * connection: the session ignores everything that the old connection still brings. `registry.ts` decides to which session
 * a HELLO belongs; this machine decides whether that HELLO may attach to it.
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
import type { End } from "./events.js";
import { Heartbeat, type HeartbeatAction } from "./heartbeat.js";
import { type Name, toHex } from "./names.js";
import { DroppingFlow } from "./outbox.js";
import { ByteQueue, sizeOf } from "./queue.js";

/** The configuration of a session. */
export interface SessionConfig {
  /** The time between two probes. */
  heartbeatMs: number;
  /** How long a parked session waits for its client, unless the client asks for less. */
  resumeWindowMs: number;
  /** How much the session keeps for its client until the client acknowledges it. */
  keep: Window;
  /** How much a client may send ahead of what was delivered to the application. */
  accept: Window;
  /** A full outbox drops the oldest message that was never written, instead of refusing the new one. */
  dropOldest: boolean;
  /** The largest message of a client, in payload bytes, as the server announces it. */
  maxMessage?: number;
}

/** What the driver writes or does to a connection: a message, an RFC 6455 Ping, a Close, or an end without a Close. */
export type Output = Data | { kind: "ping"; nonce: number } | { kind: "close"; code: number; reason: string } | { kind: "abort" };

/** How a session ended. `byUs`: this end decided it. */
export interface Closed extends End {
  byUs: boolean;
}

/** The messages of a session: delivered to the application, and accepted for the client. */
export interface Traffic {
  delivered: number;
  accepted: number;
}

type Life =
  | { kind: "parked"; since: number }
  | { kind: "attached" }
  /**
   * We end the session: END follows once the client has acknowledged everything before it. `until`: when END is written
   * anyway, or when a parked session is closed. It moves later with every acknowledgement, but never beyond `by`.
   */
  | { kind: "closing"; code: number; reason: string; until: number; by: number }
  /** END is written. The session waits for the client's END until then. */
  | { kind: "end sent"; code: number; reason: string; until: number }
  /** The client's END arrived. Messages received before it are still being delivered. */
  | { kind: "end received"; code: number; reason: string }
  | { kind: "closed"; closed: Closed };

/** The connection of an attached session, and its state. */
interface Attached {
  connection: number;
  lane: Lane;
  welcome: Welcome | undefined;
  heartbeat: Heartbeat;
  /** The part of the newest probe that is not written yet. The RFC 6455 Ping goes first. A newer probe replaces it. */
  probe: { nonce: number; hasPinged: boolean } | undefined;
  /** Control output that goes before any message, in order. */
  queue: Output[];
  volatiles: ByteQueue;
  /** New credentials of the client, and then their result, until AUTH_RESULT is written. */
  auth: { kind: "received"; credentials: Bytes } | { kind: "pending" } | { kind: "done"; accepted: boolean } | undefined;
}

/** The result of an attempt to attach. */
export type Attach =
  /** The connection is attached. `dropped`: names that are not valid any more. */
  | { kind: "attached"; fenced: Fenced | undefined; dropped: (Name | undefined)[] }
  /** A later attempt of the same instance has attached already. */
  | { kind: "stale" }
  /** The name is not valid for this client, or its counts are those of another copy of the client. */
  | { kind: "not yours" }
  /** END was sent: no connection attaches to this session any more. */
  | { kind: "ending" };

/** A connection that lost its session to a later one: the driver closes it with 4409 and this reason. */
export interface Fenced {
  connection: number;
  reason: string;
}

/** What the registry remembers of a session that ended. `ended`: the code of an END that we sent. */
export interface Remains {
  acknowledged: number;
  delivered: number;
  sent: number;
  cause: number;
  ended: number | undefined;
}

/** A new secret, and the name under which the registry finds its session. */
export interface Token {
  secret: Bytes;
  name: Name;
}

/** How long an END waits for its answer. */
export const CLOSE_TIMEOUT_MS = 10_000;
/** How long the final writes wait for a client that acknowledges nothing. */
const FINAL_WRITES_MS = 5000;
/** How long the END of {@link ServerSession.abort} waits for its answer. */
export const ABORT_TIMEOUT_MS = 1000;
/** The most volatile messages that wait in either direction. */
const VOLATILES: Window = { messages: 64, bytes: 262_144 };
/** The causes of an account on the wire. */
const CAUSES = { expired: 1, ended: 2, evicted: 3, lost: 0 };

/** The machine of one session. */
export class ServerSession {
  epoch = 0;
  readonly id: Bytes;
  /** The owner of the session: its secrets are hashed with it. */
  readonly owner: string;
  /** The name of the client's key. The key is a secret until the first epoch is established; then it only names the session. */
  readonly key: Name;
  /** The name of a token that is not valid any more, but stays in the registry until the next attach. */
  spent: Name | undefined;
  readonly flow: Flow;
  /** The largest message that the client accepts, as its newest HELLO announces. */
  limit = Infinity;
  /** The token with which the client attached. It stays valid until the epoch is established. */
  private presented: Name | undefined;
  /** The token that the newest WELCOME issued. */
  private issued: Name | undefined;
  private resumeWindowMs: number;
  private isConfirmed = false;
  private instance: string;
  private attempt = 0;
  /** The account of the session that this one replaces. WELCOME carries it until the epoch is established. */
  private account: Account | undefined;
  private life: Life;
  private attached: Attached | undefined;
  /** Messages of the client outside the stream that wait for the application. */
  private volatiles = new ByteQueue();
  private config: SessionConfig;

  constructor(now: number, config: SessionConfig, id: Bytes, owner: string, key: Name, hello: Hello, account: Account | undefined) {
    this.config = config;
    this.id = id;
    this.owner = owner;
    this.key = key;
    this.instance = toHex(hello.instance);
    this.account = account;
    this.resumeWindowMs = config.resumeWindowMs;
    this.life = { kind: "parked", since: now };
    const inbox = new Inbox(config.accept);
    this.flow = config.dropOldest ? new DroppingFlow(config.keep, inbox) : new Flow(new Outbox(config.keep), inbox);
  }

  // ---- attaching --------------------------------------------------------------------------------

  /** Attaches a client by its key: its HELLO has no `resume`, or a token that names no session. */
  attachByKey(now: number, connection: number, hello: Hello, token: Token, random: () => number): Attach {
    const conflict = this.conflictWith(hello);
    if (conflict) return conflict;
    if (this.isConfirmed || toHex(hello.instance) !== this.instance) return { kind: "not yours" };
    // A client that sent `resume` has written nothing yet, and starts where WELCOME says. A client that did not is already
    // writing from 1.
    const lane = { wrote: 0, read: hello.resume ? this.flow.inbox.acknowledged : 0 };
    return this.takeOver(now, connection, hello, lane, undefined, token, random);
  }

  /** Attaches a client by a token of this session. */
  attachByToken(now: number, connection: number, hello: Hello, presented: Name, token: Token, random: () => number): Attach {
    const { outbox, inbox } = this.flow;
    const { resume } = hello;
    if (!resume || (presented !== this.presented && presented !== this.issued)) return { kind: "not yours" };
    const conflict = this.conflictWith(hello);
    if (conflict) return conflict;
    const { acknowledged, sent, firstHeld } = resume;
    const isPossible =
      acknowledged <= outbox.written && acknowledged >= outbox.acknowledged && sent >= inbox.received && firstHeld <= inbox.acknowledged + 1;
    if (!isPossible) return { kind: "not yours" };
    outbox.acknowledge(acknowledged);
    return this.takeOver(now, connection, hello, { wrote: acknowledged, read: inbox.acknowledged }, presented, token, random);
  }

  private conflictWith(hello: Hello): Attach | undefined {
    const { life } = this;
    if (life.kind === "end sent" || life.kind === "end received") return { kind: "ending" };
    if (life.kind === "closed") return { kind: "not yours" };
    return toHex(hello.instance) === this.instance && hello.attempt <= this.attempt ? { kind: "stale" } : undefined;
  }

  /** Moves the session to a new connection in one step: it fences the old connection before it reads its own counts. */
  private takeOver(now: number, connection: number, hello: Hello, lane: Lane, presented: Name | undefined, token: Token, random: () => number): Attach {
    const { flow, config, attached, life } = this;
    this.instance = toHex(hello.instance);
    this.attempt = hello.attempt;
    const fenced = attached && { connection: attached.connection, reason: `${this.instance} ${flow.inbox.acknowledged}` };
    flow.pong = undefined;
    this.epoch++;
    this.isConfirmed = false;
    // Two tokens were valid. Only the presented one stays valid.
    const other = [this.presented, this.issued].find((name) => name !== undefined && name !== presented);
    const dropped = [this.spent, other];
    this.spent = undefined;
    this.presented = presented;
    this.issued = token.name;
    flow.outbox.peer = hello.window;
    this.limit = hello.maxMessage ?? Infinity;
    flow.outbox.trim(lane.wrote);
    this.resumeWindowMs = Math.min(hello.resumeWindowMs ?? Infinity, config.resumeWindowMs);
    this.attached = {
      connection,
      lane,
      welcome: this.welcome(token, presented !== undefined, lane),
      heartbeat: new Heartbeat(now, config.heartbeatMs, random),
      probe: undefined,
      queue: [],
      volatiles: new ByteQueue(),
      auth: undefined,
    };
    this.life = life.kind === "closing" ? { ...life, until: Math.min(now + FINAL_WRITES_MS, life.by) } : { kind: "attached" };
    this.queueEndIfDue(now);
    return { kind: "attached", fenced, dropped };
  }

  private welcome(token: Token, resumed: boolean, lane: Lane): Welcome {
    const { flow, config } = this;
    return {
      type: Type.Welcome,
      id: this.id,
      token: token.secret,
      epoch: this.epoch,
      resumed,
      acknowledged: flow.inbox.ack(),
      first: lane.wrote + 1,
      resumeWindowMs: this.resumeWindowMs,
      heartbeatIntervalMs: config.heartbeatMs,
      window: flow.inbox.window,
      account: this.account,
      maxMessage: config.maxMessage,
    };
  }

  /** The client's first control message after WELCOME establishes the epoch, and spends the token that it presented. */
  private confirmEpoch(): void {
    this.isConfirmed = true;
    this.spent = this.presented;
    this.presented = undefined;
    this.account = undefined;
  }

  /** The names by which a client may attach to this session now, its key included. */
  get names(): Name[] {
    return [this.key, this.presented, this.issued].filter((name) => name !== undefined);
  }

  // ---- events of connections --------------------------------------------------------------------

  /**
   * Handles a message of a connection; a message of a fenced connection is dropped. `length`: the bytes of a message of the
   * application.
   * @throws ProtocolError: fail the connection with 4400. The session goes on, unless the error is fatal.
   */
  handleFrame(now: number, connection: number, frame: Frame, length?: number): void {
    const { attached, flow } = this;
    if (attached?.connection !== connection) return;
    attached.heartbeat.handleBytes(now);
    // An end that does not implement a type ignores it. A server ignores REPLACED, which has no meaning towards it.
    if (!frame || frame.type === Type.Replaced) return;
    if (frame.type === Type.Data) {
      // After our close, or an END, nothing is delivered any more, but the position moves.
      if (!this.isOpen) attached.lane.read++;
      else flow.readData(attached.lane, frame.data, length);
      return;
    }
    if (!this.isConfirmed) this.confirmEpoch();
    const { acknowledged } = flow.outbox;
    try {
      this.handleControl(now, attached, frame);
    } catch (error) {
      if (error instanceof ProtocolError && error.isFatal) this.endNow(now, 4400, "positions differ");
      throw error;
    }
    const { life } = this;
    // A client that goes on acknowledging gets more time.
    if (life.kind === "closing" && flow.outbox.acknowledged > acknowledged) life.until = Math.min(now + FINAL_WRITES_MS, life.by);
    this.trim();
    this.queueEndIfDue(now);
  }

  private handleControl(now: number, attached: Attached, frame: Control): void {
    const { flow } = this;
    switch (frame.type) {
      case Type.Ack:
        flow.outbox.acknowledge(frame.acknowledged);
        flow.outbox.peer = frame.window ?? flow.outbox.peer;
        return;
      case Type.Pong:
        attached.heartbeat.handlePong(now, frame.nonce);
        return flow.readBeat(attached.lane, frame);
      case Type.Ping:
        return flow.readBeat(attached.lane, frame);
      case Type.Gap:
        return flow.readGap(attached.lane, frame.first, frame.count);
      case Type.Volatile:
        return this.volatiles.pushDroppingOldest(frame.data, VOLATILES);
      case Type.End:
        this.handleEnd(frame.code, frame.reason);
        return flow.outbox.acknowledge(frame.acknowledged);
      case Type.Auth:
        if (attached.auth) throw new ProtocolError("AUTH before AUTH_RESULT");
        attached.auth = { kind: "received", credentials: frame.credentials };
        return;
      default:
        throw new ProtocolError(`message type ${frame.type} is not allowed here`);
    }
  }

  private handleEnd(code: number, reason: string): void {
    const { life } = this;
    if (life.kind === "end sent") this.finish({ cause: "ended", code: life.code, reason: life.reason, byUs: true });
    else if (life.kind !== "closed") {
      this.life = { kind: "end received", code, reason };
      this.answerEndIfDelivered();
    }
  }

  /** Records that bytes arrived on a connection, for example an RFC 6455 Pong. */
  handleBytes(now: number, connection: number): void {
    if (this.attached?.connection === connection) this.attached.heartbeat.handleBytes(now);
  }

  /** Handles an RFC 6455 Pong, which counts as bytes only: the PONG of the session answers a probe. */
  handlePong(now: number, connection: number, _nonce: number): void {
    this.handleBytes(now, connection);
  }

  /** Records that everything written so far has left the process: the deadlines of probes start here. */
  handleFlushed(now: number, connection: number): void {
    const { attached } = this;
    // A probe that was not written yet has not left.
    if (attached?.connection === connection && !attached.probe) attached.heartbeat.handleFlushed(now);
  }

  /** Records that some written bytes left the process, but not all. */
  handleWriteProgress(now: number, connection: number): void {
    if (this.attached?.connection === connection) this.attached.heartbeat.handleWriteProgress(now);
  }

  /** Handles the end of a connection, for any reason. The session parks. */
  handleLost(now: number, connection: number): void {
    const { attached, life } = this;
    if (attached?.connection !== connection) return;
    this.attached = undefined;
    this.flow.pong = undefined;
    this.flow.outbox.trim(Infinity);
    if (life.kind === "attached") this.life = { kind: "parked", since: now };
    else if (life.kind === "closing") life.until = Math.min(now + Math.max(this.resumeWindowMs, CLOSE_TIMEOUT_MS), life.by);
    // Our END may or may not have arrived; the tombstone reports it to a client that asks.
    else if (life.kind === "end sent") this.finish({ cause: "ended", code: life.code, reason: life.reason, byUs: true });
    else if (life.kind === "end received") this.finish({ cause: "ended", code: life.code, reason: life.reason, byUs: false });
  }

  // ---- calls of the application -----------------------------------------------------------------

  /**
   * Accepts a message and keeps it until the client acknowledges it. Returns false if there is no room, or the session is
   * ending.
   */
  send(data: Data): boolean {
    return this.isOpen && this.flow.outbox.push(data, false, sizeOf(data)) > 0;
  }

  /** Writes a message that is not numbered, kept or replayed. Drops it while the session is parked. */
  sendVolatile(data: Data): void {
    this.attached?.volatiles.pushDroppingOldest(data, VOLATILES);
  }

  /** Returns the next message or gap for the application, in order. It counts as delivered, and is acknowledged. */
  deliver(now: number): Delivery | undefined {
    if (!this.delivers) return;
    const delivery = this.flow.inbox.deliver(now);
    this.answerEndIfDelivered();
    return delivery;
  }

  /** Returns the next message outside the stream. */
  deliverVolatile(): Data | undefined {
    return this.delivers ? this.volatiles.shift() : undefined;
  }

  /** Whether messages are delivered: the session is open, or its client ended it and messages received before wait. */
  get delivers(): boolean {
    return this.isOpen || this.life.kind === "end received";
  }

  /** Returns credentials that the client sent on the live session, once each. Pass the result to {@link handleAuthResult}. */
  pollAuth(): { connection: number; credentials: Bytes } | undefined {
    const { attached } = this;
    if (attached?.auth?.kind !== "received") return;
    const { credentials } = attached.auth;
    attached.auth = { kind: "pending" };
    return { connection: attached.connection, credentials };
  }

  /**
   * Handles the result of new credentials: `owner` is the owner that they prove, or undefined if they were refused. Credentials
   * of another owner are refused too.
   * The session goes on in either case.
   */
  handleAuthResult(connection: number, owner: string | undefined): void {
    const { attached } = this;
    // After the connection was lost there is nothing to answer: the next HELLO carries credentials.
    if (attached?.connection !== connection || attached.auth?.kind !== "pending") return;
    // Another AUTH is a protocol error until this result is written: results never pile up for a client that does not read.
    attached.auth = { kind: "done", accepted: owner === this.owner };
  }

  /**
   * Ends the session in order: messages that were accepted before are delivered first, then END follows. Nothing more is
   * delivered to the application. END does not wait for a client that acknowledges nothing for 5 s, or not everything within
   * the resume window (10 s at least), so no client can delay the end.
   */
  close(now: number, code: number, reason: string): void {
    const { life, resumeWindowMs } = this;
    if (life.kind === "parked") {
      // The client has the resume window to come back, and then time for the messages that wait.
      const until = life.since + resumeWindowMs;
      this.life = { kind: "closing", code, reason, until, by: until + CLOSE_TIMEOUT_MS };
    } else if (life.kind === "attached") {
      this.life = { kind: "closing", code, reason, until: now + FINAL_WRITES_MS, by: now + Math.max(resumeWindowMs, CLOSE_TIMEOUT_MS) };
    } else return;
    this.stopDelivering();
    this.queueEndIfDue(now);
  }

  /**
   * Ends the session now: messages that were not written yet are not written, and an attached client gets END at once. It has
   * a second to answer; then its connection is dropped.
   */
  abort(now: number, code: number, reason: string): void {
    const { life } = this;
    if (life.kind === "closed") return;
    if (life.kind === "end sent") life.until = Math.min(life.until, now + ABORT_TIMEOUT_MS);
    else if (life.kind === "end received") {
      this.stopDelivering();
      this.answerEndIfDelivered();
    } else if (this.attached) this.endNow(now, code, reason, ABORT_TIMEOUT_MS);
    else this.finish({ cause: "ended", code, reason, byUs: true });
  }

  /** Asks the client to leave this connection after a delay; nothing is lost. */
  goAway(reason: string, delay: Delay, closeInMs: number): void {
    this.attached?.queue.push(encode({ type: Type.GoAway, reason, delay, closeInMs }));
  }

  /** Gives the session up without END, as if its resume window had passed. */
  evict(reason: string): void {
    if (this.life.kind !== "closed") this.finish({ cause: "evicted", code: 1006, reason, byUs: true });
  }

  private queueEndIfDue(now: number): void {
    const { life, flow } = this;
    const isAcknowledged = flow.outbox.acknowledged === flow.outbox.last;
    if (life.kind !== "closing" || !this.attached || !(isAcknowledged || life.until <= now)) return;
    this.endNow(now, life.code, life.reason, isAcknowledged ? CLOSE_TIMEOUT_MS : FINAL_WRITES_MS);
  }

  /** Writes END: no message is written or delivered any more. The client has `timeoutMs` for its answer. */
  private endNow(now: number, code: number, reason: string, timeoutMs = CLOSE_TIMEOUT_MS): void {
    this.stopDelivering();
    this.life = { kind: "end sent", code, reason, until: now + timeoutMs };
    this.queueEnd(code, reason);
  }

  private answerEndIfDelivered(): void {
    const { life } = this;
    if (life.kind !== "end received" || this.flow.inbox.queue.length) return;
    this.queueEnd(life.code, "");
    this.finish({ cause: "ended", code: life.code, reason: life.reason, byUs: false });
  }

  private queueEnd(code: number, reason: string): void {
    const { acknowledged, delivered } = this.flow.inbox;
    this.attached?.queue.push(encode({ type: Type.End, code, reason, acknowledged, delivered }));
  }

  private stopDelivering(): void {
    this.flow.inbox.queue = [];
    this.volatiles.clear();
  }

  private finish(closed: Closed): void {
    this.stopDelivering();
    this.life = { kind: "closed", closed };
    this.attached?.queue.push(closed.cause === "ended" ? { kind: "close", code: 1000, reason: "" } : { kind: "abort" });
  }

  // ---- output and time --------------------------------------------------------------------------

  /** Returns the next thing to write or do to a connection; undefined for a fenced connection. */
  pollTransmit(now: number, connection: number): Output | undefined {
    const { attached, flow } = this;
    if (attached?.connection !== connection) return;
    const { welcome, probe, lane, queue, auth } = attached;
    if (welcome) {
      attached.welcome = undefined;
      return encode(welcome);
    }
    if (probe) {
      // A client that answers only the RFC 6455 Ping is alive, but not listening.
      attached.probe = probe.hasPinged ? undefined : { ...probe, hasPinged: true };
      return probe.hasPinged ? flow.writeBeat(Type.Ping, probe.nonce, lane) : { kind: "ping", nonce: probe.nonce };
    }
    if (auth?.kind === "done") {
      attached.auth = undefined;
      return encode({ type: Type.AuthResult, accepted: auth.accepted, expiresInMs: 0 });
    }
    if (queue.length) return queue.shift();
    if (this.life.kind === "end sent" || this.life.kind === "closed") {
      // A client that is still delivering messages that came before END probes whether the server is alive.
      const { pong } = flow;
      flow.pong = undefined;
      return this.life.kind === "end sent" && pong !== undefined ? flow.writeBeat(Type.Pong, pong, lane) : undefined;
    }
    const volatile = attached.volatiles.shift();
    if (volatile !== undefined) return encode({ type: Type.Volatile, data: volatile });
    return flow.writeOwed(now, lane) ?? flow.writeData(lane);
  }

  /** Does what is due. Call it at {@link pollTimeout}, until it returns undefined or `dead`. An early call does nothing. */
  handleTimeout(now: number): HeartbeatAction | undefined {
    if (this.expiresAt <= now) this.finish({ cause: "expired", code: 1006, reason: "the resume window passed", byUs: true });
    this.queueEndIfDue(now);
    const { life, attached } = this;
    if (life.kind === "end sent" && life.until <= now) {
      this.finish({ cause: "ended", code: life.code, reason: life.reason, byUs: true });
      // Output that still waits is not written.
      if (attached) {
        attached.probe = undefined;
        attached.queue = [{ kind: "abort" }];
      }
      return { kind: "dead", evidence: "silent" };
    }
    const action = attached?.heartbeat.handleTimeout(now);
    if (action?.kind === "probe") attached!.probe = { nonce: action.nonce, hasPinged: false };
    return action;
  }

  /** Returns when {@link handleTimeout} has something to do, or when an acknowledgement is due even if nothing more arrives. */
  pollTimeout(): number {
    const { life, attached } = this;
    const end = "until" in life ? life.until : this.expiresAt;
    return attached ? Math.min(end, attached.heartbeat.pollTimeout(), this.flow.inbox.ackDueAt) : end;
  }

  private get expiresAt(): number {
    const { life } = this;
    if (life.kind === "parked") return life.since + this.resumeWindowMs;
    return life.kind === "closing" && !this.attached ? life.until : Infinity;
  }

  private trim(): void {
    this.flow.outbox.trim(this.attached?.lane.wrote ?? Infinity);
  }

  // ---- facts ------------------------------------------------------------------------------------

  /** Whether something waits for the application. */
  get hasInput(): boolean {
    return this.flow.inbox.queue.length > 0 || this.volatiles.length > 0;
  }

  /** Whether a probe is unanswered: {@link handleFlushed} and {@link handleWriteProgress} matter then. */
  get isProbing(): boolean {
    return !!this.attached?.heartbeat.isProbing;
  }

  /** The connection of the session; undefined while parked. */
  get connection(): number | undefined {
    return this.attached?.connection;
  }

  /** How the session ended; undefined before. */
  get closed(): Closed | undefined {
    return this.life.kind === "closed" ? this.life.closed : undefined;
  }

  /** Whether the session accepts messages. */
  get isOpen(): boolean {
    return this.life.kind === "parked" || this.life.kind === "attached";
  }

  get traffic(): Traffic {
    return { delivered: this.flow.inbox.delivered, accepted: this.flow.outbox.last };
  }

  /** Payload bytes that wait, in both directions. */
  get queueBytes(): number {
    return this.flow.outbox.bytes + this.flow.inbox.openBytes;
  }

  /** The smoothed round-trip time of the current connection's heartbeat; undefined before the first answer. */
  get rtt(): number | undefined {
    return this.attached?.heartbeat.rtt;
  }

  /** What the registry remembers of this session. */
  get remains(): Remains {
    const { life, flow } = this;
    const { acknowledged, delivered } = flow.inbox;
    const remains = { acknowledged, delivered, sent: flow.outbox.last, cause: 0, ended: undefined };
    if (life.kind === "end sent") return { ...remains, cause: CAUSES.ended, ended: life.code };
    if (life.kind !== "closed") return remains;
    const { cause, byUs, code } = life.closed;
    return { ...remains, cause: CAUSES[cause], ended: cause === "ended" && byUs ? code : undefined };
  }
}
