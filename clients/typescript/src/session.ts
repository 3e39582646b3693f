/**
 * The client's end of one session, over one connection after the other.
 *
 * At most two connections matter at a time: the *current* one, and a *pending* one (`opening`) that has sent HELLO
 * and waits for WELCOME. From the pending HELLO on, the current one is only read (make before break); WELCOME ends it, and
 * if the pending one is refused or lost, the current one is written again. `machine.ts` decides when to dial.
 *
 * Pure: time and randomness are arguments, and the driver polls for what is to be written and what happened.
 * Source: `docs/PROTOCOL.md` "Attaching", "Closing".
 */

import { type Delivery, Flow, Inbox, INITIAL_WINDOW, type Lane, MessageTooLargeError, Outbox } from "./flow.js";
import {
  type Account,
  type Bytes,
  bytesOf,
  type Control,
  type Data,
  type Delay,
  encode,
  type End,
  fail,
  type Frame,
  type Refuse,
  type Replaced,
  toHex,
  Type,
  type Welcome,
  type Window,
} from "./wire.js";

/** What became of all messages that were sent in a session that is over: every number is in one class. */
export interface Fate {
  /** Delivered: 1 up to here. */
  delivered: number;
  /** Unknown: above `delivered` up to here. Not delivered: above this. */
  unknown: number;
  /** The number of the last message: so many were accepted. */
  last: number;
  /** The messages that were not delivered are sent again in the next session, in order, after those that the handlers of `open` send. */
  resent: boolean;
  /** The peer's messages that will never come; undefined: their number is not known. */
  lost: { first: number; count: number } | undefined;
  /**
   * Why, as far as the peer reported it. `replaced`: a gateway's connection to its backend was lost. If the session goes on
   * all the same, nothing that was sent is lost, and all of it is in the first class.
   */
  cause: "unknown" | "expired" | "ended" | "evicted" | "restarted" | "replaced";
}

/** Something to do to a connection. */
export type SessionTransmit =
  | { kind: "write"; id: number; data: Data }
  /** Close the connection, and report nothing more about it. */
  | { kind: "forget"; id: number; code: number; reason: string };

/** What happened to a session. */
export type SessionEvent =
  /** It is bound to a connection. */
  | { type: "attached"; id: number; welcome: Welcome }
  /** An attempt was refused; another may succeed, after the delay. */
  | { type: "refused"; code: number; delay: Delay }
  /** The server asks the client to leave the connection after the delay; nothing is lost. */
  | { type: "goAway"; delay: Delay; closeInMs: number; endpoint?: string | undefined }
  /** The session is lost and a new one follows. */
  | { type: "gap"; fate: Fate }
  | { type: "volatile"; data: Data }
  /** The server judged the credentials that `authenticate` presented. */
  | { type: "authenticated"; accepted: boolean }
  /** A message that waited is larger than the server accepts, and was dropped; `behind` messages that were accepted after it are kept. */
  | { type: "error"; error: Error; behind?: number }
  /** The session is over: no event follows. `wasClean` is false if the peer did not answer. */
  | { type: "ended"; code: number; reason: string; fate: Fate; wasClean: boolean | undefined };

export interface SessionConfig {
  /** The bound of messages kept until they are acknowledged. Default: 1,024 messages, 4 MiB. */
  keep?: Partial<Window> | undefined;
  /** The resume window that the client asks for; the server decides. */
  resumeWindowMs?: number | undefined;
  /** Send again in the next session the messages that a lost one certainly did not deliver. Default: true. */
  resendUndelivered?: boolean | undefined;
}

interface Connection extends Lane {
  id: number;
  /** It was opened for an existing session: only HELLO is written before WELCOME. */
  resumes: boolean;
  /** The credentials that were presented here and wait for a verdict. */
  judging?: Bytes | undefined;
}

/** How far a session is from its end. */
const enum Stage {
  Open,
  Closing,
  EndReceived,
  EndSent,
  Over,
}

