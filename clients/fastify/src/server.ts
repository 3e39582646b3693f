/** All sessions of one Fastify instance: who is let in, and how everybody is sent away. */

import { type Data, decode, encode, type Frame, type Hello, ProtocolError, type Refuse, Type } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { WebSocket } from "ws";
import { Cluster, processOf } from "./cluster.js";
import { Connection } from "./connection.js";
import { Driver, GOING_AWAY, type Host, TOO_SLOW } from "./driver.js";
import { Opening } from "./opening.js";
import { Addresses, Lifetimes, MOVE_WITHIN, networkOf, Parked, type Verdict } from "./limits.js";
import type { Presence } from "./mainstay.js";
import { Counts } from "./metrics.js";
import type { Settings } from "./options.js";
import { PlainSession } from "./plain-session.js";
import { randomBytes } from "./random.js";
import { refuse, Registry } from "./registry.js";
import { Rooms } from "./rooms.js";
import { routeOf } from "./route.js";
import type { Loss, Peer, Session } from "./session.js";
import { applicationName, isOurs } from "./subprotocol.js";
import { Wheel } from "./wheel.js";

/** Why somebody is refused, in words for a log at the other end. */
const WORDS: Record<number, string> = {
  4410: "a later attempt of this client came first",
  4411: "the key cannot name a new session",
  4413: "no room now, come back later",
  4414: "the credentials cannot be judged now, come back",
  4501: "the credentials were refused",
};

/** Calls the application's handler. */
export type Begin = (session: Session, request: FastifyRequest) => unknown;

/** Why a client gets no session: a code of `docs/PROTOCOL.md` "Closing". */
interface Denial {
  code: 4414 | 4501;
}

/** Who was cut off a moment ago is on the way back, and keeps its place. */
const ON_THE_WAY_BACK = 10_000;

export class Server implements Host {
  isDraining = false;
  readonly rooms = new Rooms();
  readonly counts = new Counts();
  readonly sessions = new Set<Session>();
  readonly drivers = new Map<ServerMachine, Driver>();
  /** How many WebSockets are open. */
  connectionCount = (): number => 0;
  readonly wheel = new Wheel(() => this.clock());
  /** The other processes, if there are any. */
  readonly cluster: Cluster | undefined;
  private registry: Registry;
  private names = new Map<string, Session>();
  private listeners: { [Name in keyof Presence]: Set<Presence[Name]> } = { session: new Set(), resumed: new Set(), detached: new Set(), closed: new Set() };
  private openings = new Set<Opening>();
  /** Those without a connection, and since when: the longest first. */
  private away = new Map<Driver, number>();
  private connections = 0;
  private addresses = new Addresses();
  private parked = new Parked<Driver>();
  private lifetimes = new Lifetimes<Driver>(Math.random);
  private ages: { timer: NodeJS.Timeout; every: number } | undefined;
  private settings: Settings;

  /** `route`: takes an upgrade that another process passed on. */
  constructor(settings: Settings, route: ConstructorParameters<typeof Cluster>[1]) {
    this.settings = settings;
    this.cluster = settings.cluster ? new Cluster(randomBytes, route) : undefined;
    const { maxSessions: sessions, tombstones } = settings;
    this.registry = new Registry(this.clock(), { sessions, tombstones, name: this.cluster?.name }, settings, randomBytes);
  }

  /** Milliseconds that never run backwards. Whole ones: V8 keeps such a number in the object that has it. */
  clock(): number {
    return Math.floor(performance.now());
  }

  /** Takes a connection that was upgraded. The handler is called once for each session, not for each connection. */
  open(socket: WebSocket, request: FastifyRequest, begin: Begin): Promise<void> | undefined {
    const settings = this.settingsOf(request);
    const connection = new Connection(++this.connections, socket, request, settings.maxMessage);
    this.counts.opened++;
    const crowd = this.countAddress(socket, request);
    const isWaitedFor = isOurs(connection.protocol) || settings.authenticate || crowd > 1;
    if (isWaitedFor) return this.wait(new Opening(connection, this.wheel, this.clock() + settings.openingDeadline), begin, crowd);
    if (!this.beginPlain(connection, "", begin)) this.counts.openingsFailed++;
    return undefined;
  }

