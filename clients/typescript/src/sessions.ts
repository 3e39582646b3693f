/**
 * The machine that speaks `mainstay.v1` where the server does. A server that does not is treated as the plain peer it
 * is, from the first connection on and for good: what was promised under the one cannot be kept under the other.
 */

import { Machine, type Io, type MachineConfig, type Mode } from "./machine.js";
import type { ClientSession, Fate, SessionHooks } from "./session.js";
import { type Data, decode, type Delay, toHex, Type, type Welcome } from "./wire.js";

export class SessionMachine extends Machine implements SessionHooks {
  override mode: Mode | undefined = undefined;
  session: ClientSession;
  /** The session's public name. */
  name = "";
  private nonce = 0;
  private endedWith: Fate | undefined;
  /** One that opened without an offer. It waits while the offer is made once more: the server may only have been away. */
  private trial: { id: number; heard: Data[] } | undefined;

  constructor(now: number, config: MachineConfig, random: () => number, io: Io, session: ClientSession) {
    super(now, config, random, io);
    this.session = session;
    session.hooks = this;
    this.offers = true;
  }

  override opened(id: number, mode: Mode): void {
    if (!this.mode && !this.offers) {
      this.trial = { id, heard: [] };
      this.offers = true;
      this.dialled = 0;
      this.dial();
    } else if (mode === "session" && this.mode !== "plain") {
      if (!this.session.opened(this.now, id)) this.io.drop(id);
    } else {
      this.mode ??= mode;
      this.offers = this.mode === "session";
      super.opened(id, mode);
    }
  }

  override lost(id: number, code: number, reason: string, advice?: Delay): void {
    if (id === this.trial?.id) this.trial = undefined;
    const neverSpoke = !this.mode && id === this.dialled && this.session.pending?.id !== id;
    if (code === 4409) this.session.superseded(id, reason);
    else this.session.lost(id);
    if (neverSpoke && this.trial) {
      this.mode = "plain";
      this.offers = false;
      return this.attachPlain(this.trial.id);
    }
    // Browsers fail a connection whose server answers an offer with nothing.
    if (neverSpoke) this.offers = !this.offers;
    super.lost(id, code, reason, advice);
  }

  override received(id: number, data: Data): void {
    if (id === this.trial?.id) this.trial.heard.push(data);
    if (this.mode === "plain") return super.received(id, data);
    if (id === this.current) this.heard();
    try {
      const frame = decode(data);
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
    if (this.mode === "plain") return super.send(data);
    return this.closing || this.isEnded ? 0 : this.session.send(data);
  }

  override close(code: number, reason: string): void {
    this.session.close(code, reason);
    super.close(code, reason);
  }

  override write(): void {
    if (this.mode === "plain") return super.write();
    for (let output; (output = this.session.transmit(this.now)) !== undefined; ) {
      const { id } = this.session.writer!;
      if (typeof output === "string" || output instanceof Uint8Array) this.io.write(id, output);
      else this.io.drop(id, output.code, output.reason);
    }
  }

  protected override writeProbe(): boolean {
    if (this.mode === "plain") return super.writeProbe();
    if (this.session.current) this.session.current.ping = ++this.nonce;
    return true;
  }

  override get settled(): number {
    return this.mode === "plain" ? super.settled : this.session.flow.outbox.acknowledged;
  }

  override get keeps(): number {
    return super.keeps + (this.mode === "plain" ? 0 : this.session.flow.outbox.last + this.epoch);
  }

  override get bufferedAmount(): number {
    return super.bufferedAmount + this.session.flow.outbox.bytes;
  }

  override get dueAt(): number {
    return Math.min(super.dueAt, this.session.dueAt);
  }

  protected override get fate(): object | undefined {
    return this.mode === "plain" ? undefined : (this.endedWith ?? this.session.fate());
  }

  protected override attachPlain(id: number): void {
    if (!this.epoch) {
      // What was sent before it was known what the peer speaks.
      const [fate, unsent] = this.session.takeUnsent();
      if (fate.unknown) this.io.emit("gap", { fate });
      this.unsent = unsent;
    }
    super.attachPlain(id);
    for (const data of this.trial?.heard ?? []) super.received(id, data);
    this.trial = undefined;
  }

  // ---- what the session says ------------------------------------------------------------------------

  onAttached(id: number, welcome: Welcome): void {
    const [, sessionId, , epoch, resumed, , , , interval] = welcome;
    const announced = Math.min(Math.max(interval, 100), 3_600_000);
    if (this.trial) this.io.drop(this.trial.id);
    this.trial = undefined;
    this.mode = "session";
    this.epoch = epoch;
    this.attach(id, 2 * announced + 5000, announced / 4);
    this.name = toHex(sessionId);
    this.io.emit("session", { mode: "session", resumed, epoch, id: this.name });
  }

  onGap(fate: Fate): void {
    this.io.emit("gap", { fate });
  }

  onRefused(code: number, delay: Delay): void {
    const id = this.dialled;
    this.io.drop(id);
    super.lost(id, code, `refused with ${code}`, delay);
  }

  onGoAway([earliest, latest]: Delay, closeIn: number): void {
    // A replacement that is there before the server closes costs no interruption.
    if (earliest < closeIn) latest = Math.min(latest, closeIn);
    if (this.dialAt === Infinity) this.dialAt = this.now + this.delay(false, [earliest, latest]);
  }

  onVolatile(data: Data): void {
    this.io.emit("volatile", { data });
  }

  onAuthenticated(accepted: boolean): void {
    this.io.emit("authenticated", { accepted });
  }

  onEnded(code: number, reason: string, fate: Fate): void {
    // What is still owed (END, the answer to one, the Close) leaves before the end.
    this.write();
    this.endedWith = fate;
    this.end(code, reason);
  }
}
