/**
 * The client's end of one session, over one connection after the other.
 *
 * At most two connections matter at a time: the *current* one, and a *pending* one (`opening`) that has sent HELLO
 * and waits for WELCOME. From the pending HELLO on the current one is only read (make before break); WELCOME ends it, and if
 * the pending one is refused or lost, it is written again. When to dial is not decided here (`machine.ts`).
 *
 * Pure: time and randomness are arguments, and what is to be done goes through {@link SessionIo}. Source: `docs/PROTOCOL.md` "Attaching", "Closing".
 */

import { type Delivery, Flow, Inbox, type Lane, MessageTooLargeError, Outbox } from "./flow.js";
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
  type Hello,
  type Refuse,
  type Replaced,
  toHex,
  Type,
  type Welcome,
  type Window,
} from "./wire.js";

/** What became of everything that was sent in a session that is over: every number is in one class. */
export interface Fate {
  /** Delivered: 1 up to here. */
  delivered: number;
  /** Unknown: above `delivered` up to here. Not delivered: above this. */
  unknown: number;
  /** The last of them: so many were accepted. */
  last: number;
  /** What was not delivered is sent again in the next session, in order, behind what the handlers of `open` send. */
  resent: boolean;
  /** The peer's messages that will never come; undefined: how many is not known. */
  lost: { first: number; count: number } | undefined;
  /**
   * Why, as far as the peer told. `replaced`: a gateway's connection to its backend was lost. Where the session goes on
   * all the same, nothing that was sent is lost, and all of it is in the first class.
   */
  cause: "unknown" | "expired" | "ended" | "evicted" | "restarted" | "replaced";
}

/** What a session has done to its connections, and told to the application. None of these calls back before it returns. */
export interface SessionIo {
  writeTo(id: number, data: Data): void;
  /** Closes a connection, in order. */
  forget(id: number, code: number, reason: string): void;
  /**
   * By the names of the application's events: `gap` where the session is lost and a new one follows, the one word about
   * it; `volatile`; and `authenticated`, what became of the credentials that `authenticate` presented. `error`: a message
   * that waited is larger than the server takes, and was dropped; so many that were accepted after it are kept.
   */
  emit(type: string, fields: object, behind?: number): void;
}

/** What happens to a session. */
export interface SessionHooks {
  /** Bound to a connection. */
  onAttached(id: number, welcome: Welcome): void;
  /** An attempt was refused; another may have success, after the delay. */
  onRefused(code: number, delay: Delay): void;
  /** Leave the connection after the delay; nothing is lost. */
  onGoAway(delay: Delay, closeIn: number): void;
  /** Nothing follows. */
  endNow(code: number, reason: string, fate: Fate, wasClean?: boolean): void;
}

export interface SessionConfig {
  /** What is kept until acknowledged. Default 1,024 messages, 4 MiB. */
  keep?: Window | undefined;
  /** The resume window asked for; the server decides. */
  resumeWindowMs?: number | undefined;
  /** Send again in the next session what a lost one certainly did not deliver. Default true. */
  resend?: boolean | undefined;
}

interface Connection extends Lane {
  id: number;
  /** It was asked for an existing session: nothing but HELLO goes out before WELCOME. */
  resumes: boolean;
  /** The credentials that were presented here and wait for a verdict. */
  judging?: Bytes | undefined;
}

const enum Life {
  Open,
  /** END leaves once everything before it is acknowledged. */
  Closing,
  /** The peer's END came; what came before it is still being handed over. */
  EndReceived,
  EndSent,
  Over,
}

const ACCEPT: Window = [1024, 4_194_304];
const CAUSES = ["unknown", "expired", "ended", "evicted", "restarted", "replaced"] as const;

