/**
 * The driver of a socket that speaks sessions: it accepts messages and reports what became of each, and delivers the
 * messages of a session, or of a plain server, as fast as the application reads.
 */

import { Driver, type QueuedEvent, type Target, type Waiting } from "./driver.js";
import { MessageTooLargeError } from "./flow.js";
import type { Machine, MachineEvent } from "./machine.js";
import type { Fresh, Options, Outcome, Sendable, Sent } from "./options.js";
import { ClientSession, type Fate } from "./session.js";
import { offerFor, SessionMachine } from "./sessions.js";
import { dataOf, isBlob } from "./surface.js";
import { type Bytes, bytesOf, type Data, viewOf } from "./wire.js";

/** An iterator. */
interface Reader {
  /** It waits for the next message, or for the end. */
  wake?: ((data?: Data) => void) | undefined;
}

export class SessionDriver extends Driver {
  /** The session's public name is a member only of the machine that speaks sessions. */
  declare machine: Machine & { name?: string; endpoint?: string | undefined };
  declare options: Options;
  declare protected queued: Message[];
  declare session: ClientSession;
  counts = { connections: 0, gaps: 0 };
  /** There is a listener for messages: they are dispatched as they come. */
  private isFlowing = false;
  /** The iterators. Each message goes to all of them, when all of them ask for the next. */
  private readers = new Set<Reader>();
  /** Messages that were dropped unread, and that no event has reported. */
  declare private dropped: { first: number; count: number } | undefined;
  /** Messages that are accepted and whose outcome is not known, in the order of their numbers. */
  private unsettled: Message[] = [];

  constructor(target: Target, url: Fresh<string | URL>, protocols: Fresh<string | string[]>, options: Options, random: (length: number) => Bytes) {
    const session = new ClientSession(options, random, true);
    super(target, url, protocols, options, new SessionMachine(Date.now(), options, Math.random, session));
    this.session = session;
    const { credentials } = options;
    const set = (fresh?: string | Bytes) => {
      if (fresh) session.credentials = bytesOf(fresh);
    };
    if (typeof credentials === "function") this.preparations.push(async () => set(await credentials()));
    else set(credentials);
    if (options.persist) (options.persist as (driver: SessionDriver, protocols: unknown) => void)(this, protocols);
  }

  override get readyState(): 0 | 1 | 2 | 3 {
    return super.readyState || (this.machine.mode === "session" ? 1 : 0);
  }

  override get bufferedAmount(): number {
    return this.machine.mode === "plain" ? super.bufferedAmount : this.unsent;
  }

  protected override offer(names: string[]): string[] {
    return offerFor(names);
  }

  /**
   * An endpoint that the server named is tried once, if it may be followed: never without TLS where the URL has it, nor with
   * credentials. Without a path of its own it has the path and query of the URL.
   */
  protected override placeOf(url: string): string {
    const { machine, options: { follow } } = this;
    const { endpoint = "" } = machine;
    machine.endpoint = undefined;
    try {
      const own = new URL(url);
      const { protocol, hostname, origin, pathname, search, href } = new URL(endpoint);
      if (own.protocol === protocol && !/@/.test(endpoint) && (follow ?? own.hostname === hostname)) {
        return pathname + search === "/" ? origin + own.pathname + own.search : href;
      }
    } catch {}
    return url;
  }

  // ---- messages to the server ---------------------------------------------------------------------

  send(payload: Sendable): Sent {
    const message = new Message(payload);
    if (this.readyState > 1) {
      message.settleAs("not-delivered");
      return message;
    }
    const { blob, data } = message;
    this.checkSize(blob ?? data!);
    const { machine, queued } = this;
    if (machine.beginning && !blob && this.accept(message)) {
      this.proceed();
      return message;
    }
    // A message that cannot be accepted at once waits behind those that wait already, and messages sent later wait behind it.
    machine.beginning = 0;
    const waits = blob || queued.length || this.session.isRestored || this.options.whenFull === "wait";
    queued.push(message);
    this.admit();
    if (!waits && queued.pop()) {
      message.settleAs("not-delivered");
      this.noRoom(payload);
    }
    if (blob) void this.readBlob(message);
    this.proceed();
    return message;
  }

