/**
 * Moves one session: its machine, its connection if it has one, its one timer, and the application's waiting calls.
 * Whatever happens changes the machine and then asks four questions in one order ({@link Driver.step}): what is due,
 * what does the application get, what was it waiting to send, what is to be written.
 */

import { type Data, decode, type Delivery, ProtocolError, toHex, Type } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { Connection, Listener } from "./connection.js";
import { PlainSession } from "./plain-session.js";
import type { ServerSession } from "./server-session.js";
import type { Rooms } from "./rooms.js";
import { type Loss, type Peer, Session } from "./session.js";

/** What a session needs of the server that holds it. */
export interface Host {
  clock(): number;
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

export class Driver implements Listener {
  readonly session: Session;
  readonly id: string;
  readonly mode: "session" | "plain";
  peer: Peer;
  request: FastifyRequest;
  private connection: Connection | undefined;
  private timer: NodeJS.Timeout | undefined;
  private timerAt = Infinity;
  /** Reads what is readable before it judges. */
  private judging: NodeJS.Immediate | undefined;
  private isStepping = false;
  private isForgotten = false;
  private senders: { data: Data; settle: (isAccepted: boolean) => void }[] = [];
  private receivers: ((data: Buffer | string | undefined) => void)[] = [];

  constructor(
    readonly machine: ServerSession | PlainSession,
    readonly host: Host,
    connection: Connection,
    peer: Peer,
  ) {
    this.mode = machine instanceof PlainSession ? "plain" : "session";
    this.id = machine instanceof PlainSession ? "" : toHex(machine.id);
    this.peer = peer;
    this.request = connection.request;
    this.connection = connection;
    connection.listener = this;
    this.session = new Session(this);
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

  message(connection: Connection, data: Data): void {
    const { machine, mode } = this;
    try {
      machine.receive(this.host.clock(), connection.id, mode === "plain" ? [Type.Data, data] : decode(data));
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

  pong(connection: Connection, nonce: number): void {
    this.machine.pong(this.host.clock(), connection.id, nonce);
  }

  wrote(connection: Connection, isAll: boolean): void {
    const now = this.host.clock();
    if (isAll) this.machine.flushed(now, connection.id);
    else this.machine.progress(now, connection.id);
    this.step();
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
    if (error.isFatal) this.write();
    connection.close(4400, error.message);
  }

  // ---- what the application does ----------------------------------------------------------------

  send(data: Data): Promise<boolean> {
    if (!this.senders.length && this.trySend(data)) return Promise.resolve(true);
    if (!this.machine.isOpen) return Promise.resolve(false);
    return new Promise((settle) => this.senders.push({ data, settle }));
  }

  trySend(data: Data): boolean {
    // Whoever waits comes first.
    const isAccepted = !this.senders.length && this.machine.send(data);
    if (isAccepted) this.step();
    return isAccepted;
  }

  sendVolatile(data: Data): void {
    this.machine.sendVolatile(data);
    this.step();
  }

  close(code: number, reason: string): void {
    this.machine.close(this.host.clock(), code, reason);
    this.step();
  }

  /** Undefined: the session is over. */
  next(): Promise<string | Buffer | undefined> {
    if (this.isForgotten) return Promise.resolve(undefined);
    return new Promise((receive) => {
      this.receivers.push(receive);
      this.step();
    });
  }

  /** The application failed: that concerns this session and no other. */
  fail(error: unknown): void {
    this.request.log.error({ err: error, session: this.id }, "a session's handler failed");
    this.close(1011, "internal error");
  }

  // ---- what the server does ---------------------------------------------------------------------

  /** Asks a client to come back elsewhere; one that is away cannot. */
  goAway(spread: number): void {
    if (this.connection) this.machine.goAway(GOING_AWAY, [0, spread], spread);
    else this.machine.evict(GOING_AWAY);
    this.step();
  }

  /** Asks the client to move to another connection within `spread`; this one is closed after `closeIn`. */
  move(reason: string, spread: number, closeIn: number): void {
    if (this.mode === "plain") this.close(1012, reason);
    else this.machine.goAway(reason, [0, spread], closeIn);
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

  /** Does what is due. A listener that calls back in is already inside. */
  step = (): void => {
    if (this.isStepping || this.isForgotten) return;
    this.isStepping = true;
    this.keepTime();
    do {
      while (this.handOver());
      this.admit();
      this.write();
    } while (this.handOver());
    this.isStepping = false;
    if (this.machine.over) this.finish();
    else this.arm();
  };

  private keepTime(): void {
    const { machine, connection, host } = this;
    const now = host.clock();
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
      this.step();
    });
  }

  /** True: the application got something, and may want more. */
  private handOver(): boolean {
    const { machine, session, receivers } = this;
    const volatile = session.listenerCount("volatile") ? machine.handOverVolatile() : undefined;
    if (volatile !== undefined) this.tell("volatile", present(volatile));
    const isFlowing = session.listenerCount("message") > 0;
    const delivery = isFlowing || receivers.length ? machine.handOver(this.host.clock()) : undefined;
    if (delivery) this.deliver(delivery, isFlowing);
    this.throttle();
    return volatile !== undefined || delivery !== undefined;
  }

  private deliver({ data, first, count }: Delivery, isFlowing: boolean): void {
    if (data === undefined) this.tell("gap", { first, count });
    else if (isFlowing) this.tell("message", present(data));
    else this.receivers.shift()!(present(data));
  }

  /** A plain client is held back by not being read; one with a session by its window. */
  private throttle(): void {
    const { machine, connection } = this;
    if (!(machine instanceof PlainSession)) return;
    if (machine.wantsInput) connection?.resume();
    else connection?.pause();
  }

  private admit(): void {
    const { senders, machine } = this;
    for (let first; (first = senders[0]); senders.shift()) {
      const isAccepted = machine.send(first.data);
      if (!isAccepted && machine.isOpen) return;
      first.settle(isAccepted);
    }
  }

  private write(): void {
    for (let connection; (connection = this.connection) && !connection.isFull; ) {
      const output = this.machine.transmit(this.host.clock(), connection.id);
      if (output === undefined) return;
      connection.put(output);
    }
  }

  /** One timer, touched only when something is due before it fires; firing early costs a comparison. */
  private arm(): void {
    const { dueAt } = this.machine;
    if (this.judging || dueAt >= this.timerAt) return;
    clearTimeout(this.timer);
    this.timerAt = dueAt;
    // What is due may have to wait for a socket that is full.
    const least = this.connection?.isFull ? 100 : 0;
    this.timer = setTimeout(this.wake, Math.max(Math.ceil(dueAt - this.host.clock()), least));
  }

  private wake = (): void => {
    this.timerAt = Infinity;
    this.step();
  };

  /** The session is over; what was to be said is said, or is not taken. */
  private finish(): void {
    const { why, code, reason } = this.machine.over!;
    // The last words wait in a socket that takes nothing: until the heartbeat's verdict, or it takes them.
    if (this.connection?.isFull) return this.arm();
    this.isForgotten = true;
    clearTimeout(this.timer);
    clearImmediate(this.judging);
    this.host.forget(this);
    for (const { settle } of this.senders.splice(0)) settle(false);
    for (const receive of this.receivers.splice(0)) receive(undefined);
    this.tell("closed", { why, code, reason });
  }

  /** Calls the application's listeners; one that throws ends its session and not the process. */
  private tell(type: string, argument: unknown): void {
    try {
      (this.session as any).emit(type, argument);
    } catch (error) {
      this.fail(error);
    }
  }
}

function present(data: Data): string | Buffer {
  return typeof data === "string" || Buffer.isBuffer(data) ? data : Buffer.from(data.buffer, data.byteOffset, data.length);
}