export class ClientSession {
  declare io: SessionIo;
  declare hooks: SessionHooks;
  declare flow: Flow;
  /** The credentials of every HELLO; new ones go through {@link authenticate}. */
  declare credentials: Bytes | undefined;
  declare current: Connection | undefined;
  declare opening: Connection | undefined;
  /** Drawn when the first connection is open, as not every platform has randomness before. */
  declare instanceId: Bytes;
  /** The largest message that the server takes, as it last said. */
  limit = Infinity;
  /** Started from stored state and not attached yet: it numbers nothing new. */
  isRestored = false;
  /** Only of an open session there is something to store. */
  life = Life.Open;
  private farewell: End = [Type.End, 0, "", 0, 0];
  declare token: Bytes | undefined;
  private attempt = 0;
  declare private clientKey: Bytes | undefined;
  private keySentAt = NaN;
  /** The newest credentials, until their verdict. */
  declare private fresh: Bytes | undefined;
  /** {@link standing} when the current connection was attached. */
  private stoodAt = 0;
  /** Connections in a row that ended after WELCOME without progress. */
  private barren = 0;
  /** How often what stands behind the server was replaced, as it last said. */
  private replaced = 0;
  declare private isHeld: boolean;
  declare private behaviour: SessionConfig;
  declare private randomBytes: (length: number) => Bytes;

  /**
   * A session of a new instance. `random` gives bytes of the platform's cryptographic randomness. `isHeld`: what is sent in
   * a session that is not begun, and what is sent again in it, waits until the driver calls {@link begin}.
   */
  constructor(config: SessionConfig, random: (length: number) => Bytes, isHeld = false) {
    this.behaviour = config;
    this.isHeld = isHeld;
    this.randomBytes = random;
    this.flow = this.newFlow();
  }

  // ---- connections ----------------------------------------------------------------------------

  /** A connection is open and speaks `mainstay.v1`: ask for the session on it, unless it is ending. */
  handleOpened(now: number, id: number): void {
    if (this.life > Life.Closing) return;
    const { token, fresh, flow: { outbox, inbox } } = this;
    if (!token) outbox.peer = [16, 65_536];
    this.instanceId ??= this.randomBytes(8);
    this.clientKey ??= this.randomBytes(16);
    const hello: Hello = [
      Type.Hello,
      1,
      inbox.window,
      this.clientKey,
      // Age 0 says "never sent before"; a second HELLO in the same millisecond must not say it.
      this.keySentAt <= now ? Math.max(now - this.keySentAt, 1) : 0,
      this.instanceId,
      ++this.attempt,
      token && [token, inbox.received, outbox.last, outbox.acknowledged + 1],
      fresh ?? this.credentials,
      this.behaviour.resumeWindowMs,
    ];
    this.keySentAt ||= now;
    // One that resumes stands behind everything until WELCOME says where.
    this.opening = { id, wrote: token ? Infinity : 0, read: 0, resumes: !!token, judging: fresh };
    this.io.writeTo(id, encode(hello));
  }

  /**
   * A connection is gone, however that came about. The reason of 4409 is the winner's instance and what the server
   * received; a pending connection counts too: coming back would take the session from the winner, who would come back
   * as well.
   */
  handleLost(id: number, code?: number, reason = ""): void {
    const isPending = this.opening?.id === id;
    const isCurrent = this.current?.id === id;
    const [winner, received] = reason.split(" ");
    if (code === 4409 && (isPending || isCurrent) && winner && winner !== toHex(this.instanceId)) {
      return this.conclude(code, "another instance took the session", this.fate([+received! || 0, Infinity, 0, 0, 0]));
    }
    if (isPending) this.leavePending();
    if (isCurrent) {
      const wasEnding = this.life === Life.EndSent;
      this.barren = this.standing === this.stoodAt ? this.barren + 1 : 0;
      this.dropCurrent();
      this.flow.outbox.trim(Infinity);
      // Nobody answers END any more.
      if (wasEnding) this.conclude(this.farewell[1], this.farewell[2], this.fate(), false);
      else if (this.barren > 4) this.startOver();
    }
  }

  // ---- what connections bring -----------------------------------------------------------------

