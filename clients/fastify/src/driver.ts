/**
 * Drives one session: its machine, its connection while it is attached, its one deadline on the server's wheel, and the
 * pending calls of the application. Every event first changes the machine. Then {@link Driver.step} asks three questions, in
 * one order: what is delivered to the application, which waiting message is accepted, and what is written.
 *
 * While a message of the application waits to be accepted, nothing is delivered to the application. A handler that sends
 * what it receives is thereby slowed down to its client, whether it awaits `send` or not.
 */

import type { EventEmitter } from "node:events";
import { type Data, decode, type Delivery, ProtocolError, Type } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { Connection, Listener } from "./connection.js";
import type { Loss, PeerInfo } from "./events.js";
import type { Counts } from "./metrics.js";
import { toHex } from "./names.js";
import { PlainSession } from "./plain-session.js";
import type { ServerSession } from "./server-session.js";
import { TimerTask, type Wheel } from "./wheel.js";

export const GOING_AWAY = "the server is going away, come back";
export const TOO_SLOW = "too far behind what is sent to its rooms";

/** The reasons for dropping a connection, by the evidence of the heartbeat. */
const DEAD_REASONS = {
  silent: "silent: nothing came back after a heartbeat",
  frozen: "frozen: its kernel accepts bytes, and nothing answers a heartbeat",
  stalled: "stalled: a heartbeat could not leave this process",
  "not listening": "not listening: it sends messages and answers no heartbeat",
};

/** The results of all `send` calls that need not wait. */
const ACCEPTED = Promise.resolve(true);
const NOT_ACCEPTED = Promise.resolve(false);

/** What a driver needs of the server that its session belongs to. */
export interface Host {
  readonly wheel: Wheel;
  readonly counts: Counts;
  readonly isDraining: boolean;
  /** Returns whole milliseconds, which never run backwards. */
  clock(): number;
  /** Returns the owner that new credentials prove; undefined if they are refused. */
  authenticateAgain(credentials: Uint8Array, request: FastifyRequest): Promise<string | undefined>;
  /** Handles the loss of a session's connection. */
  handleLost(driver: Driver, loss: Loss): void;
  /** Counts a gap of messages that a client dropped. */
  countGap(count: number): void;
  /** Removes a session that has ended. */
  remove(driver: Driver): void;
}

/** A `send` of the application that waits for room. */
interface PendingSend {
  data: Data;
  settle: (isAccepted: boolean) => void;
}

/** One session, driven. `Handle` is what the application has of it, and what its events go to. */
export class Driver<Handle extends EventEmitter<any> = EventEmitter<any>> extends TimerTask implements Listener {
  readonly session: Handle;
  readonly id: string;
  readonly machine: ServerSession | PlainSession;
  peer: PeerInfo;
  request: FastifyRequest;
  private readonly server: Host;
  /** The machine of a plain client; undefined for a session. */
  private plain: PlainSession | undefined;
  private connection: Connection | undefined;
  /** The deadline on the wheel; 0 is none. */
  private armedAt = 0;
  /** Set while the driver reads what is readable before the heartbeat decides. */
  private reading: NodeJS.Immediate | undefined;
  private isStepping = false;
  private isFinished = false;
  /** Calls of `send` that wait for room; undefined if there are none. */
  private pendingSends: PendingSend[] | undefined;
  /** Calls of `next` that wait for a message; undefined if there are none. */
  private receivers: ((data: Buffer | string | undefined) => void)[] | undefined;

  constructor(machine: ServerSession | PlainSession, server: Host, connection: Connection, peer: PeerInfo, handle: (driver: Driver<Handle>) => Handle) {
    super();
    this.machine = machine;
    this.server = server;
    this.plain = machine instanceof PlainSession ? machine : undefined;
    this.id = machine instanceof PlainSession ? "" : toHex(machine.id);
    this.peer = peer;
    this.request = connection.request;
    this.connection = connection;
    connection.listener = this;
    this.session = handle(this);
  }

  get mode(): "session" | "plain" {
    return this.plain ? "plain" : "session";
  }