type Life =
  | { kind: Stage.Open }
  /** END leaves once everything before it is acknowledged. */
  | { kind: Stage.Closing; code: number; reason: string }
  /** The peer's END came; messages received before it are still being delivered. */
  | { kind: Stage.EndReceived; end: End }
  | { kind: Stage.EndSent; code: number; reason: string }
  | { kind: Stage.Over };

/** The window that the client announces, and the default of `keep`. */
const ACCEPT: Window = { messages: 1024, bytes: 4_194_304 };
const CAUSES = /* @__PURE__ */ "unknown expired ended evicted restarted replaced".split(" ") as Fate["cause"][];

export class ClientSession {
  declare flow: Flow;
  /** The credentials of every HELLO; {@link authenticate} replaces them. */
  declare credentials: Bytes | undefined;
  declare current: Connection | undefined;
  declare opening: Connection | undefined;
  /** Drawn when the first connection is open, as not every platform has randomness before. */
  declare instanceId: Bytes;
  /** The largest message that the server accepts, as it last announced. */
  limit = Infinity;
  /** Started from stored state and not attached yet: it numbers no new message. */
  isRestored = false;
  private life: Life = { kind: Stage.Open };
  declare token: Bytes | undefined;
  private attempt = 0;
  declare private clientKey: Bytes | undefined;
  private keySentAt = NaN;
  /** A HELLO with this key was answered by no REFUSE: a session may have it. */
  private keyMayName = false;
  /** The newest credentials, until their verdict. */
  declare private fresh: Bytes | undefined;
  /** {@link standing} when the current connection was attached. */
  private stoodAt = 0;
  /** A heartbeat arrived on the current connection. */
  private hadBeat = false;
  /** Connections in a row that ended after WELCOME without progress. */
  private barren = 0;
  /** How often the backend behind the server was replaced, as the server last announced. */
  private replaced = 0;
  /** What is decided and not done yet. A machine around the session appends to it, so that all is done in order. */
  readonly outputs: SessionTransmit[] = [];
  private events: SessionEvent[] = [];
  declare private isHeld: boolean;
  declare private behaviour: SessionConfig;
  declare private randomBytes: (length: number) => Bytes;

  /**
   * Makes the session of a new instance. `random` returns bytes of the platform's cryptographic randomness. `isHeld`: messages
   * that wait in a session that is not begun, and those sent again in it, wait until the driver calls {@link begin}.
   */
  constructor(config: SessionConfig, random: (length: number) => Bytes, isHeld = false) {
    this.behaviour = config;
    this.isHeld = isHeld;
    this.randomBytes = random;
    this.flow = this.newFlow();
  }

  // ---- connections ----------------------------------------------------------------------------

  /** A connection is open and speaks `mainstay.v1`: asks for the session on it, unless the session is ending. */
  handleOpened(now: number, id: number): void {
    if (this.isEnding) return;
    if (this.opening) this.keyMayName = true;
    const { token, fresh, flow: { outbox, inbox } } = this;
    if (!token) outbox.peer = INITIAL_WINDOW;
    this.instanceId ??= this.randomBytes(8);
    this.clientKey ??= this.randomBytes(16);
    this.write(id, {
      type: Type.Hello,
      version: 1,
      window: inbox.window,
      key: this.clientKey,
      // Age 0 means "never sent before"; a second HELLO in the same millisecond must not have it.
      keyAgeMs: this.keySentAt <= now ? Math.max(now - this.keySentAt, 1) : 0,
      instance: this.instanceId,
      attempt: ++this.attempt,
      resume: token && { token, acknowledged: inbox.acknowledged, sent: outbox.last, firstHeld: outbox.acknowledged + 1 },
      credentials: fresh ?? this.credentials,
      resumeWindowMs: this.behaviour.resumeWindowMs,
    });
    this.keySentAt ||= now;
    // A connection that resumes has no position until WELCOME brings it.
    this.opening = { id, wrote: token ? Infinity : 0, read: 0, resumes: !!token, judging: fresh };
  }

