/**
 * The machine that speaks `mainstay.v1` where the server does. A server that does not is treated as the plain peer it
 * is, from the first connection on and for good: what was promised under the one cannot be kept under the other.
 *
 * A replacement may be opened beside the attached connection: after GOAWAY, and when a probe stays unanswered.
 */

import { Machine, type Io, type MachineConfig, type Mode, type Received } from "./machine.js";
import type { ClientSession, Fate, SessionHooks } from "./session.js";
import { type Data, decode, type Delay, toHex, Type, type Welcome } from "./wire.js";

/** Offered beside sessions, so that a server which takes the first offer unseen, or must take one, speaks plain WebSocket. */
const PLAIN = "plain";
const SESSION = "mainstay.v1";

export class SessionMachine extends Machine implements SessionHooks {
  override mode: Mode | undefined = undefined;
  declare session: ClientSession;
  /** The session's public name. */
  name = "";
  /** Whether the next attempt offers sessions. */
  private offers = true;
  /** One that opened without an offer. It waits while the offer is made once more: the server may only have been away. */
  private trial = 0;
  private heardOnTrial: Received[] = [];
  /** When to open a replacement, unless something comes. */
  private replaceAt = Infinity;
  private nonce = 0;
  /** What the server said about the next attempt. */
  declare private advice: Delay | undefined;
  /** Towards a plain peer: how many were accepted. */
  private accepted = 0;

  constructor(now: number, config: MachineConfig, random: () => number, io: Io, session: ClientSession) {
    super(now, config, random, io);
    this.session = session;
    session.hooks = this;
  }

  /** The subprotocols to ask for, where the application asks for these. */
  offer(names: string[]): string[] {
    if (!this.offers) return names;
    return names.length ? [...names, ...names.map((name) => `${SESSION}+${name}`)] : [PLAIN, SESSION];
  }

  override opened(id: number, protocol: string): void {
    const [name, application = ""] = protocol.split("+") as [string, string?];
    const mode = name === SESSION ? "session" : "plain";
    this.protocol = name === SESSION ? application : name === PLAIN ? "" : protocol;
    if (!this.mode && !this.offers) {
      this.trial = id;
      this.heardOnTrial = [];
      this.offers = true;
      this.dial();
    } else if (mode !== (this.mode ?? mode)) this.lost(id, 1006, "the server speaks another protocol now");
    else if (mode === "plain") this.attachPlain(id);
    else this.session.opened(this.now, id);
  }

  override lost(id: number, code: number, reason: string): void {
    const neverSpoke = !this.mode && !this.isSuspended && id === this.dialled && this.session.pending?.id !== id;
    if (id === this.trial) this.trial = 0;
    this.session.lost(id, code, reason);
    // Browsers fail a connection whose server answers an offer with nothing.
    if (neverSpoke) this.offers = !this.offers;
    if (neverSpoke && this.trial) {
      this.io.drop(id);
      this.attachPlain(this.trial);
    } else super.lost(id, code, reason);
  }

  override received(id: number, data: Received): void {
    if (id === this.trial) return void this.heardOnTrial.push(data);
    if (this.mode === "plain") return super.received(id, data);
    if (id === this.current) this.heard();
    try {
      const frame = decode(typeof data === "string" ? data : new Uint8Array(data));
      if (frame?.[0] === Type.Pong && id === this.current && frame[1] === this.nonce) this.answered();
      if (frame?.[0] === Type.Data) this.patience = 1;
      this.session.receive(id, frame);
    } catch (error) {
      const { message } = error as Error;
      this.io.emit("error", { error });
      this.write();
      this.io.drop(id, 4400, message);
      this.lost(id, 4400, message);
    }
  }

  override send(data: Data): number {
    if (this.mode === "plain") return super.send(data) && ++this.accepted;
    return this.closing ? 0 : this.session.send(data);
  }

  override close(code: number, reason: string): void {
    this.session.close(code, reason);
    super.close(code, reason);
  }

  override end(code: number, reason: string, fate: Fate | undefined = this.mode === "plain" ? undefined : this.session.fate()): void {
    this.io.drop(this.trial);
    super.end(code, reason, fate);
  }