  sendVolatile(payload: unknown): void {
    if (isBlob(payload)) throw new TypeError("a Blob is not volatile: send its arrayBuffer()");
    const data = dataOf(payload);
    this.checkSize(data);
    this.session.sendVolatile(data);
    this.proceed();
  }

  authenticate(credentials: string | Bytes): void {
    this.session.authenticate(bytesOf(credentials));
    this.proceed();
  }

  /** Accepts the messages that wait, the oldest first, once `open` was handled. */
  private admit(): void {
    const { queued } = this;
    for (let first; !this.machine.beginning && (first = queued[0]) && first.data !== undefined; queued.shift()) {
      try {
        this.checkSize(first.data);
      } catch (error) {
        first.settleAs("not-delivered");
        this.queue({ type: "error", error });
        continue;
      }
      if (this.accept(first)) continue;
      // Towards a plain peer, messages that are written make room.
      this.pollMachine();
      if (!this.accept(first)) return;
    }
  }

  /** Returns false if there is no room. */
  private accept(message: Message): boolean {
    const { machine, unsettled } = this;
    if (!machine.send(message.data!)) return false;
    message.data = undefined;
    message.settleAccepted();
    const { last, ready } = this.session.flow.outbox;
    const waiting = machine.beginning ? machine.unsent.length + Math.max(last - ready, 0) : 0;
    unsettled.splice(unsettled.length - waiting, 0, message);
    return true;
  }

  /** Throws if the message is larger than the server accepts. A message that is surely small enough is not measured. */
  private checkSize(payload: Data | Blob): void {
    const { limit } = this.session;
    const size = isBlob(payload) ? payload.size : payload.length > limit / 3 ? bytesOf(payload).length : 0;
    if (size > limit) throw new MessageTooLargeError(size, limit);
  }

  // ---- what became of them ------------------------------------------------------------------------

  protected override observe(event: MachineEvent): void {
    // A plain peer's messages wait for a listener, like a session's.
    if (event.type === "message") return this.session.flow.inbox.receiveOrDrop(viewOf(event.data));
    // A fate counts from when it is so, not from its dispatch: messages that are accepted in between belong to the next session.
    if ("fate" in event && event.fate) this.settleBy(event.fate);
    if (event.type === "error") {
      const { error, behind = -1 } = event;
      // A message that waited cannot be sent.
      if (behind >= 0) this.unsettled.splice(-1 - behind, 1)[0]?.settleAs("not-delivered");
      return this.queue({ type: "error", error });
    }
    if (event.type === "close") {
      this.settleAcknowledged();
      for (const message of [...this.unsettled.splice(0), ...this.queued.splice(0)]) message.settleAs("not-delivered");
    }
    super.observe(event);
  }

  private settleBy({ delivered, unknown, resent, last }: Fate): void {
    const settled = last - this.unsettled.length;
    this.unsettled = this.unsettled.filter((message, index) => {
      const number = settled + index + 1;
      if (number > unknown && resent) return true;
      message.settleAs(number <= delivered ? "delivered" : number <= unknown ? "unknown" : "not-delivered");
      return false;
    });
  }

  /** The messages that are still kept are the last of the unsettled ones. */
  private settleAcknowledged(): void {
    const { outbox } = this.session.flow;
    const kept = outbox.last - outbox.acknowledged + this.machine.unsent.length;
    while (this.unsettled.length > kept) this.unsettled.shift()!.settleAs(this.machine.mode === "plain" ? "unknown" : "delivered");
  }

  // ---- messages from the server -------------------------------------------------------------------