  /** For HELLO, and for the verdict on who the client is. */
  private async wait(opening: Opening, begin: Begin, crowd: number): Promise<void> {
    const { connection } = opening;
    this.openings.add(opening);
    const isBegun = isOurs(connection.protocol) ? await this.openSession(opening, begin, crowd) : await this.openPlain(opening, begin, crowd);
    if (!isBegun) this.counts.openingsFailed++;
    this.openings.delete(opening);
    opening.handOn();
  }

  /** What the route of a request was registered with. */
  private settingsOf(request: FastifyRequest): Settings {
    return routeOf(request.raw) ?? this.settings;
  }

  /** How many times as many connections as it may have the address of this one has, until it closes. */
  private countAddress(socket: WebSocket, request: FastifyRequest): number {
    const { maxPerIp } = this.settings;
    if (maxPerIp === undefined) return 0;
    const address = networkOf(request.ip ?? "");
    socket.once("close", () => this.addresses.leave(address));
    return this.addresses.enter(address) / maxPerIp;
  }

  private async openSession(opening: Opening, begin: Begin, crowd: number): Promise<boolean> {
    const { connection } = opening;
    // A client that resumes is counted twice for a moment; so many that say nothing of themselves are not waited for.
    if (crowd > 2) return this.refuseCrowd(opening);
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
    const principal = this.settingsOf(connection.request).authenticate ? await this.principal(opening, hello.credentials, connection.request) : "";
    if (opening.isLost) return false;
    if (typeof principal !== "string") return this.refuse(opening, refuse(principal.code, principal.code === 4414).refuse, "credentials");
    if (this.isDraining) return this.refuse(opening, refuse(4413, true).refuse, "draining");
    const owner = ownerOf(connection.request, principal);
    if (crowd > 1 && !this.registry.holds(owner, hello)) return this.refuseCrowd(opening);
    const ask = () => this.registry.hello(this.clock(), connection.id, owner, hello, this.settingsOf(connection.request));
    let answer = ask();
    if (answer.refuse?.code === 4413 && this.giveUpOldest()) answer = ask();
    if (answer.refuse) return this.refuse(opening, answer.refuse, answer.refuse.code === 4413 ? "full" : undefined);
    const { session, isNew, fenced } = answer;
    if (isNew) {
      if (hello.resume) this.counts.gaps.session++;
      this.counts.attaches[hello.resume ? "lost" : "new"]++;
      this.begin(session, connection, principal, begin);
    } else this.resume(session, connection, principal, fenced?.reason ?? "");
    return true;
  }

  /** To the process that the token names, if that is another one and still there. */
  private async passOn(opening: Opening, hello: Hello, first: Data): Promise<boolean> {
    const { cluster } = this;
    if (!cluster || !hello.resume || this.isDraining) return false;
    const name = processOf(hello.resume.token);
    if (cluster.isHere(name)) return false;
    const isPassed = await opening.inTime(cluster.pass(opening.connection, name, first, this.settings.openingDeadline, () => opening.isOpen));
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
    this.tell("resumed", driver.session, session.epoch);
  }

  private async openPlain(opening: Opening, begin: Begin, crowd: number): Promise<boolean> {
    const { connection } = opening;
    if (crowd > 1) return this.refuseCrowd(opening);
    const principal = await this.principal(opening, undefined, connection.request);
    if (opening.isLost) return false;
    if (typeof principal !== "string") {
      this.counts.refused.credentials++;
      return opening.refuse(principal.code, WORDS[principal.code]!);
    }
    return this.beginPlain(connection, principal, begin);
  }

  private beginPlain(connection: Connection, principal: string, begin: Begin): boolean {
    if (this.isDraining || !(this.registry.hasRoom || this.giveUpOldest())) {
      this.counts.refused[this.isDraining ? "draining" : "full"]++;
      connection.close(4413, WORDS[4413]!);
      return false;
    }
    this.registry.live++;
    const session = new PlainSession(this.clock(), this.settingsOf(connection.request), connection.id, Math.random);
    this.begin(session, connection, principal, begin);
    return true;
  }

  private begin(machine: ServerMachine, connection: Connection, principal: string, begin: Begin): void {
    const driver = new Driver(machine, this, connection, peerOf(connection, principal));
    this.drivers.set(machine, driver);
    this.sessions.add(driver.session);
    if (driver.id) this.names.set(driver.id, driver.session);
    this.watchAge(driver);
    this.tell("session", driver.session);
    try {
      // It may be an async function, whose failure comes later.
      const begun: any = begin(driver.session, connection.request);
      if (typeof begun?.then === "function") begun.then(undefined, (error: unknown) => driver.fail(error));
    } catch (error) {
      driver.fail(error);
    }
    driver.step();
  }

