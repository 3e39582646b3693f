/** All sessions of one registration: opens them, and drains them when the server closes. */

import { type Data, decode, encode, type Frame, type Hello, ProtocolError, type Refuse, Type } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { WebSocket } from "ws";
import { Cluster, processOf } from "./cluster.js";
import { Connection } from "./connection.js";
import { Driver, GOING_AWAY, type Host, TOO_SLOW } from "./driver.js";
import type { End, Loss, PeerInfo } from "./events.js";
import { Addresses, type Exceeded, Lifetimes, MOVE_WITHIN_MS, networkOf, Parked } from "./limits.js";
import { Counts, type Stats } from "./metrics.js";
import { Opening } from "./opening.js";
import type { Settings } from "./options.js";
import { PlainSession } from "./plain-session.js";
import { randomBytes } from "./random.js";
import { refuse, Registry } from "./registry.js";
import { Rooms } from "./rooms.js";
import { routeOf } from "./route.js";
import { Session } from "./session.js";
import { applicationName, isOurs } from "./subprotocol.js";
import { Wheel } from "./wheel.js";

/** The reasons of a refusal, for the client's log. */
const REASONS: Record<number, string> = {
  4410: "a later attempt of this client came first",
  4411: "the key cannot name a new session",
  4413: "no room now, come back later",
  4414: "the credentials cannot be judged now, come back",
  4501: "the credentials were refused",
};

/**
 * The listeners for the sessions of all routes. A listener that throws is logged; the session goes on, and the other
 * listeners are called.
 */
export interface SessionListeners {
  /** A session began. */
  session: (session: Session) => void;
  /** A session's client came back. `epoch` counts its connections. */
  resumed: (session: Session, epoch: number) => void;
  /** A session lost its connection. */
  detached: (session: Session, loss: Loss) => void;
  /** A session ended. */
  closed: (session: Session, end: End) => void;
}

/** Calls the application's handler. */
export type CallHandler = (session: Session, request: FastifyRequest) => unknown;

/** Why `authenticate` names no principal: a code of `docs/PROTOCOL.md` "Closing". */
interface AuthError {
  code: 4414 | 4501;
}

/** A client that was cut off for less than this is probably reconnecting: its session is not evicted. Milliseconds. */
const RECONNECTING_MS = 10_000;
/** How often sessions are checked for their age and idleness, at least. Milliseconds. */
const CHECK_EVERY_MS = 10_000;

/** The sessions of one registration. */
export class Server implements Host {
  isDraining = false;
  readonly rooms = new Rooms<Session>();
  readonly counts = new Counts();
  readonly sessions = new Set<Session>();
  readonly drivers = new Map<ServerMachine, Driver<Session>>();
  /** Returns the number of open WebSockets. */
  connectionCount = (): number => 0;
  readonly wheel = new Wheel(() => this.clock());
  /** The other processes of this application; undefined without the option `cluster`. */
  readonly cluster: Cluster | undefined;
  private registry: Registry;
  private names = new Map<string, Session>();
  private listeners: { [Name in keyof SessionListeners]: Set<SessionListeners[Name]> } = { session: new Set(), resumed: new Set(), detached: new Set(), closed: new Set() };
  private openings = new Set<Opening>();
  /** The parked sessions and when they were parked, the first one first. */
  private away = new Map<Driver<Session>, number>();
  private connections = 0;
  private addresses = new Addresses();
  private parked = new Parked<Driver<Session>>();
  private lifetimes = new Lifetimes<Driver<Session>>(Math.random);
  private lifetimeCheck: { timer: NodeJS.Timeout; everyMs: number } | undefined;
  private settings: Settings;

  /** `route` receives the upgrade requests that other processes pass on. */
  constructor(settings: Settings, route: ConstructorParameters<typeof Cluster>[1]) {
    this.settings = settings;
    this.cluster = settings.cluster ? new Cluster(randomBytes, route) : undefined;
    const { maxSessions: sessions, tombstones } = settings;
    this.registry = new Registry(this.clock(), { sessions, tombstones, name: this.cluster?.name }, settings, randomBytes);
  }

  /**
   * Returns milliseconds, which never run backwards. They are whole: V8 stores a whole number inside the object that has it.
   */
  clock(): number {
    return Math.floor(performance.now());
  }