  override write(): void {
    if (this.mode === "plain") return super.write();
    for (let output; (output = this.session.transmit(this.now)) !== undefined; ) {
      const { id } = this.session.writer!;
      if (typeof output === "string" || output instanceof Uint8Array) this.io.write(id, output);
      else this.io.drop(id, output.code, output.reason);
    }
  }

  override probe(): void {
    super.probe();
    this.replaceAt = Math.min(this.replaceAt, this.now + 1000);
  }

  protected override writeProbe(): boolean {
    if (this.mode === "plain") return super.writeProbe();
    this.session.current!.ping = ++this.nonce;
    return true;
  }

  protected override heard(): void {
    super.heard();
    this.replaceAt = Infinity;
  }

  override timeout(): void {
    if (this.replaceAt <= this.now) {
      this.replaceAt = Infinity;
      // A plain peer is not replaced while it may live: it would see a second client.
      if (this.mode === "session" && this.current && this.dialAt === Infinity) this.dial();
    }
    super.timeout();
  }

  override get dueAt(): number {
    return Math.min(super.dueAt, this.session.dueAt, this.current ? this.replaceAt : Infinity);
  }

  /** Everything up to this number is acknowledged; of a plain peer: was given to a connection. */
  get settled(): number {
    return this.mode === "plain" ? this.accepted - this.unsent.length : this.session.flow.outbox.acknowledged;
  }

  protected override get keeps(): number {
    return this.mode === "plain" ? super.keeps : this.session.flow.outbox.last + this.epoch;
  }

  override get bufferedAmount(): number {
    return super.bufferedAmount + this.session.flow.outbox.bytes;
  }

  private attachPlain(id: number): void {
    this.mode = "plain";
    this.offers = false;
    this.trial = 0;
    if (!this.epoch) {
      // What was sent before it was known what the peer speaks.
      const [fate, unsent] = this.session.takeUnsent();
      if (fate.unknown) this.onEvent("gap", { fate });
      this.unsent = unsent;
      this.accepted = unsent.length;
    }
    super.opened(id, this.protocol);
    for (const data of this.heardOnTrial.splice(0)) super.received(id, data);
  }

  /** Advice wins, up to 10 minutes and widened to 1 s or a tenth of its length. */
  protected override delay(isAlone: boolean): number {
    const own = super.delay(isAlone);
    const [earliest, latest] = this.advice ?? [0, 0];
    this.advice = undefined;
    if (!latest) return own;
    const from = Math.min(Math.max(earliest, 1), 540_000);
    const to = Math.min(Math.max(latest, from + Math.max(from / 10, 1000)), 600_000);
    return from + (to - from) * this.random();
  }

  // ---- what the session says ------------------------------------------------------------------------

  onAttached(id: number, [, sessionId, , epoch, resumed, , , , interval]: Welcome): void {
    const announced = Math.min(Math.max(interval, 100), 3_600_000);
    this.io.drop(this.trial);
    this.io.drop(this.current);
    this.trial = 0;
    this.mode = "session";
    this.attach(id, 2 * announced + 5000, announced / 4, Infinity);
    // The first of this socket is one too, where it goes on from a page that was reloaded.
    const isOpening = !resumed || !this.epoch;
    this.epoch = epoch;
    this.name = toHex(sessionId);
    this.io.emit("session", { mode: "session", resumed, epoch, id: this.name });
    if (isOpening) this.io.emit("open");
  }

  onRefused(code: number, delay: Delay): void {
    this.advice = delay;
    super.lost(this.dialled, code, `refused with ${code}`);
  }

  onGoAway([earliest, latest]: Delay, closeIn: number): void {
    // A replacement that is there before the server closes costs no interruption.
    this.advice = [earliest, earliest < closeIn ? Math.min(latest, closeIn) : latest];
    if (this.dialAt === Infinity) this.dialAt = this.now + this.delay(false);
  }

  onEvent(type: string, fields: object): void {
    this.io.emit(type, fields);
  }

  onEnded(code: number, reason: string, fate: Fate): void {
    // What is still owed (END, the answer to one, the Close) leaves before the end.
    this.write();
    this.end(code, reason, fate);
  }
}