  /** Moves the session to a new connection. Closes the previous one, which was fenced, with this reason. */
  attach(connection: Connection, peer: PeerInfo, fenced: string): void {
    const old = this.connection;
    this.connection = connection;
    connection.listener = this;
    this.peer = peer;
    this.request = connection.request;
    if (old) {
      old.listener = undefined;
      old.close(4409, fenced);
    }
    this.emit("attached", this.machine.epoch);
    this.step();
  }

  // ---- events of the connection -----------------------------------------------------------------

  handleMessage(connection: Connection, data: Data, length: number): void {
    if (this.plain) return this.handlePlainMessage(this.plain, connection, data, length);
    const { machine } = this;
    try {
      machine.handleFrame(this.server.clock(), connection.id, decode(data), length);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.failConnection(connection, error);
    }
    const auth = machine.pollAuth();
    if (auth) {
      this.server.authenticateAgain(auth.credentials, this.request).then((owner) => {
        machine.handleAuthResult(auth.connection, owner);
        this.step();
      });
    }
    this.step();
  }

  /** Handles a message of a plain client. Nearly always it goes straight to the listener, and nothing else is left to do. */
  private handlePlainMessage(plain: PlainSession, connection: Connection, data: Data, length: number): void {
    const now = this.server.clock();
    const isAwaited = !this.isStepping && !this.pendingSends && this.session.listenerCount("message") > 0;
    if (!isAwaited || !plain.bypassInbox(now)) plain.handleFrame(now, connection.id, { type: Type.Data, data }, length);
    else {
      this.isStepping = true;
      this.emit("message", present(data));
      this.isStepping = false;
      if (!this.hasWork) return;
    }
    this.step(now);
  }

  /** Whether {@link step} may have something to do. */
  private get hasWork(): boolean {
    return !this.plain?.isQuiet || this.pendingSends !== undefined;
  }

  handlePong(connection: Connection, nonce: number): void {
    this.machine.handlePong(this.server.clock(), connection.id, nonce);
  }

  handleWritten(connection: Connection, isAll: boolean): void {
    const now = this.server.clock();
    if (isAll) this.machine.handleFlushed(now, connection.id);
    else this.machine.handleWriteProgress(now, connection.id);
    if (this.hasWork) this.step(now);
  }

  handleLost(connection: Connection, code: number, reason: string): void {
    const { machine, server } = this;
    if (connection !== this.connection) return;
    this.connection = undefined;
    machine.handleLost(server.clock(), connection.id, code, reason);
    // No client can come back to a server that accepts no connections.
    if (server.isDraining) machine.evict(GOING_AWAY);
    server.handleLost(this, { code, reason });
    if (!machine.closed) this.emit("detached", { code, reason });
    this.step();
  }

  private failConnection(connection: Connection, error: ProtocolError): void {
    this.request.log.debug({ err: error, session: this.id }, "the client broke the session protocol");
    this.server.counts.protocolErrors.session++;
    // If the positions of both ends differ, the session ends, and END has to go before the Close.
    if (error.isFatal) this.transmit(this.server.clock());
    connection.close(4400, error.message);
  }

  // ---- calls of the application -----------------------------------------------------------------

  send(data: Data): Promise<boolean> {
    if (this.trySend(data)) return ACCEPTED;
    if (!this.machine.isOpen) return NOT_ACCEPTED;
    return new Promise((settle) => (this.pendingSends ??= []).push({ data, settle }));
  }