  /** Takes what a connection brought. @throws {@link ProtocolError}: fail this connection; the session goes on over the next. */
  handleFrame(id: number, frame: Frame): void {
    const { current, opening, flow } = this;
    if (!frame) return;
    if (opening?.id === id) {
      if (frame[0] === Type.Welcome) this.welcome(opening, frame);
      else if (frame[0] === Type.Refuse) this.refused(opening, frame);
      else fail("no WELCOME");
    } else if (current?.id !== id) return;
    else if (frame[0]) this.receiveControl(current, frame);
    else if (this.life > Life.Closing) current.read++;
    else flow.readData(current, frame[1]);
    this.trimOutbox();
    this.settle();
  }

  private receiveControl(current: Connection, frame: Control): void {
    const { flow, hooks, io } = this;
    const { outbox } = flow;
    if (frame[0] === Type.Ping || frame[0] === Type.Pong) flow.readBeat(current, frame);
    else if (frame[0] === Type.Ack) {
      outbox.acknowledge(frame[1]);
      outbox.peer = frame[2] ?? outbox.peer;
    } else if (frame[0] === Type.Gap) flow.readGap(current, frame[1], frame[2]);
    else if (frame[0] === Type.GoAway) hooks.onGoAway(frame[2], frame[3]);
    else if (frame[0] === Type.Volatile) io.emit("volatile", { data: frame[1] });
    else if (frame[0] === Type.AuthResult && current.judging) this.judged(current, frame[1]);
    else if (frame[0] === Type.Replaced) this.readReplaced(current, frame);
    else if (frame[0] === Type.End) {
      outbox.acknowledge(frame[3]);
      if (this.life < Life.EndReceived) {
        this.life = Life.EndReceived;
        this.farewell = frame;
      } else if (this.life === Life.EndSent) {
        // The answer to ours: code and reason are what we said.
        io.forget(current.id, 1000, "");
        this.conclude(this.farewell[1], this.farewell[2], this.finalFate(frame));
      }
    } else fail(`type ${frame[0]} is not allowed here`);
  }

  /** What the client does not acknowledge is written again: a count is told once. */
  private readReplaced(current: Connection, [, after, count]: Replaced): void {
    if (after !== current.read) fail(`replaced after ${after}, ${current.read} read`, true);
    if (count <= this.replaced || this.life > Life.Closing) return;
    this.replaced = count;
    this.flow.inbox.takeReplaced();
  }

  /** The peer broke the session. */
  abandon(reason: string): void {
    const fate = this.fate();
    this.sendEnd(4400, reason);
    this.conclude(4400, reason, fate, false);
  }

  private welcome(opening: Connection, frame: Welcome): void {
    const { id, resumes } = opening;
    const [, , token, , isResumed, received, first, , , window, account, , limit] = frame;
    const { outbox, inbox } = this.flow;
    this.opening = undefined;
    // The server has fenced the old connection. One that was replaced while it lived was not barren.
    if (this.current) this.barren = 0;
    this.dropCurrent();
    const isImpossible = received < outbox.acknowledged || received > outbox.written || first - 1 > inbox.taken;
    if (resumes && (!isResumed || isImpossible)) this.startOver(account);
    if (isResumed && (!resumes || isImpossible)) fail("impossible WELCOME");
    this.flow.outbox.acknowledge(resumes && !isResumed ? 0 : received);
    this.flow.outbox.peer = window;
    this.limit = limit ?? Infinity;
    this.dropTooLarge();
    this.token = token;
    this.isRestored = false;
    if (!isResumed) this.renewKey();
    this.stoodAt = this.standing;
    this.current = opening;
    opening.read = first - 1;
    if (resumes) opening.wrote = received;
    // Before anything else on this connection: it confirms the epoch.
    this.io.writeTo(id, encode([Type.Ack, this.flow.inbox.tell()]));
    this.hooks.onAttached(id, frame);
    this.judged(opening, true);
  }

  private refused({ resumes }: Connection, [, code, isRetryable, delay, account]: Refuse): void {
    if (!isRetryable) {
      if (code !== 4411) return this.conclude(code, "refused", this.fate(account));
      // The key may have named a session. With a token in hand, or where nothing was written, only the key is at fault.
      if (!resumes && (account || this.flow.outbox.written)) this.startOver(account);
      this.renewKey();
    }
    this.leavePending();
    this.hooks.onRefused(code, delay);
  }