  /** Opens a session for an upgraded connection. The handler is called once for each session, not for each connection. */
  open(socket: WebSocket, request: FastifyRequest, callHandler: CallHandler): Promise<void> | undefined {
    const settings = this.settingsOf(request);
    const connection = new Connection(++this.connections, socket, request, settings.maxMessage);
    this.counts.opened++;
    const load = this.countAddress(socket, request);
    const hasToWait = isOurs(connection.protocol) || settings.authenticate || load > 1;
    if (hasToWait) return this.finishOpening(new Opening(connection, this.wheel, this.clock() + settings.openingDeadlineMs), callHandler, load);
    if (!this.beginPlain(connection, "", callHandler)) this.counts.openingsFailed++;
    return undefined;
  }

  /** Waits for HELLO and for `authenticate`. */
  private async finishOpening(opening: Opening, callHandler: CallHandler, load: number): Promise<void> {
    const { connection } = opening;
    this.openings.add(opening);
    const isOpened = isOurs(connection.protocol) ? await this.openSession(opening, callHandler, load) : await this.openPlain(opening, callHandler, load);
    if (!isOpened) this.counts.openingsFailed++;
    this.openings.delete(opening);
    opening.release();
  }

  /** Returns the settings of a request's route. */
  private settingsOf(request: FastifyRequest): Settings {
    return routeOf(request.raw) ?? this.settings;
  }

  /** Counts a connection for its address until it closes. Returns how many the address has, divided by `maxPerIp`. */
  private countAddress(socket: WebSocket, request: FastifyRequest): number {
    const { maxPerIp } = this.settings;
    if (maxPerIp === undefined) return 0;
    const address = networkOf(request.ip ?? "");
    socket.once("close", () => this.addresses.leave(address));
    return this.addresses.enter(address) / maxPerIp;
  }

  private async openSession(opening: Opening, callHandler: CallHandler, load: number): Promise<boolean> {
    const { connection } = opening;
    // A client that resumes counts twice for a moment. With twice as many connections, the server does not wait for HELLO.
    if (load > 2) return this.refuseAddress(opening);
    const first = await opening.first();
    if (opening.isLost) return false;
    if (first === undefined) return opening.refuse(4412, "no HELLO in time");
    const hello = helloOf(first);
    if (hello instanceof ProtocolError) {
      this.counts.protocolErrors.session++;
      return opening.refuse(4400, hello.message);
    }
    if (this.cluster && (await this.passOn(opening, hello, first))) return true;
    if (opening.isLost) return false;
    const principal = this.settingsOf(connection.request).authenticate ? await this.principalOf(opening, hello.credentials) : "";
    if (opening.isLost) return false;
    if (typeof principal !== "string") return this.refuse(opening, refuse(principal.code, principal.code === 4414), "credentials");
    if (this.isDraining) return this.refuse(opening, refuse(4413, true), "draining");
    return this.attach(opening, hello, principal, callHandler, load);
  }

  /** Attaches a connection to the session that its HELLO names, or to a new one. */
  private attach(opening: Opening, hello: Hello, principal: string, callHandler: CallHandler, load: number): boolean {
    const { connection } = opening;
    const owner = ownerOf(connection.request, principal);
    if (load > 1 && !this.registry.holds(owner, hello)) return this.refuseAddress(opening);
    const ask = () => this.registry.handleHello(this.clock(), connection.id, owner, hello, this.settingsOf(connection.request));
    let answer = ask();
    if (answer.kind === "refused" && answer.refuse.code === 4413 && this.evictOldest()) answer = ask();
    if (answer.kind === "refused") return this.refuse(opening, answer.refuse, answer.refuse.code === 4413 ? "full" : undefined);
    const { session, isNew, fenced } = answer;
    if (isNew) {
      if (hello.resume) this.counts.gaps.session++;
      this.counts.attaches[hello.resume ? "lost" : "new"]++;
      this.begin(session, connection, principal, callHandler);
    } else this.resume(session, connection, principal, fenced?.reason ?? "");
    return true;
  }

