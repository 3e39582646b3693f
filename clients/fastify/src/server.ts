/** All sessions of one Fastify instance: who is let in, and how everybody is sent away. */

import { randomBytes } from "node:crypto";
import { type Bytes, type Data, decode, encode, type Frame, type Hello, ProtocolError, type Refuse, Type } from "@mainstay/client/protocol";
import type { FastifyRequest } from "fastify";
import type { WebSocket } from "ws";
import { Connection } from "./connection.js";
import { Driver, GOING_AWAY, type Host } from "./driver.js";
import { Opening } from "./opening.js";
import type { Settings } from "./options.js";
import { PlainSession } from "./plain-session.js";
import { refuse, Registry } from "./registry.js";
import type { Peer, Session } from "./session.js";
import { applicationName, isOurs } from "./subprotocol.js";
import { Wheel } from "./wheel.js";

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
  readonly wheel = new Wheel(() => this.clock());
  private registry: Registry;
  private drivers = new Map<ServerMachine, Driver>();
  private openings = new Set<Opening>();
  /** Those without a connection, and since when: the longest first. */
  private away = new Map<Driver, number>();
  private connections = 0;
  private settings: Settings;

  constructor(settings: Settings) {
    this.settings = settings;
    const { maxSessions: sessions, tombstones } = settings;
    this.registry = new Registry(this.clock(), { sessions, tombstones }, settings, (length) => randomBytes(length) as Bytes);
  }

  /** Milliseconds that never run backwards. Whole ones: V8 keeps such a number in the object that has it. */
  clock(): number {
    return Math.floor(performance.now());
  }

  /** Takes a connection that was upgraded. The handler is called once for each session, not for each connection. */
  async open(socket: WebSocket, request: FastifyRequest, begin: Begin): Promise<void> {
    const connection = new Connection(++this.connections, socket, request, this.settings.maxMessage);
    const opening = new Opening(connection, this.wheel, this.clock() + this.settings.openingDeadline);
    this.openings.add(opening);
    if (isOurs(connection.protocol)) await this.openSession(opening, begin);
    else await this.openPlain(opening, begin);
    this.openings.delete(opening);
    opening.handOn();
  }

  private async openSession(opening: Opening, begin: Begin): Promise<void> {
    const { connection } = opening;
    const first = await opening.first();
    if (opening.isLost) return;
    if (first === undefined) return opening.refuse(4412, "no HELLO in time");
    const hello = helloOf(first);
    if (hello instanceof ProtocolError) return opening.refuse(4400, hello.message);
    const principal = await this.principal(opening, hello[8], connection.request);
    if (opening.isLost) return;
    if (typeof principal !== "string") return this.refuse(opening, refuse(principal.code, principal.code === 4414).refuse);
    if (this.isDraining) return this.refuse(opening, refuse(4413, true).refuse);
    const ask = () => this.registry.hello(this.clock(), connection.id, ownerOf(connection.request, principal), hello);
    let answer = ask();
    if (answer.refuse?.[1] === 4413 && this.giveUpOldest()) answer = ask();
    if (answer.refuse) return this.refuse(opening, answer.refuse);
    const { session, isNew, fenced } = answer;
    if (isNew) this.begin(session, connection, principal, begin);
    else this.resume(session, connection, principal, fenced?.reason ?? "");
  }

  private resume(session: ServerMachine, connection: Connection, principal: string, fenced: string): void {
    const driver = this.drivers.get(session);
    if (!driver) return;
    this.away.delete(driver);
    driver.attach(connection, peerOf(connection, principal), fenced);
  }

  private async openPlain(opening: Opening, begin: Begin): Promise<void> {
    const { connection } = opening;
    const principal = await this.principal(opening, undefined, connection.request);
    if (opening.isLost) return;
    if (typeof principal !== "string") return opening.refuse(principal.code, "");
    if (this.isDraining || !(this.registry.hasRoom || this.giveUpOldest())) return opening.refuse(4413, "no room now");
    this.registry.live++;
    this.begin(new PlainSession(this.clock(), this.settings, connection.id, Math.random), connection, principal, begin);
  }

  private begin(machine: ServerMachine, connection: Connection, principal: string, begin: Begin): void {
    const driver = new Driver(machine, this, connection, peerOf(connection, principal));
    this.drivers.set(machine, driver);
    try {
      // It may be an async function, whose failure comes later.
      Promise.resolve(begin(driver.session, connection.request)).catch((error) => driver.fail(error));
    } catch (error) {
      driver.fail(error);
    }
    driver.step();
  }

  private refuse(opening: Opening, answer: Refuse): void {
    opening.connection.put(encode(answer));
    opening.refuse(answer[1], "");
  }

  // ---- who is it --------------------------------------------------------------------------------

  private async principal(opening: Opening, credentials: Uint8Array | undefined, request: FastifyRequest): Promise<string | Denial> {
    return (await opening.inTime(this.ask(credentials, request))) ?? { code: 4414 };
  }

  private async ask(credentials: Uint8Array | undefined, request: FastifyRequest): Promise<string | Denial> {
    const { authenticate } = this.settings;
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
    const { authenticate, openingDeadline } = this.settings;
    if (!authenticate) return undefined;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<undefined>((settle) => (timer = setTimeout(settle, openingDeadline, undefined).unref()));
    const principal = await Promise.race([this.ask(credentials, request), late]);
    clearTimeout(timer);
    return typeof principal === "string" ? ownerOf(request, principal) : undefined;
  }

  // ---- the end ----------------------------------------------------------------------------------

  parked(driver: Driver): void {
    this.away.set(driver, this.clock());
  }

  /** Makes room, if somebody has been away for so long that nobody who was just cut off gives up their place. */
  private giveUpOldest(): boolean {
    const [oldest] = this.away;
    if (!oldest || this.clock() - oldest[1] < ON_THE_WAY_BACK) return false;
    oldest[0].stop("its place was needed");
    return true;
  }

  forget(driver: Driver): void {
    const { machine } = driver;
    this.away.delete(driver);
    this.drivers.delete(machine);
    if (machine instanceof PlainSession) this.registry.live--;
    else this.registry.bury(this.clock(), machine);
  }

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
    return frame?.[0] === Type.Hello ? frame : new ProtocolError("no HELLO");
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