  private refuse(opening: Opening, answer: Refuse, why: keyof Counts["refused"] | undefined): false {
    if (why) this.counts.refused[why]++;
    this.counts.attaches.refused++;
    opening.connection.put(encode(answer));
    return opening.refuse(answer.code, WORDS[answer.code] ?? "the session has ended");
  }

  private refuseCrowd(opening: Opening): false {
    const { connection } = opening;
    this.counts.refused.address++;
    connection.request.log.info({ address: connection.request.ip }, "more connections of one address than maxPerIp: one is refused");
    if (isOurs(connection.protocol)) connection.put(encode(refuse(4413, true).refuse));
    return opening.refuse(4413, "too many connections from this address, come back later");
  }

  // ---- who is it --------------------------------------------------------------------------------

  private async principal(opening: Opening, credentials: Uint8Array | undefined, request: FastifyRequest): Promise<string | Denial> {
    return (await opening.inTime(this.ask(credentials, request))) ?? { code: 4414 };
  }

  private async ask(credentials: Uint8Array | undefined, request: FastifyRequest): Promise<string | Denial> {
    const { authenticate } = this.settingsOf(request);
    if (!authenticate) return "";
    try {
      const principal = await authenticate(credentials && Buffer.from(credentials), request);
      if (typeof principal === "string") return principal;
      if (principal === null || principal === undefined) return { code: 4501 };
      throw new TypeError(`authenticate returned ${typeof principal}, not a string, null or undefined`);
    } catch (error) {
      request.log.error({ err: error }, "authenticate failed: the client is told to come back");
      return { code: 4414 };
    }
  }

  /** Of credentials that came on a live session. A server that judges nothing refuses. */
  async judge(credentials: Uint8Array, request: FastifyRequest): Promise<string | undefined> {
    const { authenticate, openingDeadline } = this.settingsOf(request);
    if (!authenticate) return undefined;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<undefined>((settle) => (timer = setTimeout(settle, openingDeadline, undefined).unref()));
    const principal = await Promise.race([this.ask(credentials, request), late]);
    clearTimeout(timer);
    return typeof principal === "string" ? ownerOf(request, principal) : undefined;
  }

  // ---- what becomes of sessions -----------------------------------------------------------------

  lost(driver: Driver, loss: Loss): void {
    const { request, id, mode, session, machine } = driver;
    const isFault = loss.code === 1006 || loss.code === 4408;
    request.log[mode === "session" || isFault ? "info" : "debug"]({ session: id, ...loss }, "a client's connection is gone");
    if (machine.over) return;
    this.away.set(driver, this.clock());
    const { maxParkedPerIp } = this.settings;
    const giving = maxParkedPerIp !== undefined && this.parked.enter(driver, networkOf(driver.peer.address ?? ""), maxParkedPerIp);
    if (giving) this.giveUpPlace(giving);
    this.tell("detached", session, loss);
  }

  judged(_driver: Driver, evidence: "silent" | "frozen" | "stalled"): void {
    this.counts.deadPeers[evidence]++;
  }

  refused(_driver: Driver): void {
    this.counts.protocolErrors.session++;
  }

  dropped(count: number): void {
    this.counts.gaps.client++;
    // The session numbers them like messages, and nobody was handed them.
    this.counts.messages.in -= count;
  }

  /** Makes room, if somebody has been away for so long that nobody who was just cut off gives up their place. */
  private giveUpOldest(): boolean {
    const [oldest] = this.away;
    if (!oldest || this.clock() - oldest[1] < ON_THE_WAY_BACK) return false;
    this.giveUpPlace(oldest[0]);
    return true;
  }

  private giveUpPlace(driver: Driver): void {
    this.counts.evicted.full++;
    driver.stop("its place was needed");
  }