  /** Relays a connection to the process that its token names, if that is another process and still runs. */
  private async passOn(opening: Opening, hello: Hello, first: Data): Promise<boolean> {
    const { cluster } = this;
    if (!cluster || !hello.resume || this.isDraining) return false;
    const name = processOf(hello.resume.token);
    if (cluster.isHere(name)) return false;
    const isPassed = await opening.inTime(cluster.pass(opening.connection, name, first, this.settings.openingDeadlineMs, () => opening.isOpen));
    if (isPassed) this.counts.passedOn++;
    return !!isPassed;
  }

  private resume(session: ServerMachine, connection: Connection, principal: string, fenced: string): void {
    const driver = this.drivers.get(session);
    if (!driver) return;
    this.counts.attaches.resumed++;
    this.away.delete(driver);
    this.parked.leave(driver);
    driver.attach(connection, peerOf(connection, principal), fenced);
    connection.request.log.debug({ session: driver.id, epoch: session.epoch }, "a client is back");
    this.emit("resumed", driver.session, session.epoch);
  }

  private async openPlain(opening: Opening, callHandler: CallHandler, load: number): Promise<boolean> {
    const { connection } = opening;
    if (load > 1) return this.refuseAddress(opening);
    const principal = await this.principalOf(opening, undefined);
    if (opening.isLost) return false;
    if (typeof principal !== "string") {
      this.counts.refused.credentials++;
      return opening.refuse(principal.code, REASONS[principal.code]!);
    }
    return this.beginPlain(connection, principal, callHandler);
  }

  private beginPlain(connection: Connection, principal: string, callHandler: CallHandler): boolean {
    if (this.isDraining || !(this.registry.hasRoom || this.evictOldest())) {
      this.counts.refused[this.isDraining ? "draining" : "full"]++;
      connection.close(4413, REASONS[4413]!);
      return false;
    }
    this.registry.live++;
    const session = new PlainSession(this.clock(), this.settingsOf(connection.request), connection.id, Math.random);
    this.begin(session, connection, principal, callHandler);
    return true;
  }

  private begin(machine: ServerMachine, connection: Connection, principal: string, callHandler: CallHandler): void {
    const driver = new Driver<Session>(machine, this, connection, peerOf(connection, principal), (driver) => new Session(driver, this.rooms));
    this.drivers.set(machine, driver);
    this.sessions.add(driver.session);
    if (driver.id) this.names.set(driver.id, driver.session);
    this.watchLifetime(driver);
    this.emit("session", driver.session);
    try {
      // The handler may be an async function, which fails later.
      const result: any = callHandler(driver.session, connection.request);
      if (typeof result?.then === "function") result.then(undefined, (error: unknown) => driver.fail(error));
    } catch (error) {
      driver.fail(error);
    }
    driver.step();
  }

  private refuse(opening: Opening, answer: Refuse, count: keyof Counts["refused"] | undefined): false {
    if (count) this.counts.refused[count]++;
    this.counts.attaches.refused++;
    opening.connection.send(encode(answer));
    return opening.refuse(answer.code, REASONS[answer.code] ?? "the session has ended");
  }

  private refuseAddress(opening: Opening): false {
    const { connection } = opening;
    this.counts.refused.address++;
    connection.request.log.info({ address: connection.request.ip }, "an address has more connections than maxPerIp: one is refused");
    if (isOurs(connection.protocol)) connection.send(encode(refuse(4413, true)));
    return opening.refuse(4413, "too many connections from this address, come back later");
  }

  // ---- authentication ---------------------------------------------------------------------------

  private async principalOf(opening: Opening, credentials: Uint8Array | undefined): Promise<string | AuthError> {
    return (await opening.inTime(this.authenticate(credentials, opening.connection.request))) ?? { code: 4414 };
  }

  private async authenticate(credentials: Uint8Array | undefined, request: FastifyRequest): Promise<string | AuthError> {
    const { authenticate } = this.settingsOf(request);
    if (!authenticate) return "";
    try {
      const principal = await authenticate(credentials && Buffer.from(credentials), request);
      if (typeof principal === "string") return principal;
      if (principal === null || principal === undefined) return { code: 4501 };
      throw new TypeError(`authenticate returned ${typeof principal}, not a string, null or undefined`);
    } catch (error) {
      request.log.error({ err: error }, "authenticate failed: the client is asked to come back");
      return { code: 4414 };
    }
  }