  /**
   * A connection is gone, for any reason. The reason of 4409 is the winner's instance and the number up to which the server
   * acknowledged; it concerns a pending connection too: an attempt to come back would take the session from the winner, which
   * would come back as well.
   */
  handleLost(id: number, code?: number, reason = ""): void {
    const { life } = this;
    const isPending = this.opening?.id === id;
    const isCurrent = this.current?.id === id;
    const [winner, acknowledged] = reason.split(" ");
    if (code === 4409 && (isPending || isCurrent) && winner && winner !== toHex(this.instanceId)) {
      const fate = this.fate({ acknowledged: +acknowledged! || 0, delivered: Infinity });
      return this.conclude(code, "another instance took the session", fate);
    }
    if (isPending) {
      this.keyMayName = true;
      this.leavePending();
    }
    if (isCurrent) {
      // A heartbeat shows that the session is sound, unless a message is under way that may be what ends connections.
      const { acknowledged, last } = this.flow.outbox;
      const isSound = this.hadBeat && acknowledged === last;
      this.barren = this.standing === this.stoodAt && !isSound ? this.barren + 1 : 0;
      this.dropCurrent();
      this.flow.outbox.trim(Infinity);
      // The answer to END cannot come any more.
      if (life.kind === Stage.EndSent) this.conclude(life.code, life.reason, this.fate(), false);
      else if (this.barren > 4) this.startOver();
    }
  }

  // ---- what connections bring -----------------------------------------------------------------

  /** Handles what a connection brought. @throws {@link ProtocolError}: fail this connection; the session goes on over the next. */
  handleFrame(id: number, frame: Frame): void {
    const { current, opening } = this;
    if (!frame) return;
    if (opening?.id === id) {
      if (frame.type === Type.Welcome) this.welcome(opening, frame);
      else if (frame.type === Type.Refuse) this.refused(opening, frame);
      else fail("no WELCOME");
    } else if (current?.id !== id) return;
    else if (frame.type) this.receiveControl(current, frame);
    else if (this.isEnding) current.read++;
    else this.flow.readData(current, frame.data);
    this.trimOutbox();
    this.advanceEnd();
  }

  private receiveControl(current: Connection, frame: Control): void {
    const { flow, life } = this;
    const { outbox } = flow;
    if (frame.type === Type.Ping || frame.type === Type.Pong) {
      this.hadBeat = true;
      flow.readBeat(current, frame);
    }
    else if (frame.type === Type.Ack) {
      outbox.acknowledge(frame.acknowledged);
      outbox.peer = frame.window ?? outbox.peer;
    } else if (frame.type === Type.Gap) flow.readGap(current, frame.first, frame.count);
    else if (frame.type === Type.GoAway) this.events.push({ ...frame, type: "goAway" });
    else if (frame.type === Type.Volatile) this.events.push({ type: "volatile", data: frame.data });
    else if (frame.type === Type.AuthResult && current.judging) this.judged(current, frame.accepted);
    else if (frame.type === Type.Replaced) this.readReplaced(current, frame);
    else if (frame.type === Type.End) {
      outbox.acknowledge(frame.acknowledged);
      if (!this.isEnding) this.life = { kind: Stage.EndReceived, end: frame };
      else if (life.kind === Stage.EndSent) {
        // The answer to ours: code and reason are those of our END.
        this.forget(current.id, 1000);
        this.conclude(life.code, life.reason, this.finalFate(frame));
      }
    } else fail(`type ${frame.type} is not allowed here`);
  }