  forget(driver: Driver): void {
    const { machine, session, id } = driver;
    const { why, code, reason } = machine.over!;
    const [received, sent] = machine.traffic;
    this.counts.messages.in += received;
    this.counts.messages.out += sent;
    if (why === "expired") this.counts.expired++;
    if (reason === TOO_SLOW) this.counts.evicted.slow++;
    else if (why === "evicted" && this.isDraining) this.counts.evicted.draining++;
    this.away.delete(driver);
    this.parked.leave(driver);
    this.drivers.delete(machine);
    this.sessions.delete(session);
    if (id) this.names.delete(id);
    this.rooms.leaveAll(session);
    this.lifetimes.forget(driver);
    if (!this.lifetimes.size) this.stopWatching();
    if (machine instanceof PlainSession) this.registry.live--;
    else this.registry.bury(this.clock(), machine);
    this.tell("closed", session, { why, code, reason });
  }

  // ---- who asks for sessions --------------------------------------------------------------------

  find(id: string): Session | undefined {
    return this.names.get(id);
  }

  /** Returns what removes the listener. */
  listen<Name extends keyof Presence>(name: Name, listener: Presence[Name]): () => void {
    if (typeof listener !== "function") throw new TypeError("a listener is a function");
    this.listeners[name].add(listener);
    return () => void this.listeners[name].delete(listener);
  }

  private tell<Name extends keyof Presence>(name: Name, ...args: Parameters<Presence[Name]>): void {
    const fail = (error: unknown) => args[0].request.log.error({ err: error, session: args[0].id }, `a listener of ${name} failed`);
    for (const listener of this.listeners[name]) {
      try {
        Promise.resolve(Reflect.apply(listener, undefined, args)).catch(fail);
      } catch (error) {
        fail(error);
      }
    }
  }

  // ---- idle and old -----------------------------------------------------------------------------

  private watchAge(driver: Driver): void {
    const { idleTimeout, maxLifetime } = this.settingsOf(driver.request);
    if (idleTimeout === undefined && maxLifetime === undefined) return;
    this.lifetimes.watch(this.clock(), driver, idleTimeout, maxLifetime);
    const every = Math.min(this.lifetimes.interval, 10_000);
    if (!this.lifetimes.size || this.ages?.every === every) return;
    this.stopWatching();
    const timer = setInterval(() => this.lifetimes.look(this.clock(), this.sendAway), every).unref();
    this.ages = { timer, every };
  }

  private stopWatching(): void {
    clearInterval(this.ages?.timer);
    this.ages = undefined;
  }

  private sendAway = (driver: Driver, verdict: Verdict): void => {
    if (verdict === "overstayed") return driver.closeConnection(1012, "this connection is old, come back");
    this.counts.sentAway[verdict === "idle" ? "idle" : "lifetime"]++;
    driver.request.log.info({ session: driver.id }, verdict === "idle" ? "a session is ended: idleTimeout" : "a client is asked to move: maxLifetime");
    if (verdict === "idle") driver.close(4500, "no message for too long");
    else driver.move("this connection is old, come back", MOVE_WITHIN / 3, MOVE_WITHIN);
  };

  // ---- the end ----------------------------------------------------------------------------------

  /**
   * Sends everybody away: sessions are told at once and spread themselves, plain ones cannot be told, so their closing
   * is what is spread. Whoever is still there after `drain` is closed with 1012.
   */
  async drain(): Promise<void> {
    const { drain } = this.settings;
    this.isDraining = true;
    const drivers = [...this.drivers.values()];
    for (const driver of drivers) driver.goAway(drain);
    await this.waitForLeavers(drain, drivers.filter((driver) => driver.mode === "plain"));
    for (const driver of [...this.drivers.values()]) driver.leave();
    for (const opening of this.openings) opening.refuse(1012, GOING_AWAY);
    this.cluster?.leave(1012, GOING_AWAY);
  }

  /** Until nobody is left, at most for `drain`; meanwhile the plain ones are closed, one after the other. */
  private async waitForLeavers(drain: number, plain: Driver[]): Promise<void> {
    const from = this.clock();
    for (let closed = 0, passed = 0; this.drivers.size && passed < drain; passed = this.clock() - from) {
      for (; closed < plain.length && closed <= (plain.length * passed) / drain; closed++) plain[closed]!.close(1012, GOING_AWAY);
      await new Promise((wake) => setTimeout(wake, Math.min(50, drain - passed)));
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

/** A session is resumed only where it was opened, by who opened it: another path has other hooks. */
function ownerOf(request: FastifyRequest, principal: string): string {
  return `${request.url.split("?")[0]}\n${principal}`;
}

function peerOf({ protocol, request }: Connection, principal: string): Peer {
  return { address: request.ip, subprotocol: applicationName(protocol), principal };
}