  /**
   * Returns the owner that credentials prove which a client sent on a live session; undefined if they are refused. A server
   * without `authenticate` refuses all of them.
   */
  async authenticateAgain(credentials: Uint8Array, request: FastifyRequest): Promise<string | undefined> {
    const { authenticate, openingDeadlineMs } = this.settingsOf(request);
    if (!authenticate) return undefined;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<undefined>((settle) => (timer = setTimeout(settle, openingDeadlineMs, undefined).unref()));
    const principal = await Promise.race([this.authenticate(credentials, request), late]);
    clearTimeout(timer);
    return typeof principal === "string" ? ownerOf(request, principal) : undefined;
  }

  // ---- events of sessions -----------------------------------------------------------------------

  /** Handles the loss of a session's connection. The session waits for its client, unless it has ended. */
  handleLost(driver: Driver<Session>, loss: Loss): void {
    const { request, id, mode, session, machine } = driver;
    const isFault = loss.code === 1006 || loss.code === 4408;
    request.log[mode === "session" || isFault ? "info" : "debug"]({ session: id, ...loss }, "a client's connection is gone");
    if (machine.closed) return;
    this.away.set(driver, this.clock());
    const { maxParkedPerIp } = this.settings;
    const oldest = maxParkedPerIp !== undefined && this.parked.enter(driver, networkOf(driver.peer.address ?? ""), maxParkedPerIp);
    if (oldest) this.evict(oldest);
    this.emit("detached", session, loss);
  }

  /** Counts a gap of messages that a client dropped. */
  countGap(count: number): void {
    this.counts.gaps.client++;
    // The session numbers these messages, but none was delivered.
    this.counts.messages.in -= count;
  }

  /**
   * Evicts the session that was parked first, unless its client is probably reconnecting. Returns whether there is room now.
   */
  private evictOldest(): boolean {
    const [oldest] = this.away;
    if (!oldest || this.clock() - oldest[1] < RECONNECTING_MS) return false;
    this.evict(oldest[0]);
    return true;
  }

  private evict(driver: Driver<Session>): void {
    this.counts.evicted.full++;
    driver.evict("its place was needed");
  }

  /** Removes a session that has ended. */
  remove(driver: Driver<Session>): void {
    const { machine, session, id } = driver;
    const { cause, code, reason } = machine.closed!;
    const { delivered, accepted } = machine.traffic;
    this.counts.messages.in += delivered;
    this.counts.messages.out += accepted;
    if (cause === "expired") this.counts.expired++;
    if (reason === TOO_SLOW) this.counts.evicted.slow++;
    else if (cause === "evicted" && this.isDraining) this.counts.evicted.draining++;
    this.away.delete(driver);
    this.parked.leave(driver);
    this.drivers.delete(machine);
    this.sessions.delete(session);
    if (id) this.names.delete(id);
    this.rooms.leaveAll(session);
    this.lifetimes.forget(driver);
    if (!this.lifetimes.size) this.stopLifetimeCheck();
    if (machine instanceof PlainSession) this.registry.live--;
    else this.registry.bury(this.clock(), machine);
    this.emit("closed", session, { cause, code, reason });
  }

  // ---- the application's view of all sessions ---------------------------------------------------

  /** Returns the session with this id. */
  find(id: string): Session | undefined {
    return this.names.get(id);
  }

  /** Sums the figures of all sessions. */
  stats(): Stats {
    const { counts } = this;
    const messages = { ...counts.messages };
    const sessions = { attached: 0, parked: 0, plain: 0 };
    let queueBytes = 0;
    for (const { machine, mode } of this.drivers.values()) {
      const { delivered, accepted } = machine.traffic;
      messages.in += delivered;
      messages.out += accepted;
      queueBytes += machine.queueBytes;
      if (mode === "plain") sessions.plain++;
      else if (machine.connection === undefined) sessions.parked++;
      else sessions.attached++;
    }
    return { ...structuredClone(counts), messages, sessions, queueBytes, connections: this.connectionCount(), rooms: this.rooms.names.length, isDraining: this.isDraining };
  }

  /** Adds a listener. Returns a function that removes it. */
  listen<Name extends keyof SessionListeners>(name: Name, listener: SessionListeners[Name]): () => void {
    if (typeof listener !== "function") throw new TypeError("a listener is a function");
    this.listeners[name].add(listener);
    return () => void this.listeners[name].delete(listener);
  }