  /** The client does not acknowledge a REPLACED, and the server writes it again: each count is reported once. */
  private readReplaced(current: Connection, { after, count }: Replaced): void {
    if (after !== current.read) fail(`replaced after ${after}, ${current.read} read`, true);
    if (count <= this.replaced || this.isEnding) return;
    this.replaced = count;
    this.flow.inbox.receiveReplaced();
  }

  /** The peer broke the session. */
  abandon(reason: string): void {
    const fate = this.fate();
    this.sendEnd(4400, reason);
    this.conclude(4400, reason, fate, false);
  }

  private welcome(opening: Connection, welcome: Welcome): void {
    const { id, resumes } = opening;
    const { token, resumed, acknowledged, first } = welcome;
    const { outbox, inbox } = this.flow;
    this.opening = undefined;
    // The server has fenced the old connection. A connection that was replaced while it lived was not barren.
    if (this.current) this.barren = 0;
    this.dropCurrent();
    const isImpossible = acknowledged < outbox.acknowledged || acknowledged > outbox.written || first - 1 > inbox.received;
    if (resumes && (!resumed || isImpossible)) this.startOver(welcome.account);
    if (resumed && (!resumes || isImpossible)) fail("impossible WELCOME");
    this.flow.outbox.acknowledge(resumes && !resumed ? 0 : acknowledged);
    this.flow.outbox.peer = welcome.window;
    this.limit = welcome.maxMessage ?? Infinity;
    this.dropTooLarge();
    this.token = token;
    this.isRestored = false;
    if (!resumed) this.renewKey();
    this.stoodAt = this.standing;
    this.hadBeat = false;
    this.current = opening;
    opening.read = first - 1;
    if (resumes) opening.wrote = acknowledged;
    // Before anything else on this connection: it establishes the epoch.
    this.write(id, { type: Type.Ack, acknowledged: this.flow.inbox.ack() });
    this.events.push({ type: "attached", id, welcome });
    this.judged(opening, true);
  }

  private refused({ resumes }: Connection, { code, temporary, delay, account }: Refuse): void {
    if (!temporary) {
      if (code !== 4411) return this.conclude(code, "refused", this.fate(account));
      // The key may have named a session. If the client presented a token, or has written nothing, only the key is at fault.
      if (!resumes && (account || this.flow.outbox.written)) this.startOver(account);
      this.renewKey();
    } else {
      if (code === 4410) this.keyMayName = true;
      // All that had this key were refused, so it names nothing. Another one has no age for which a server could refuse it.
      if (!this.keyMayName) this.renewKey();
    }
    this.leavePending();
    this.events.push({ type: "refused", code, delay });
  }

  // ---- what the application does --------------------------------------------------------------

  /**
   * Accepts a message and returns its number. 0: there is no room, or the session is ending, or not restored yet. `isFirst`:
   * it is inserted before the messages that wait for {@link begin}.
   */
  send(data: Data, isFirst?: boolean): number {
    return !this.isOpen || this.isRestored ? 0 : this.flow.outbox.push(data, isFirst);
  }

  /** The application has begun the session: messages that wait follow those it sent first. */
  begin(): void {
    this.flow.outbox.ready = Infinity;
  }

  /** Neither end has begun to end the session. */
  get isOpen(): boolean {
    return this.life.kind === Stage.Open;
  }

  /** Nothing more is received: messages received before wait for the application. */
  get isEnding(): boolean {
    return !this.isOpen && this.life.kind !== Stage.Closing;
  }

  /** Writes a message that is not numbered, kept or replayed. It is dropped while the session is detached. */
  sendVolatile(data: Data): void {
    if (this.current && !this.opening) this.write(this.current.id, { type: Type.Volatile, data });
  }

  /** Asks for a PONG with this nonce. Does nothing while another connection is pending. */
  ping(nonce: number): void {
    const { current } = this;
    if (current && !this.opening) this.outputs.push({ kind: "write", id: current.id, data: this.flow.writeBeat(Type.Ping, nonce, current) });
  }