  // ---- what the application does --------------------------------------------------------------

  /**
   * Accepts a message and returns its number. 0: there is no room, or it is ending, or not restored yet. `isFirst`: it
   * goes before what waits for {@link begin}.
   */
  send(data: Data, isFirst?: boolean): number {
    return this.life || this.isRestored ? 0 : this.flow.outbox.push(data, isFirst);
  }

  /** The application has begun the session: what waits follows what it sent first. */
  begin(): void {
    this.flow.outbox.ready = Infinity;
  }

  /** Nothing more comes: what has come waits for the application. */
  get isOver(): boolean {
    return this.life > Life.Closing;
  }

  /** Writes a message that is not numbered, kept or replayed. Dropped while detached. */
  sendVolatile(data: Data): void {
    if (this.current && !this.opening) this.io.writeTo(this.current.id, encode([Type.Volatile, data]));
  }

  /** Asks for a PONG with this nonce. Not while another connection is pending. */
  ping(nonce: number): void {
    if (this.current && !this.opening) this.io.writeTo(this.current.id, this.flow.writeBeat(Type.Ping, nonce, this.current));
  }

  /** Presents new credentials: on the live connection, or in the next HELLO where there is none. */
  authenticate(credentials: Bytes): void {
    this.fresh = credentials;
    this.present();
  }

  /** The next message or gap for the application, in order. */
  handOver(now: number): Delivery | undefined {
    const delivery = this.flow.inbox.handOver(now);
    this.settle();
    return delivery;
  }

  /** Ends the session in order: what was accepted before is delivered first, then END. */
  close(code: number, reason: string): void {
    if (this.life) return;
    this.life = Life.Closing;
    this.farewell = [Type.End, code, reason, 0, 0];
    this.settle();
  }

  /** The peer turned out not to speak `mainstay.v1`: takes back what was never written. */
  takeUnsent(): [fate: Fate, unsent: Data[]] {
    const { outbox } = this.flow;
    const fate = { ...this.fate(), resent: outbox.written < outbox.last };
    this.flow = this.newFlow();
    this.token = undefined;
    this.limit = Infinity;
    return [fate, outbox.after(outbox.written)];
  }

  /** What would become of what was sent if the session were lost now. */
  fate(account?: Account): Fate {
    const { acknowledged, written, last } = this.flow.outbox;
    const [received, handed, first, count, cause] = account ?? [0, written, 0, 0, 0];
    // What was never written is nowhere but here, whatever the account says or leaves unsaid.
    const delivered = Math.max(Math.min(received, written), acknowledged);
    return {
      delivered,
      unknown: Math.max(Math.min(handed, written), delivered),
      last,
      resent: false,
      lost: count ? { first, count } : undefined,
      cause: CAUSES[cause]!,
    };
  }

  // ---- credentials ----------------------------------------------------------------------------

  /** Writes AUTH, unless another waits for its verdict. What a HELLO presents has its verdict with WELCOME. */
  private present(): void {
    const { fresh, current } = this;
    if (!fresh || !current || current.judging || this.opening || this.life > Life.Closing) return;
    current.judging = fresh;
    this.io.writeTo(current.id, encode([Type.Auth, fresh]));
  }

  private judged(connection: Connection, isAccepted: boolean): void {
    const { judging } = connection;
    connection.judging = undefined;
    if (judging && judging === this.fresh) {
      this.fresh = undefined;
      if (isAccepted) this.credentials = judging;
      this.io.emit("authenticated", { accepted: isAccepted });
    }
    this.present();
  }

  // ---- ending ---------------------------------------------------------------------------------

