/**
 * Moves one session: its machine, its connection if it has one, its one deadline on the server's wheel, and the
 * application's waiting calls. Whatever happens changes the machine and then asks three questions in one order
 * ({@link Driver.step}): what does the application get, what was it waiting to send, what is to be written.
 *
 * While a message of the application waits to be accepted, the application gets none: a handler that sends what it was
 * handed is held to the pace of its client, whether it waits for `send` or not.
 */

import type { EventEmitter } from "node:events";
import { type Data, decode, type Delivery, ProtocolError, Type } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { Connection, Listener } from "./connection.js";
import { toHex } from "./names.js";
import { PlainSession } from "./plain-session.js";
import type { ServerSession } from "./server-session.js";
import type { Rooms } from "./rooms.js";
import { type Loss, type Peer, Session } from "./session.js";
import { Resident, type Wheel } from "./wheel.js";

/** What a session needs of the server that holds it. */
export interface Host {
  clock(): number;
  readonly wheel: Wheel;
  readonly isDraining: boolean;
  readonly rooms: Rooms;
  /** Has credentials judged that came on a live session. Undefined: refused. */
  judge(credentials: Uint8Array, request: FastifyRequest): Promise<string | undefined>;
  /** The connection is gone; the session, if it is not over, waits for its client. */
  lost(driver: Driver, loss: Loss): void;
  /** The heartbeat's verdict on the connection. */
  judged(driver: Driver, evidence: "silent" | "frozen" | "stalled"): void;
  /** The client broke the session protocol. */
  refused(driver: Driver): void;
  /** A client told of messages that it dropped. */
  dropped(count: number): void;
  /** The session is over. */
  forget(driver: Driver): void;
}

export const GOING_AWAY = "the server is going away, come back";
export const TOO_SLOW = "too far behind what is sent to its rooms";

/** What the heartbeat found, in words. */
const VERDICTS = {
  silent: "silent: nothing came back after a heartbeat",
  frozen: "frozen: its system takes bytes and answers no heartbeat",
  stalled: "stalled: a heartbeat could not even leave",
  "not listening": "not listening: it sends and answers no heartbeat",
};

/** One promise each for all calls that need not wait. */
const ACCEPTED = Promise.resolve(true);
const REFUSED = Promise.resolve(false);

interface Sender {
  data: Data;
  settle: (isAccepted: boolean) => void;
}

export class Driver extends Resident implements Listener {
  readonly session: Session;
  readonly id: string;
  readonly machine: ServerSession | PlainSession;
  peer: Peer;
  request: FastifyRequest;
  readonly host: Host;
  /** The machine, if it is that of a plain client. */
  private plain: PlainSession | undefined;
  private connection: Connection | undefined;
  /** What the wheel was asked for; 0 is nothing. */
  private armedAt = 0;
  /** Reads what is readable before it judges. */
  private judging: NodeJS.Immediate | undefined;
  private isStepping = false;
  private isForgotten = false;
  /** Calls of the application that wait, while any does. */
  private senders: Sender[] | undefined;
  private receivers: ((data: Buffer | string | undefined) => void)[] | undefined;

  constructor(machine: ServerSession | PlainSession, host: Host, connection: Connection, peer: Peer) {
    super();
    this.machine = machine;
    this.host = host;
    this.plain = machine instanceof PlainSession ? machine : undefined;
    this.id = machine instanceof PlainSession ? "" : toHex(machine.id);
    this.peer = peer;
    this.request = connection.request;
    this.connection = connection;
    connection.listener = this;
    this.session = new Session(this);
  }

  get mode(): "session" | "plain" {
    return this.plain ? "plain" : "session";
  }

  /** The session has a new connection; the one before it was fenced and is closed with this reason. */
  attach(connection: Connection, peer: Peer, fenced: string): void {
    const old = this.connection;
    this.connection = connection;
    connection.listener = this;
    this.peer = peer;
    this.request = connection.request;
    if (old) {
      old.listener = undefined;
      old.close(4409, fenced);
    }
    this.tell("attached", this.machine.epoch);
    this.step();
  }

