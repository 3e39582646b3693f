/** WebSocket connections that stay: reconnect, heartbeat, and sessions that lose, repeat and reorder nothing. */

import { type BaseOptions, BaseSocket, type Fresh, type Waiting } from "./client.js";
import { MessageTooLargeError } from "./flow.js";
import { On } from "./host.js";
import type { Machine, MachineEvent } from "./machine.js";
import { ClientSession } from "./session.js";
import { offerFor, SessionMachine } from "./sessions.js";
import { complete, dataOf, isBlob, missing } from "./surface.js";
import { type Bytes, bytesOf, type Data, viewOf } from "./wire.js";

export { type BaseOptions, type Fresh, QueueFullError, type SocketEvents, type WebSocketLike } from "./client.js";
export type { Mode, Status } from "./machine.js";
export { MessageTooLargeError } from "./flow.js";
export type { Fate } from "./session.js";
export { ProtocolError } from "./wire.js";

/** What became of a message. Towards a plain peer, all that was written is `unknown`. */
export type Outcome = "delivered" | "not-delivered" | "unknown";

/** What may be sent. */
export type Sendable = string | ArrayBufferLike | ArrayBufferView | Blob;

export interface Options extends BaseOptions {
  /** Presented in HELLO. A function is asked before each attempt; a value holds until `authenticate` replaces it. */
  credentials?: Fresh<string | Bytes | undefined>;
  /**
   * What becomes of a message when as much is kept as may be. `error`: it is `not-delivered`, and an `error` event has a
   * {@link QueueFullError}. `throw`: `send` throws that. `wait`: `accepted` of what `send` returns settles when there is room;
   * an application that does not await it makes the queue unbounded. @default "error"
   */
  whenFull?: "error" | "throw" | "wait";
  /** How long the server is asked to keep the session without a connection. @default the server's */
  resumeWindowMs?: number;
  /** Send again in the next session what a lost one certainly did not deliver. @default true */
  resendUndelivered?: boolean;
  /** `sessionStorageStore` of `@mainstay/client/reload`: keep token, positions and unacknowledged messages in `sessionStorage` while the page is away, so that a reload resumes. @default false */
  persist?: ((socket: MainstaySocket, protocols?: unknown) => void) | false;
  /** Names what is kept there, where a page makes its sockets to one URL in another order each time. @default the URL without its query */
  resumeKey?: string;
}

/** One message that was sent. */
export interface Sent {
  /** Settles when the message is accepted, at once unless it waits for room, or when it never will be: `delivered` tells. */
  readonly accepted: Promise<void>;
  /** Settles when it is known what became of the message, and never rejects. */
  readonly delivered: Promise<Outcome>;
}

/**
 * A `WebSocket` that stays. Towards a server that speaks `mainstay.v1` every message arrives exactly once and in
 * order, over as many connections as it takes, and a `gap` event says so where that cannot be kept. Towards any
 * other server it reconnects, and every re-attach is reported as a `gap` of unknown size.
 */