  private emit<Name extends keyof SessionListeners>(name: Name, ...args: Parameters<SessionListeners[Name]>): void {
    const fail = (error: unknown) => args[0].request.log.error({ err: error, session: args[0].id }, `a listener of ${name} failed`);
    for (const listener of this.listeners[name]) {
      try {
        Promise.resolve(Reflect.apply(listener, undefined, args)).catch(fail);
      } catch (error) {
        fail(error);
      }
    }
  }

  // ---- idle sessions and old connections --------------------------------------------------------

  private watchLifetime(driver: Driver<Session>): void {
    const { idleTimeoutMs, maxLifetimeMs } = this.settingsOf(driver.request);
    if (idleTimeoutMs === undefined && maxLifetimeMs === undefined) return;
    this.lifetimes.watch(this.clock(), driver, idleTimeoutMs, maxLifetimeMs);
    const everyMs = Math.min(this.lifetimes.interval, CHECK_EVERY_MS);
    if (!this.lifetimes.size || this.lifetimeCheck?.everyMs === everyMs) return;
    this.stopLifetimeCheck();
    const timer = setInterval(() => this.lifetimes.check(this.clock(), this.handleExceeded), everyMs).unref();
    this.lifetimeCheck = { timer, everyMs };
  }

  private stopLifetimeCheck(): void {
    clearInterval(this.lifetimeCheck?.timer);
    this.lifetimeCheck = undefined;
  }

  private handleExceeded = (driver: Driver<Session>, exceeded: Exceeded): void => {
    if (exceeded === "overstayed") return driver.closeConnection(1012, "this connection is old, come back");
    this.counts.sentAway[exceeded === "idle" ? "idle" : "lifetime"]++;
    driver.request.log.info({ session: driver.id }, exceeded === "idle" ? "a session is ended: idleTimeoutMs" : "a client is asked to move: maxLifetimeMs");
    if (exceeded === "idle") driver.close(4500, "no message for too long");
    else driver.move("this connection is old, come back", MOVE_WITHIN_MS / 3, MOVE_WITHIN_MS);
  };

  // ---- draining ---------------------------------------------------------------------------------

  /**
   * Asks all clients to come back elsewhere, and closes the remaining connections with 1012 after `drainMs`. A session is
   * asked at once and its client waits for a random part of that time. A plain client cannot be asked, so the server spreads
   * the closing of plain connections over that time.
   */
  async drain(): Promise<void> {
    const { drainMs } = this.settings;
    this.isDraining = true;
    const drivers = [...this.drivers.values()];
    for (const driver of drivers) driver.goAway(drainMs);
    await this.waitUntilEmpty(drainMs, drivers.filter((driver) => driver.mode === "plain"));
    for (const driver of [...this.drivers.values()]) driver.closeAndEvict();
    for (const opening of this.openings) opening.refuse(1012, GOING_AWAY);
    this.cluster?.closeRelays(1012, GOING_AWAY);
  }

  /** Waits until all sessions have ended, at most for `drainMs`. Closes the plain ones meanwhile, one after the other. */
  private async waitUntilEmpty(drainMs: number, plain: Driver<Session>[]): Promise<void> {
    const from = this.clock();
    for (let closed = 0, passed = 0; this.drivers.size && passed < drainMs; passed = this.clock() - from) {
      for (; closed < plain.length && closed <= (plain.length * passed) / drainMs; closed++) plain[closed]!.close(1012, GOING_AWAY);
      await new Promise((wake) => setTimeout(wake, Math.min(50, drainMs - passed)));
    }
  }
}

type ServerMachine = Driver["machine"];

function helloOf(first: Data): Hello | ProtocolError {
  try {
    const frame: Frame = decode(first);
    return frame?.type === Type.Hello ? frame : new ProtocolError("no HELLO");
  } catch (error) {
    if (error instanceof ProtocolError) return error;
    throw error;
  }
}

/** Returns the owner of a session: the principal and the path. Another path has other hooks, so it resumes no session. */
function ownerOf(request: FastifyRequest, principal: string): string {
  return `${request.url.split("?")[0]}\n${principal}`;
}

function peerOf({ protocol, request }: Connection, principal: string): PeerInfo {
  return { address: request.ip, subprotocol: applicationName(protocol), principal };
}