  // ---- what the connection brings ---------------------------------------------------------------

  message(connection: Connection, data: Data, length: number): void {
    if (this.plain) return this.plainMessage(this.plain, connection, data, length);
    const { machine } = this;
    try {
      machine.receive(this.host.clock(), connection.id, decode(data), length);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.refuse(connection, error);
    }
    const auth = machine.takeAuth();
    if (auth) {
      this.host.judge(auth.credentials, this.request).then((owner) => {
        machine.verdict(auth.connection, owner);
        this.step();
      });
    }
    this.step();
  }

  /** Nearly always it goes straight to the listener, and leaves nothing to be done behind it. */
  private plainMessage(plain: PlainSession, connection: Connection, data: Data, length: number): void {
    const now = this.host.clock();
    const isAwaited = !this.isStepping && !this.senders && this.session.listenerCount("message") > 0;
    if (!isAwaited || !plain.passIn(now)) plain.receive(now, connection.id, { type: Type.Data, data }, length);
    else {
      this.isStepping = true;
      this.tell("message", present(data));
      this.isStepping = false;
      if (!this.hasWork) return;
    }
    this.step(now);
  }

  /** Whether there may be anything to do. */
  private get hasWork(): boolean {
    return !this.plain?.isQuiet || this.senders !== undefined;
  }

  pong(connection: Connection, nonce: number): void {
    this.machine.pong(this.host.clock(), connection.id, nonce);
  }

  wrote(connection: Connection, isAll: boolean): void {
    const now = this.host.clock();
    if (isAll) this.machine.flushed(now, connection.id);
    else this.machine.progress(now, connection.id);
    if (this.hasWork) this.step(now);
  }

  lost(connection: Connection, code: number, reason: string): void {
    const { machine, host } = this;
    if (connection !== this.connection) return;
    this.connection = undefined;
    machine.lost(host.clock(), connection.id, code, reason);
    // Nobody can come back to a server that takes no connections.
    if (host.isDraining) machine.evict(GOING_AWAY);
    host.lost(this, { code, reason });
    if (!machine.over) this.tell("detached", { code, reason });
    this.step();
  }

  private refuse(connection: Connection, error: ProtocolError): void {
    this.request.log.debug({ err: error, session: this.id }, "the client broke the session protocol");
    this.host.refused(this);
    // Where positions differ the session ends, and the client is told so first.
    if (error.isFatal) this.write(this.host.clock());
    connection.close(4400, error.message);
  }

  // ---- what the application does ----------------------------------------------------------------

  send(data: Data): Promise<boolean> {
    if (this.trySend(data)) return ACCEPTED;
    if (!this.machine.isOpen) return REFUSED;
    return new Promise((settle) => (this.senders ??= []).push({ data, settle }));
  }

  trySend(data: Data): boolean {
    const { plain, connection, senders, machine } = this;
    // What waits comes first.
    if (senders) return false;
    if (connection && plain?.passesOut && !connection.isFull) {
      connection.put(data, plain.isProbing);
      plain.sent++;
      return true;
    }
    const isAccepted = machine.send(data);
    if (isAccepted) this.step();
    return isAccepted;
  }

  sendVolatile(data: Data): void {
    this.machine.sendVolatile(data);
    this.step();
  }

  close(code: number, reason: string): void {
    this.machine.close(this.host.clock(), code, reason);
    this.dismissReceivers();
    this.step();
  }

  /** Undefined: nothing more is handed over. */
  next(): Promise<string | Buffer | undefined> {
    if (this.isForgotten || !this.machine.handsOver) return Promise.resolve(undefined);
    return new Promise((receive) => {
      (this.receivers ??= []).push(receive);
      this.step();
    });
  }

  /** The application's handler failed: that concerns this session and no other. */
  fail(error: unknown): void {
    this.request.log.error({ err: error, session: this.id }, "a session's handler failed");
    this.close(1011, "internal error");
  }