  /** From when the caller has returned, messages are dispatched as they come. */
  override heed(type: string): void {
    super.heed(type);
    if (type !== "message") return;
    this.isFlowing = true;
    queueMicrotask(() => this.proceed());
  }

  async *messages(): AsyncGenerator<any, void, void> {
    const reader: Reader = {};
    this.readers.add(reader);
    try {
      for (;;) {
        const data = await new Promise<Data | undefined>((resolve) => {
          reader.wake = resolve;
          this.proceed();
        });
        if (data === undefined) return;
        yield this.present(data);
      }
    } finally {
      // The other iterators do not wait for it any longer.
      this.readers.delete(reader);
      this.proceed();
    }
  }

  protected override feed(): void {
    this.admit();
    this.settleAcknowledged();
    this.dropUnread();
    const { last } = this.session.flow.outbox;
    const { data, first, count } = (this.isWanted && this.session.deliver(this.machine.nowMs)) || {};
    if (data !== undefined) {
      this.wakeReaders(data);
      if (this.isFlowing) this.queue({ type: "message", data });
    } else if (count) this.queue({ type: "gap", dropped: { first, count } });
    else if (first) this.queue({ type: "gap", fate: { delivered: last, unknown: last, last, resent: false, lost: undefined, cause: "replaced" } });
    else if (this.machine.isEnded) this.wakeReaders();
  }

  /** Without a listener, messages are kept up to half of the window; then the oldest are dropped, as with `WebSocket`. */
  private dropUnread(): void {
    const { isEnding, flow: { inbox } } = this.session;
    const isRead = this.isFlowing || this.readers.size;
    // An end waits until the messages before it are delivered.
    const least = isEnding || this.machine.status === "closing" || inbox.openBytes > 2_097_152 ? 0 : 512;
    while (!isRead && !this.isWanted && inbox.queue.length > least) {
      const { first, count } = this.session.deliver(this.machine.nowMs)!;
      this.dropped ??= { first, count: 0 };
      this.dropped.count += count;
    }
    if (!isRead || !this.dropped) return;
    this.queue({ type: "gap", dropped: this.dropped });
    this.dropped = undefined;
  }

  /** Whether the application asks for the next delivery. A backend that was replaced concerns an application that only sends too. */
  private get isWanted(): boolean {
    for (const { wake } of this.readers) if (!wake) return false;
    return this.isFlowing || this.readers.size > 0 || this.session.flow.inbox.queue[0]?.count === 0;
  }

  private wakeReaders(data?: Data): void {
    for (const reader of this.readers) {
      reader.wake?.(data);
      reader.wake = undefined;
    }
  }

  protected override dispatch(event: QueuedEvent): void {
    const isGap = event.type === "gap";
    if (event.type === "session") this.counts.connections++;
    if (isGap) this.counts.gaps++;
    super.dispatch(event);
    if (!isGap || !this.options.closeOnGap) return;
    // The events since then belong to the time after the gap.
    this.events = [];
    this.machine.endNow(1006, "messages were lost: start again");
  }

  /** Copies, as the application may change the bytes. */
  override present(data: Data): unknown {
    return super.present(typeof data === "string" ? data : data.slice().buffer);
  }
}

class Message implements Sent, Waiting {
  declare settleAccepted: () => void;
  declare settle: (outcome: Outcome) => void;
  readonly accepted = new Promise<void>((resolve) => (this.settleAccepted = resolve));
  readonly delivered = new Promise<Outcome>((resolve) => (this.settle = resolve));
  /** Until it is accepted; undefined while a Blob is being read. */
  declare data: Data | undefined;
  declare blob: Blob | undefined;

  constructor(payload: Sendable) {
    if (isBlob(payload)) this.blob = payload;
    else this.data = dataOf(payload);
  }

  settleAs(outcome: Outcome): void {
    this.settleAccepted();
    this.settle(outcome);
  }
}