export class MainstaySocket extends BaseSocket {
  /** As written, whatever minifiers make of it. */
  static override readonly name: string = "MainstaySocket";
  /** @internal */
  declare protected machine: Machine & { name?: string; offers?: boolean };
  /** @internal */
  declare protected queued: Message[];
  /** @internal */
  declare chosen: Options;
  /** @internal */
  declare clientSession: ClientSession;
  /** Somebody listens: messages are handed over as they come. */
  private isFlowing = false;
  /** The iterators. Each message goes to all of them, when all of them ask for the next. */
  private readers = new Set<Reader>();
  /** What was let go, and nothing has been told of. */
  declare private gone: { first: number; count: number } | undefined;
  /** Accepted, and not known what became of it. In the order of their numbers. */
  private unsettled: Message[] = [];
  private counts = { connections: 0, gaps: 0 };

  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], options: Options = {}) {
    const { credentials } = options;
    const session = new ClientSession(options, randomBytes, true);
    super(url, protocols, options, (now) => new SessionMachine(now, options, Math.random, session));
    this.clientSession = session;
    // Once: `authenticate` may replace them.
    if (credentials && typeof credentials !== "function") session.credentials = bytesOf(credentials);
    if (options.persist) options.persist(this, protocols);
  }

  /** The session's public name; opens nothing. Empty before the first attach and towards plain peers. */
  get sessionId(): string {
    return this.machine.name ?? "";
  }

  /** Counts, for people to look at. Numbers are those of the current session. */
  get stats() {
    const { outbox, inbox, replayed, repeated } = this.clientSession.flow;
    // In quotes, as `build.mjs` shortens the name elsewhere.
    return {
      ...this.counts,
      epoch: this.machine.epoch,
      sent: outbox.last,
      "acknowledged": outbox.acknowledged,
      received: inbox.delivered,
      acknowledgedToPeer: inbox.acked,
      replayed,
      repeatedAndDropped: repeated,
    };
  }

  /**
   * Accepts a message and keeps it until the peer has acknowledged it. What is neither text, bytes nor a Blob is made
   * text. After `close`, or where there is no room ({@link Options.whenFull}), it is `not-delivered`.
   * @throws {@link MessageTooLargeError} if it is larger than the server said that it takes. TypeError without an argument.
   */
  send(payload: Sendable): Sent {
    const message = new Message(payload, arguments.length);
    if (this.readyState > 1) {
      message.settleAs("not-delivered");
      return message;
    }
    const { blob, data } = message;
    const error = this.tooLarge(blob ?? data!);
    if (error) throw error;
    const { machine, queued } = this;
    if (machine.beginning && !blob && this.accept(message)) {
      this.proceed();
      return message;
    }
    // What cannot be accepted at once waits behind what waits already, and so does what is sent after it.
    machine.beginning = 0;
    const waits = blob || queued.length || this.clientSession.isRestored || this.chosen.whenFull === "wait";
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

  /**
   * As `open` and `close` tell it. A session that is detached is OPEN: what is sent is kept, and no `open` follows, so
   * whoever asks before sending, or waits for `open`, is not misled. Detached from a plain peer is CONNECTING.
   */
  override get readyState(): 0 | 1 | 2 | 3 {
    return super.readyState || (this.mode === "session" ? 1 : 0);
  }

  /** Payload that the peer has not acknowledged; of a plain peer, that has not left. */
  override get bufferedAmount(): number {
    return this.mode === "plain" ? super.bufferedAmount : this.unsent;
  }

  /** Sends a message that is not numbered, kept or sent again. Dropped while detached. @throws {@link MessageTooLargeError} */
  sendVolatile(message: string | ArrayBuffer | ArrayBufferView): void {
    if (isBlob(message)) throw new TypeError("a Blob is not volatile: send its arrayBuffer()");
    const data = dataOf(message);
    const error = this.tooLarge(data);
    if (error) throw error;
    this.clientSession.sendVolatile(data);
    this.proceed();
  }

  /** Presents new credentials: on the live connection, or with the next attempt. See the event `authenticated`. */
  authenticate(credentials: string | Bytes): void {
    this.clientSession.authenticate(bytesOf(credentials));
    this.proceed();
  }

  /**
   * The messages, one at a time: one is acknowledged when the next is asked for. Ends with the socket. Listeners of
   * `message` hear each message too, and are as slow as the slowest iterator.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<any, void, void> {
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
      // The others do not wait for it any longer.
      this.readers.delete(reader);
      this.proceed();
    }
  }

  /** Closes in order and waits for the end. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    if (this.readyState < 3) await new Promise<void>((resolve) => this.on("close", () => resolve()));
  }

  /** @internal */
  protected override async prepare(): Promise<void> {
    const { credentials } = this.chosen;
    const fresh = typeof credentials === "function" && (await credentials());
    if (fresh) this.clientSession.credentials = bytesOf(fresh);
  }

  /** @internal */
  protected override offer(names: string[]): string[] {
    return this.machine.offers ? offerFor(names) : names;
  }

  // ---- messages -----------------------------------------------------------------------------------

  /** From when the caller has returned, messages are dispatched as they come. @internal */
  protected override heed(type: string): void {
    super.heed(type);
    if (type !== "message") return;
    this.isFlowing = true;
    queueMicrotask(() => this.proceed());
  }

  /** @internal */
  protected override pump(): void {
    this.admit();
    this.settle();
    this.letGo();
    const { last } = this.clientSession.flow.outbox;
    const { data, first, count } = (this.isWanted && this.clientSession.deliver(this.machine.nowMs)) || {};
    if (data !== undefined) {
      this.wakeReaders(data);
      if (this.isFlowing) this.queue("message", { data });
    } else if (count) this.queue("gap", { dropped: { first, count } });
    else if (first) this.queue("gap", { fate: { delivered: last, unknown: last, last, resent: false, lost: undefined, cause: "replaced" } });
    else if (this.machine.isEnded) this.wakeReaders();
  }

  /** What nothing listens for is kept up to half of what may be; then the oldest is gone, as with `WebSocket`. */
  private letGo(): void {
    const { isEnding: isOver, flow: { inbox } } = this.clientSession;
    const isHeard = this.isFlowing || this.readers.size;
    // An end waits until what came before it is handed over.
    const isEnding = isOver || this.status === "closing";
    while (!isHeard && !this.isWanted && inbox.queue.length > (isEnding || inbox.openBytes > 2_097_152 ? 0 : 512)) {
      const { first, count } = this.clientSession.deliver(this.machine.nowMs)!;
      this.gone ??= { first, count: 0 };
      this.gone.count += count;
    }
    if (!isHeard || !this.gone) return;
    this.queue("gap", { dropped: this.gone });
    this.gone = undefined;
  }

  /** Whether what comes next is asked for. A backend that was replaced concerns an application too that only sends. */
  private get isWanted(): boolean {
    for (const { wake } of this.readers) if (!wake) return false;
    return this.isFlowing || this.readers.size > 0 || this.clientSession.flow.inbox.queue[0]?.count === 0;
  }

  private wakeReaders(data?: Data): void {
    for (const reader of this.readers) {
      reader.wake?.(data);
      reader.wake = undefined;
    }
  }

  /** @internal */
  protected override observe(event: MachineEvent): void {
    // A plain peer's messages wait for a listener, like a session's.
    if (event.type === "message") return this.clientSession.flow.inbox.receiveOrDrop(viewOf(event.data));
    // A fate counts from when it is so, not from when it is reported: messages that are accepted in between belong to the next session.
    if ("fate" in event && event.fate) {
      const { delivered, unknown, resent, last } = event.fate;
      const settled = last - this.unsettled.length;
      this.unsettled = this.unsettled.filter((message, index) => {
        const number = settled + index + 1;
        if (number > unknown && resent) return true;
        message.settleAs(number <= delivered ? "delivered" : number <= unknown ? "unknown" : "not-delivered");
        return false;
      });
    }
    // A message that waited cannot be sent.
    if (event.type === "error" && event.behind! >= 0) this.unsettled.splice(-1 - event.behind!, 1)[0]?.settleAs("not-delivered");
    if (event.type === "close") {
      this.settle();
      for (const message of [...this.unsettled.splice(0), ...this.queued.splice(0)]) message.settleAs("not-delivered");
    }
    super.observe(event);
  }

  /** @internal */
  protected override dispatch(type: string, fields?: any): void {
    if (type === "session") this.counts.connections++;
    if (type === "gap") this.counts.gaps++;
    super.dispatch(type, fields);
    if (type === "gap" && this.chosen.closeOnGap) {
      // What has happened since belongs to what came after the gap.
      this.events = [];
      this.machine.endNow(1006, "something was lost: start again");
    }
  }

  /** @internal */
  protected override present(data: Data): unknown {
    return super.present(typeof data === "string" ? data : data.slice().buffer);
  }

  /** What waited longest comes first, once `open` was handled. */
  private admit(): void {
    const { queued } = this;
    for (let first; !this.machine.beginning && (first = queued[0]) && first.data !== undefined; queued.shift()) {
      const error = this.tooLarge(first.data);
      if (error) {
        first.settleAs("not-delivered");
        this.queue("error", { error });
        continue;
      }
      // A plain peer makes room by what is written.
      if (this.accept(first)) continue;
      this.flush();
      if (!this.accept(first)) return;
    }
  }

  /** False: there is no room. */
  private accept(message: Message): boolean {
    const { machine, unsettled } = this;
    if (!machine.send(message.data!)) return false;
    message.data = undefined;
    message.tellAccepted();
    const { last, ready } = this.clientSession.flow.outbox;
    const waiting = machine.beginning ? machine.unsent.length + Math.max(last - ready, 0) : 0;
    unsettled.splice(unsettled.length - waiting, 0, message);
    return true;
  }

  /** Why the server would not take it. What is surely small enough is not measured. */
  private tooLarge(payload: Data | Blob): MessageTooLargeError | undefined {
    const { limit } = this.clientSession;
    const size = isBlob(payload) ? payload.size : payload.length > limit / 3 ? bytesOf(payload).length : 0;
    return size > limit ? new MessageTooLargeError(size, limit) : undefined;
  }

  /** Of the unsettled messages those that are kept are the last. */
  private settle(): void {
    const { outbox } = this.clientSession.flow;
    const kept = outbox.last - outbox.acknowledged + this.machine.unsent.length;
    while (this.unsettled.length > kept) this.unsettled.shift()!.settleAs(this.mode === "plain" ? "unknown" : "delivered");
  }
}

complete(MainstaySocket, BaseSocket);

/** Unguessable where the platform can do that. */
function randomBytes(length: number): Bytes {
  const bytes = new Uint8Array(length);
  return On.Browser ? crypto.getRandomValues(bytes) : globalThis.crypto?.getRandomValues(bytes) ?? bytes.map(() => Math.random() * 256);
}

interface Reader {
  /** It waits for the next message, or for the end. */
  wake?: ((data?: Data) => void) | undefined;
}

class Message implements Sent, Waiting {
  declare tellAccepted: () => void;
  declare settle: (outcome: Outcome) => void;
  readonly accepted = new Promise<void>((resolve) => (this.tellAccepted = resolve));
  readonly delivered = new Promise<Outcome>((resolve) => (this.settle = resolve));
  /** Until it is accepted; undefined while a Blob is being read. */
  declare data: Data | undefined;
  declare blob: Blob | undefined;

  constructor(payload: Sendable, count: number) {
    if (!count) throw missing();
    if (isBlob(payload)) this.blob = payload;
    else this.data = dataOf(payload);
  }

  settleAs(outcome: Outcome): void {
    this.tellAccepted();
    this.settle(outcome);
  }
}