  trySend(data: Data): boolean {
    const { plain, connection, pendingSends, machine } = this;
    // Messages that wait come first.
    if (pendingSends) return false;
    if (connection && plain?.bypassesOutbox && !connection.isFull) {
      connection.send(data, plain.isProbing);
      plain.accepted++;
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
    this.machine.close(this.server.clock(), code, reason);
    this.endReceivers();
    this.step();
  }

  abort(code: number, reason: string): void {
    this.machine.abort(this.server.clock(), code, reason);
    this.endReceivers();
    this.step();
  }

  /** Returns the next message; undefined once none is delivered any more. */
  next(): Promise<string | Buffer | undefined> {
    if (this.isFinished || !this.machine.delivers) return Promise.resolve(undefined);
    return new Promise((receive) => {
      (this.receivers ??= []).push(receive);
      this.step();
    });
  }

  /** Ends this session, because the application's handler failed. Other sessions are not affected. */
  fail(error: unknown): void {
    this.request.log.error({ err: error, session: this.id }, "a session's handler failed");
    this.close(1011, "internal error");
  }

  /** Reports the error of a listener. The message that it received counts as delivered, and the session goes on. */
  report(error: unknown, event: string): void {
    this.request.log.error({ err: error, session: this.id, event }, "a session's listener failed; the session goes on");
    // The failure of an `error` listener causes no further `error` event.
    if (event !== "error" && this.session.listenerCount("error")) this.emit("error", error);
  }

  // ---- calls of the server ----------------------------------------------------------------------

  /** Asks the client to come back elsewhere within `withinMs`. Ends a parked session, whose client cannot be asked. */
  goAway(withinMs: number): void {
    if (this.connection) this.machine.goAway(GOING_AWAY, { earliestMs: 0, latestMs: withinMs }, withinMs);
    else this.machine.evict(GOING_AWAY);
    this.step();
  }

  /**
   * Asks the client to move to another connection within `withinMs`, and announces that this one is closed after `closeInMs`.
   * Closes a plain client, which cannot be asked.
   */
  move(reason: string, withinMs: number, closeInMs: number): void {
    if (this.mode === "plain") this.close(1012, reason);
    else this.machine.goAway(reason, { earliestMs: 0, latestMs: withinMs }, closeInMs);
    this.step();
  }

  /** Closes the connection. A session parks. */
  closeConnection(code: number, reason: string): void {
    this.connection?.close(code, reason);
  }

  /** Closes the connection and ends the session without END. */
  closeAndEvict(code = 1012, reason = GOING_AWAY): void {
    this.connection?.close(code, reason);
    this.evict(reason);
  }

  /** Ends the session as if its resume window had passed, if it is parked. */
  expire(): void {
    if (this.connection || this.machine.closed) return;
    this.machine.handleTimeout(this.machine.pollTimeout());
    this.step();
  }

  /** Drops the connection and ends the session without END. No timer is left. */
  evict(reason = GOING_AWAY): void {
    this.connection?.abort();
    this.machine.evict(reason);
    this.step();
  }

  // ---- facts ------------------------------------------------------------------------------------

  /** The messages of both directions. */
  get messages(): number {
    const { delivered, accepted } = this.machine.traffic;
    return delivered + accepted;
  }

  get connectionId(): number | undefined {
    return this.machine.connection;
  }

  get isOpen(): boolean {
    return this.machine.isOpen;
  }

  /** The largest message that the client accepts. */
  get limit(): number {
    return this.machine.limit;
  }

  /** Ends the session of a room's member that has no room for a message. */
  evictSlow(): void {
    this.closeAndEvict(1013, TOO_SLOW);
  }

  // ---- the one loop -----------------------------------------------------------------------------

  /** Does everything that can be done now. A call from inside a listener returns at once: the outer call goes on. */
  step(now = this.server.clock()): void {
    if (this.isStepping || this.isFinished) return;
    this.isStepping = true;
    do {
      while (this.deliver(now));
      this.acceptPending();
      this.transmit(now);
      // Writing to a plain client makes room in its outbox.
    } while (this.acceptPending() || this.deliver(now));
    this.throttle();
    this.isStepping = false;
    if (this.machine.closed) this.finish();
    else this.arm(now);
  }

  fire(): void {
    this.armedAt = 0;
    if (this.isFinished) return;
    const now = this.server.clock();
    this.isStepping = true;
    this.handleTimeout(now);
    this.isStepping = false;
    if (this.hasWork) this.step(now);
    else this.arm(now);
  }

  private handleTimeout(now: number): void {
    const { machine, connection, server } = this;
    if (this.reading || machine.pollTimeout() > now) return;
    if (connection?.hasNewBytes()) machine.handleBytes(now, connection.id);
    if (connection?.hasWriteProgress()) machine.handleWriteProgress(now, connection.id);
    for (let action; (action = machine.handleTimeout(now)); ) {
      if (action.kind === "drain") return this.readFirst();
      // A session loses nothing with its connection. A plain client loses messages, and so does a client in a large message.
      const isStuck = action.kind === "not listening" && this.mode === "session" && !connection?.isMidFrame;
      if (action.kind !== "dead" && !isStuck) continue;
      if (action.kind === "dead") server.counts.deadPeers[action.evidence]++;
      return connection?.abort(4408, DEAD_REASONS[action.kind === "dead" ? action.evidence : "not listening"]);
    }
  }

  private readFirst(): void {
    this.reading = setImmediate(() => {
      this.reading = undefined;
      this.fire();
    });
  }

  /** Delivers the next messages to the application. Returns true if there may be more. */
  private deliver(now: number): boolean {
    const { machine, session } = this;
    // Pending sends come first: a delivery may make the application send more.
    if (!machine.hasInput || this.pendingSends) return false;
    const volatile = session.listenerCount("volatile") ? machine.deliverVolatile() : undefined;
    if (volatile !== undefined) {
      this.emit("volatile", present(volatile));
      if (this.pendingSends) return true;
    }
    const hasListener = session.listenerCount("message") > 0;
    const delivery = hasListener || this.receivers ? machine.deliver(now) : undefined;
    if (delivery) this.dispatch(delivery, hasListener);
    return volatile !== undefined || delivery !== undefined;
  }

  private dispatch({ data, first, count }: Delivery, hasListener: boolean): void {
    if (data === undefined) {
      this.server.countGap(count);
      this.emit("gap", { first, count });
    } else if (hasListener) this.emit("message", present(data));
    else {
      const receive = this.receivers!.shift()!;
      if (!this.receivers!.length) this.receivers = undefined;
      receive(present(data));
    }
  }

  /** Stops reading from a plain client whose messages wait. The window of a session does the same for its client. */
  private throttle(): void {
    const { plain, connection } = this;
    if (!plain || !connection) return;
    if (plain.wantsInput) connection.resume();
    else connection.pause();
  }

  /** Accepts pending sends while there is room. Returns true if a promise was settled. */
  private acceptPending(): boolean {
    const { pendingSends, machine } = this;
    if (!pendingSends) return false;
    let settled = 0;
    for (let first; (first = pendingSends[settled]); settled++) {
      const isAccepted = machine.send(first.data);
      if (!isAccepted && machine.isOpen) break;
      first.settle(isAccepted);
    }
    pendingSends.splice(0, settled);
    if (!pendingSends.length) this.pendingSends = undefined;
    return settled > 0;
  }

  /** Writes output of the machine while the connection has room. */
  private transmit(now: number): void {
    if (this.plain && !this.plain.hasOutput) return;
    for (let connection; (connection = this.connection) && !connection.isFull; ) {
      const output = this.machine.pollTransmit(now, connection.id);
      if (output === undefined) return;
      connection.transmit(output, this.machine.isProbing);
    }
  }

  /** Arms the wheel only for an earlier deadline than it has: firing too early costs one comparison. */
  private arm(now: number): void {
    const dueAt = this.machine.pollTimeout();
    if (this.reading || dueAt === Infinity || (this.armedAt && dueAt >= this.armedAt)) return;
    this.armedAt = dueAt;
    // An acknowledgement that is due may have to wait for a full socket.
    const least = this.connection?.isFull ? now + 100 : 0;
    this.server.wheel.arm(this, Math.max(dueAt, least), now);
  }

  /** Removes the session from the server, once its final writes have left or cannot leave. */
  private finish(): void {
    const { cause, code, reason } = this.machine.closed!;
    // The final writes wait behind a full socket, until it has room or the heartbeat calls the client dead.
    if (this.connection?.isFull) return this.arm(this.server.clock());
    this.isFinished = true;
    this.server.wheel.disarm(this);
    clearImmediate(this.reading);
    this.server.remove(this);
    for (const { settle } of this.pendingSends ?? []) settle(false);
    this.pendingSends = undefined;
    this.endReceivers();
    this.emit("closed", { cause, code, reason });
  }

  /** Settles all calls of {@link next}: no message follows. */
  private endReceivers(): void {
    for (const receive of this.receivers ?? []) receive(undefined);
    this.receivers = undefined;
  }

  /** Calls the application's listeners. A listener that throws is reported, and the others are called. */
  private emit(event: string, argument: unknown): void {
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

/** Returns the data as the application receives it. */
function present(data: Data): string | Buffer {
  return typeof data === "string" || Buffer.isBuffer(data) ? data : Buffer.from(data.buffer, data.byteOffset, data.length);
}