  /** One of the application's listeners failed: what it was told counts as taken, and the session goes on. */
  report(error: unknown, event: string): void {
    this.request.log.error({ err: error, session: this.id, event }, "a session's listener failed; the session goes on");
    // An `error` listener that fails is not told of that.
    if (event !== "error" && this.session.listenerCount("error")) this.tell("error", error);
  }

  // ---- what the server does ---------------------------------------------------------------------

  /** Asks a client to come back elsewhere; one that is away cannot. */
  goAway(spread: number): void {
    if (this.connection) this.machine.goAway(GOING_AWAY, { earliestMs: 0, latestMs: spread }, spread);
    else this.machine.evict(GOING_AWAY);
    this.step();
  }

  /** Asks the client to move to another connection within `spread`; this one is closed after `closeIn`. */
  move(reason: string, spread: number, closeIn: number): void {
    if (this.mode === "plain") this.close(1012, reason);
    else this.machine.goAway(reason, { earliestMs: 0, latestMs: spread }, closeIn);
    this.step();
  }

  /** Closes the connection; a session waits for its client. */
  closeConnection(code: number, reason: string): void {
    this.connection?.close(code, reason);
  }

  /** Closes what is still there. */
  leave(code = 1012, reason = GOING_AWAY): void {
    this.connection?.close(code, reason);
    this.stop(reason);
  }

  /** Its resume window passes now, if it is parked. */
  expire(): void {
    if (this.connection || this.machine.over) return;
    this.machine.timeout(this.machine.dueAt);
    this.step();
  }

  /** Ends without a word; no timer is left. */
  stop(reason = GOING_AWAY): void {
    this.connection?.abort();
    this.machine.evict(reason);
    this.step();
  }

  // ---- facts ------------------------------------------------------------------------------------

  get messages(): number {
    const [received, sent] = this.machine.traffic;
    return received + sent;
  }

  get connectionId(): number | undefined {
    return this.machine.connection;
  }

  get isOpen(): boolean {
    return this.machine.isOpen;
  }

  get limit(): number {
    return this.machine.limit;
  }

  /** A member of a room that is too far behind for its messages. */
  giveUp(): void {
    this.leave(1013, TOO_SLOW);
  }

  // ---- the one loop -----------------------------------------------------------------------------

  /** Does what there is to do. A listener that calls back in is already inside. */
  step(now = this.host.clock()): void {
    if (this.isStepping || this.isForgotten) return;
    this.isStepping = true;
    do {
      while (this.handOver(now));
      this.admit();
      this.write(now);
      // What was written to a plain client has made room.
    } while (this.admit() || this.handOver(now));
    this.throttle();
    this.isStepping = false;
    if (this.machine.over) this.finish();
    else this.arm(now);
  }

  /** Time has passed. */
  due(): void {
    this.armedAt = 0;
    if (this.isForgotten) return;
    const now = this.host.clock();
    this.isStepping = true;
    this.keepTime(now);
    this.isStepping = false;
    if (this.hasWork) this.step(now);
    else this.arm(now);
  }

  private keepTime(now: number): void {
    const { machine, connection, host } = this;
    if (this.judging || machine.dueAt > now) return;
    if (connection?.tookBytes()) machine.bytes(now, connection.id);
    if (connection?.madeProgress()) machine.progress(now, connection.id);
    for (let action; (action = machine.timeout(now)); ) {
      if (action.is === "drain") return this.readFirst();
      // A session loses nothing by a new connection; a plain client would, and so would a large message on its way.
      const isStuck = action.is === "not listening" && this.mode === "session" && !connection?.isMidFrame;
      if (action.is !== "dead" && !isStuck) continue;
      if (action.is === "dead") host.judged(this, action.evidence);
      return connection?.abort(4408, VERDICTS[action.is === "dead" ? action.evidence : "not listening"]);
    }
  }

  private readFirst(): void {
    this.judging = setImmediate(() => {
      this.judging = undefined;
      this.due();
    });
  }