  /** Presents new credentials: on the live connection, or in the next HELLO if there is none. */
  authenticate(credentials: Bytes): void {
    this.fresh = credentials;
    this.present();
  }

  /** Returns the next message or gap for the application, in order. */
  deliver(now: number): Delivery | undefined {
    const delivery = this.flow.inbox.deliver(now);
    this.advanceEnd();
    return delivery;
  }

  /** Ends the session in order: messages that were accepted before are delivered first, then END. */
  close(code: number, reason: string): void {
    if (!this.isOpen) return;
    this.life = { kind: Stage.Closing, code, reason };
    this.advanceEnd();
  }

  /** The peer turned out not to speak `mainstay.v1`: returns the messages that were never written. */
  takeUnsent(): { fate: Fate; unsent: Data[] } {
    const { outbox } = this.flow;
    const fate = { ...this.fate(), resent: outbox.written < outbox.last };
    this.flow = this.newFlow();
    this.token = undefined;
    this.limit = Infinity;
    return { fate, unsent: outbox.after(outbox.written) };
  }

  /** What would become of the messages that were sent if the session were lost now. */
  fate(account?: Partial<Account>): Fate {
    const { outbox: { acknowledged, written, last }, inbox } = this.flow;
    const { firstLost = 0, count = 0 } = account ?? {};
    // The account counts from what HELLO stated; what the old connection brought after that, and was delivered, is not lost.
    const first = Math.max(firstLost, inbox.delivered + 1);
    // A message that was never written exists only here, so the account does not matter.
    const delivered = Math.max(Math.min(account?.acknowledged ?? 0, written), acknowledged);
    return {
      delivered,
      unknown: Math.max(Math.min(account?.delivered ?? written, written), delivered),
      last,
      resent: false,
      lost: firstLost + count > first ? { first, count: firstLost + count - first } : undefined,
      cause: CAUSES[account?.cause ?? 0]!,
    };
  }

  // ---- credentials ----------------------------------------------------------------------------

  /** Writes AUTH, unless another waits for its verdict. Credentials in a HELLO have their verdict with WELCOME. */
  private present(): void {
    const { fresh, current } = this;
    if (!fresh || !current || current.judging || this.opening || this.isEnding) return;
    current.judging = fresh;
    this.write(current.id, { type: Type.Auth, credentials: fresh });
  }

  private judged(connection: Connection, accepted: boolean): void {
    const { judging } = connection;
    connection.judging = undefined;
    if (judging && judging === this.fresh) {
      this.fresh = undefined;
      if (accepted) this.credentials = judging;
      this.events.push({ type: "authenticated", accepted });
    }
    this.present();
  }

  // ---- ending ---------------------------------------------------------------------------------

  /** Sends END, or answers the peer's, when nothing stands before it. */
  private advanceEnd(): void {
    const { life, current, flow: { outbox, inbox } } = this;
    // While an attempt is pending the current connection is not written, and WELCOME would drop its END.
    if (life.kind === Stage.Closing && current && !this.opening && outbox.acknowledged === outbox.last) {
      this.sendEnd(life.code, life.reason);
    } else if (life.kind === Stage.EndReceived && !inbox.queue.length) {
      const { end } = life;
      const fate = this.finalFate(end);
      this.sendEnd(end.code, "");
      if (current) this.forget(current.id, 1000);
      this.conclude(end.code, end.reason, fate);
    }
  }

  private sendEnd(code: number, reason: string): void {
    const { acknowledged, delivered } = this.flow.inbox;
    this.flow.inbox.queue = [];
    this.life = { kind: Stage.EndSent, code, reason };
    if (this.current) this.write(this.current.id, { type: Type.End, code, reason, acknowledged, delivered });
  }

  private finalFate({ acknowledged, delivered }: End): Fate {
    return this.fate({ acknowledged, delivered, cause: 2 });
  }