  /** Sends END, or answers the peer's, when nothing stands before it. */
  private settle(): void {
    const { outbox, inbox } = this.flow;
    // While an attempt is pending the current connection is not written, and WELCOME would drop its END.
    if (this.life === Life.Closing && this.current && !this.opening && outbox.acknowledged === outbox.last) {
      this.sendEnd(this.farewell[1], this.farewell[2]);
    } else if (this.life === Life.EndReceived && !inbox.queue.length) {
      const [, code, reason] = this.farewell;
      const fate = this.finalFate(this.farewell);
      this.sendEnd(code, "");
      if (this.current) this.io.forget(this.current.id, 1000, "");
      this.conclude(code, reason, fate);
    }
  }

  private sendEnd(code: number, reason: string): void {
    const { received, handed } = this.flow.inbox;
    this.flow.inbox.queue = [];
    this.farewell = [Type.End, code, reason, received, handed];
    this.life = Life.EndSent;
    if (this.current) this.io.writeTo(this.current.id, encode(this.farewell));
  }

  private finalFate([, , , received, handed]: End): Fate {
    return this.fate([received, handed, 0, 0, 2]);
  }

  private conclude(code: number, reason: string, fate: Fate, wasClean?: boolean): void {
    this.life = Life.Over;
    this.flow.inbox.queue = [];
    this.opening = undefined;
    this.hooks.endNow(code, reason, fate, wasClean);
  }

  // ---- losing a session -----------------------------------------------------------------------

  /** The session is lost: one gap, and a new session takes over what was certainly not delivered. */
  private startOver(account?: Account): void {
    const { outbox } = this.flow;
    const fate = this.fate(account);
    fate.resent = this.behaviour.resend !== false && fate.unknown < fate.last;
    this.flow = this.newFlow();
    // It fitted the old buffer, so it fits the new one, with what comes first.
    if (fate.resent) for (const data of outbox.after(fate.unknown)) this.flow.outbox.push(data, true);
    if (this.isHeld) this.flow.outbox.ready = 0;
    this.token = undefined;
    this.renewKey();
    this.isRestored = false;
    this.barren = this.replaced = 0;
    this.io.emit("gap", { fate });
  }

  /** What is larger than the server takes would end every connection that it is written on. */
  private dropTooLarge(): void {
    const { limit, flow: { outbox } } = this;
    if (limit === Infinity) return;
    const { ready } = outbox;
    outbox.takeUnwritten().forEach((data, index, { length }) => {
      const size = bytesOf(data).length;
      if (size > limit) this.io.emit("error", { error: new MessageTooLargeError(size, limit) }, length - 1 - index);
      else outbox.push(data, true);
    });
    outbox.ready = ready;
  }

  private dropCurrent(): void {
    this.current = undefined;
    this.flow.pong = undefined;
  }

  /** The current connection is written again. */
  private leavePending(): void {
    this.opening = undefined;
    this.present();
    this.settle();
  }

  private renewKey(): void {
    this.clientKey = undefined;
    this.keySentAt = NaN;
  }

  /** Grows with everything that is acknowledged or received. */
  private get standing(): number {
    return this.flow.outbox.acknowledged + this.flow.inbox.taken;
  }

  private newFlow(): Flow {
    const flow = new Flow(new Outbox(this.behaviour.keep ?? ACCEPT), new Inbox(ACCEPT));
    if (this.isHeld) flow.outbox.ready = 0;
    return flow;
  }

  private trimOutbox(): void {
    this.flow.outbox.trim(Math.min(this.current?.wrote ?? Infinity, this.opening?.wrote ?? Infinity));
  }

  // ---- output ---------------------------------------------------------------------------------

  /** Writes what is owed and what the window holds: from the HELLO of a pending connection on, only to that. */
  writeAll(now: number): void {
    const { opening, current, flow } = this;
    const writer = opening ?? current;
    if (!writer || this.life >= Life.EndSent) return;
    const next = () => (opening ? undefined : flow.writeOwed(now, writer)) ?? flow.writeData(writer);
    for (let data; (data = next()) !== undefined; ) this.io.writeTo(writer.id, data);
  }

  /** When an acknowledgement is due even if nothing more comes. */
  get dueAt(): number {
    return this.current && !this.opening ? this.flow.inbox.dueAt : Infinity;
  }
}