  /** True: the application got something, and may want more. */
  private handOver(now: number): boolean {
    const { machine, session } = this;
    // What the application sent comes first: what is handed over now may make it send more.
    if (!machine.hasInput || this.senders) return false;
    const volatile = session.listenerCount("volatile") ? machine.handOverVolatile() : undefined;
    if (volatile !== undefined) {
      this.tell("volatile", present(volatile));
      if (this.senders) return true;
    }
    const isFlowing = session.listenerCount("message") > 0;
    const delivery = isFlowing || this.receivers ? machine.handOver(now) : undefined;
    if (delivery) this.deliver(delivery, isFlowing);
    return volatile !== undefined || delivery !== undefined;
  }

  private deliver({ data, first, count }: Delivery, isFlowing: boolean): void {
    if (data === undefined) {
      this.host.dropped(count);
      this.tell("gap", { first, count });
    } else if (isFlowing) this.tell("message", present(data));
    else {
      const receive = this.receivers!.shift()!;
      if (!this.receivers!.length) this.receivers = undefined;
      receive(present(data));
    }
  }

  /** A plain client is held back by not being read; one with a session by its window. */
  private throttle(): void {
    const { plain, connection } = this;
    if (!plain || !connection) return;
    if (plain.wantsInput) connection.resume();
    else connection.pause();
  }

  /** True: something that waited was accepted, or will never be. */
  private admit(): boolean {
    const { senders, machine } = this;
    if (!senders) return false;
    let settled = 0;
    for (let first; (first = senders[settled]); settled++) {
      const isAccepted = machine.send(first.data);
      if (!isAccepted && machine.isOpen) break;
      first.settle(isAccepted);
    }
    senders.splice(0, settled);
    if (!senders.length) this.senders = undefined;
    return settled > 0;
  }

  private write(now: number): void {
    if (this.plain && !this.plain.hasOutput) return;
    for (let connection; (connection = this.connection) && !connection.isFull; ) {
      const output = this.machine.transmit(now, connection.id);
      if (output === undefined) return;
      connection.put(output, this.machine.isProbing);
    }
  }

  /** Asks the wheel only when something is due before it calls; being called early costs a comparison. */
  private arm(now: number): void {
    const { dueAt } = this.machine;
    if (this.judging || dueAt === Infinity || (this.armedAt && dueAt >= this.armedAt)) return;
    this.armedAt = dueAt;
    // What is due may have to wait for a socket that is full.
    const least = this.connection?.isFull ? now + 100 : 0;
    this.host.wheel.arm(this, Math.max(dueAt, least), now);
  }

  /** The session is over; what was to be said is said, or is not taken. */
  private finish(): void {
    const { why, code, reason } = this.machine.over!;
    // The last words wait in a socket that takes nothing: until the heartbeat's verdict, or it takes them.
    if (this.connection?.isFull) return this.arm(this.host.clock());
    this.isForgotten = true;
    this.host.wheel.disarm(this);
    clearImmediate(this.judging);
    this.host.forget(this);
    for (const { settle } of this.senders ?? []) settle(false);
    this.senders = undefined;
    this.dismissReceivers();
    this.tell("closed", { why, code, reason });
  }

  /** Those that wait for a message learn that there is none. */
  private dismissReceivers(): void {
    for (const receive of this.receivers ?? []) receive(undefined);
    this.receivers = undefined;
  }

  /** Calls the application's listeners; one that throws is reported, and the others are called. */
  private tell(event: string, argument: unknown): void {
    const session: EventEmitter = this.session as any;
    try {
      if (session.listenerCount(event) < 2) return void session.emit(event, argument);
    } catch (error) {
      return this.report(error, event);
    }
    for (const listener of session.rawListeners(event)) this.call(listener, event, argument);
  }

  private call(listener: Function, event: string, argument: unknown): void {
    try {
      const result = Reflect.apply(listener, this.session, [argument]);
      if (typeof result?.then === "function") result.then(undefined, (error: unknown) => this.report(error, event));
    } catch (error) {
      this.report(error, event);
    }
  }
}

function present(data: Data): string | Buffer {
  return typeof data === "string" || Buffer.isBuffer(data) ? data : Buffer.from(data.buffer, data.byteOffset, data.length);
}