  private conclude(code: number, reason: string, fate: Fate, wasClean?: boolean): void {
    this.life = { kind: Stage.Over };
    this.flow.inbox.queue = [];
    this.opening = undefined;
    this.events.push({ type: "ended", code, reason, fate, wasClean });
  }

  // ---- losing a session -----------------------------------------------------------------------

  /** The session is lost: one gap, and a new session sends the messages that were certainly not delivered. */
  private startOver(account?: Account): void {
    const { outbox } = this.flow;
    const fate = this.fate(account);
    fate.resent = this.behaviour.resendUndelivered !== false && fate.unknown < fate.last;
    this.flow = this.newFlow();
    // They fitted the old buffer, so they fit the new one, together with what comes first.
    if (fate.resent) for (const data of outbox.after(fate.unknown)) this.flow.outbox.push(data, true);
    if (this.isHeld) this.flow.outbox.ready = 0;
    this.token = undefined;
    this.renewKey();
    this.isRestored = false;
    this.barren = this.replaced = 0;
    this.events.push({ type: "gap", fate });
  }

  /** A message that is larger than the server accepts would end every connection that it is written on. */
  private dropTooLarge(): void {
    const { limit, flow: { outbox } } = this;
    if (limit === Infinity) return;
    const { ready } = outbox;
    outbox.takeUnwritten().forEach((data, index, { length }) => {
      const size = bytesOf(data).length;
      if (size > limit) this.events.push({ type: "error", error: new MessageTooLargeError(size, limit), behind: length - 1 - index });
      else outbox.push(data, true);
    });
    outbox.ready = ready;
  }

  /** What another instance stored of the session is incomplete: the application gets one gap. */
  lose(): void {
    this.events.push({ type: "gap", fate: this.fate() });
  }

  private dropCurrent(): void {
    this.current = undefined;
    this.flow.pong = undefined;
  }

  /** The current connection is written again. */
  private leavePending(): void {
    this.opening = undefined;
    this.present();
    this.advanceEnd();
  }

  private renewKey(): void {
    this.clientKey = undefined;
    this.keySentAt = NaN;
    this.keyMayName = false;
  }

  /** Grows with every message that is acknowledged or received. */
  private get standing(): number {
    return this.flow.outbox.acknowledged + this.flow.inbox.received;
  }

  private newFlow(): Flow {
    const { messages = ACCEPT.messages, bytes = ACCEPT.bytes } = this.behaviour.keep ?? {};
    const flow = new Flow(new Outbox({ messages, bytes }), new Inbox(ACCEPT));
    if (this.isHeld) flow.outbox.ready = 0;
    return flow;
  }

  private trimOutbox(): void {
    this.flow.outbox.trim(Math.min(this.current?.wrote ?? Infinity, this.opening?.wrote ?? Infinity));
  }

  // ---- output ---------------------------------------------------------------------------------

  private write(id: number, message: Control): void {
    this.outputs.push({ kind: "write", id, data: encode(message) });
  }

  private forget(id: number, code: number): void {
    this.outputs.push({ kind: "forget", id, code, reason: "" });
  }

  /** Returns the next thing to do. From the HELLO of a pending connection on, messages of the streams go only to that. */
  pollTransmit(now: number): SessionTransmit | undefined {
    const { opening, flow } = this;
    const writer = opening ?? this.current;
    const output = this.outputs.shift();
    if (output || !writer || this.life.kind === Stage.EndSent || this.life.kind === Stage.Over) return output;
    const data = (opening ? undefined : flow.writeOwed(now, writer)) ?? flow.writeData(writer);
    if (data !== undefined) return { kind: "write", id: writer.id, data };
  }

  /** Returns the next event, in order. */
  pollEvent(): SessionEvent | undefined {
    return this.events.shift();
  }

  /** Returns when an acknowledgement is due even if nothing more comes. */
  pollTimeout(): number {
    return this.current && !this.opening ? this.flow.inbox.ackDueAt : Infinity;
  }
}
