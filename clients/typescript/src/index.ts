/** WebSocket connections that stay: reconnect, heartbeat, and sessions that lose, repeat and reorder nothing. */

import { type BaseOptions, BaseSocket, checkCloseCode, dataOf, type Fresh, QueueFullError } from "./client.js";
import { storedIn } from "./resume.js";
import { ClientSession, type Fate } from "./session.js";
import { SessionMachine } from "./sessions.js";
import { type Bytes, bytesOf, type Data } from "./wire.js";

export { type BaseOptions, type Fresh, QueueFullError, type SocketEvents, type WebSocketLike } from "./client.js";
export type { Mode, Status } from "./machine.js";
export type { Fate } from "./session.js";
export { ProtocolError } from "./wire.js";

/** What became of a message. Towards a plain peer, all that was written is `unknown`. */
export type Outcome = "delivered" | "not delivered" | "unknown";

/** What may be sent. */
export type Sendable = string | ArrayBufferLike | ArrayBufferView | Blob;

export interface Options extends BaseOptions {
  /** Presented in HELLO. A function is asked before each attempt; a value holds until `authenticate` replaces it. */
  credentials?: Fresh<string | Bytes | undefined>;
  /** What `send` does when as much is kept as may be. `throw`: a {@link QueueFullError}. `wait`: `accepted` of what it returns settles when there is room; who does not await it makes the queue unbounded. @default "throw" */
  whenFull?: "throw" | "wait";
  /** How long the server is asked to keep the session without a connection. @default the server's */
  resumeWindowMs?: number;
  /** Send again in the next session what a lost one certainly did not deliver. @default true */
  resend?: boolean;
  /** `session`: keep token, positions and unacknowledged messages in `sessionStorage` while the page is away, so that a reload resumes. @default false */
  resume?: "session" | false;
  /** Names what is kept there, where one page holds several sockets to one URL. @default the URL without its query */
  resumeKey?: string;
}

/** One message that was sent. */
export interface Sent {
  /** Settles when the message is accepted, at once unless it waits for room, or when it never will be: `delivered` tells. */
  readonly accepted: Promise<void>;
  /** Settles when it is known what became of the message, and never rejects. Costs nothing unless it is asked for. */
  readonly delivered: Promise<Outcome>;
}

/**
 * A `WebSocket` that stays. Towards a server that speaks `mainstay.v1` every message arrives exactly once and in
 * order, over as many connections as it takes, and a `gap` event says so where that cannot be kept. Towards any
 * other server it reconnects, and every re-attach is reported as a `gap` of unknown size.
 */
export class MainstaySocket extends BaseSocket {
  declare protected machine: SessionMachine;
  declare protected options: Options;
  private session: ClientSession;
  private stored: ReturnType<typeof storedIn> | undefined;
  /** Somebody listens: messages are handed over as they come. */
  private isFlowing = false;
  private held: Data[] = [];
  private wake: (() => void) | undefined;
  /** Closes, once nothing waits to be accepted. */
  private closes: (() => void) | undefined;
  private waiting: Message[] = [];
  private watched = new Set<Message>();
  /** What became of the sessions that were lost, in order; of very many, of the last. */
  private fates: Fate[] = [];
  private era = 0;
  private counts = { connections: 0, gaps: 0 };

  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], options: Options = {}) {
    const { keep, resumeWindowMs: resumeWindow, resend, credentials } = options;
    const session = new ClientSession({ keep, resumeWindow, resend }, (length) => crypto.getRandomValues(new Uint8Array(length)));
    super(
      url,
      protocols,
      options,
      (now, io) => new SessionMachine(now, options, Math.random, io, session),
      async () => {
        const asked = typeof credentials === "function" ? await credentials() : undefined;
        if (asked !== undefined) session.credentials = bytesOf(asked);
      },
    );
    this.session = session;
    let onmessage: MainstaySocket["onmessage"] = null;
    Object.defineProperty(this, "onmessage", {
      get: () => onmessage,
      set: (handler) => {
        onmessage = handler;
        if (handler) this.flow();
      },
    });
    // Once: `authenticate` may replace them.
    if (credentials && typeof credentials !== "function") session.credentials = bytesOf(credentials);
    if (options.resume) {
      if (typeof url === "function" && !options.resumeKey) throw new TypeError("resumeKey is needed where the URL is a function");
      this.stored = storedIn(`mainstay ${options.resumeKey ?? this.url.split("?")[0]}`, session);
      this.stored.load();
    }
  }

  /** The session's public name; opens nothing. Empty before the first attach and towards plain peers. */
  get sessionId(): string {
    return this.machine.name;
  }

  /** Counts, for people to look at. Numbers are those of the current session. */
  get stats() {
    const { outbox, inbox, replayed, repeated } = this.session.flow;
    return {
      ...this.counts,
      epoch: this.machine.epoch,
      sent: outbox.last,
      acknowledged: outbox.acknowledged,
      received: inbox.handed,
      acknowledgedToPeer: inbox.told,
      replayed,
      repeatedAndDropped: repeated,
    };
  }

  /**
   * Accepts a message and keeps it until the peer has acknowledged it. After `close` nothing is accepted any more,
   * and `delivered` says so.
   * @throws {@link QueueFullError} if as much is kept as may be, and `whenFull` is not `wait`.
   */
  override send(payload: Sendable): Sent {
    const message = new Message(payload instanceof Blob ? undefined : dataOf(payload), this);
    if (this.readyState > 1) {
      message.accept();
      return message;
    }
    const waits = this.waiting.length || this.session.isRestored || payload instanceof Blob;
    this.waiting.push(message);
    this.admit();
    if (!message.number && !waits && this.options.whenFull !== "wait") {
      this.waiting.pop();
      throw new QueueFullError("too much is waiting to be acknowledged: await `delivered`, or set whenFull to wait");
    }
    if (payload instanceof Blob) {
      payload.arrayBuffer().then(
        (buffer) => {
          message.data = new Uint8Array(buffer);
          this.step();
        },
        (error) => {
          this.waiting = this.waiting.filter((other) => other !== message);
          message.accept();
          this.emit("error", { error });
          this.step();
        },
      );
    }
    this.step();
    return message;
  }

  /** As closing tells it, from `close` on, though a message that waits may still be accepted. */
  override get readyState(): number {
    return this.closes ? Math.max(super.readyState, 2) : super.readyState;
  }

  /** Ends in order: what was sent before is delivered first, what waits for room or is read from a Blob included. */
  override close(code = 1000, reason = ""): void {
    checkCloseCode(code);
    if (this.closes) return;
    const timer = setTimeout(() => this.closes!(), 10_000);
    this.closes = () => {
      clearTimeout(timer);
      super.close(code, reason);
    };
    this.step();
  }

  /** Sends a message that is not numbered, kept or sent again. Dropped while detached. */
  sendVolatile(message: string | ArrayBuffer | ArrayBufferView): void {
    this.session.sendVolatile(dataOf(message));
    this.step();
  }

  /** Presents new credentials: on the live connection, or with the next attempt. See the event `authenticated`. */
  authenticate(credentials: string | Bytes): void {
    this.session.authenticate(bytesOf(credentials));
    this.step();
  }

  override addEventListener(type: string, listener: any, options?: any): void {
    super.addEventListener(type, listener, options);
    if (type === "message") this.flow();
  }

  /** The messages, one at a time: one is acknowledged when the next is asked for. Ends with the socket. */
  async *[Symbol.asyncIterator](): AsyncGenerator<any, void, void> {
    for (;;) {
      if (!this.held.length && this.readyState < 3) {
        await new Promise<void>((resolve) => {
          this.wake = resolve;
          this.step();
        });
      }
      if (!this.held.length) return;
      yield this.present(this.held.shift()!);
    }
  }

  /** Closes in order and waits for the end. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    if (this.readyState < 3) await new Promise<void>((resolve) => this.on("close", () => resolve()));
  }

  // ---- messages -----------------------------------------------------------------------------------

  /** Somebody listens: from when they have returned, messages are dispatched as they come. */
  private flow(): void {
    this.isFlowing = true;
    queueMicrotask(() => this.step());
  }

  protected override pump(): void {
    this.admit();
    if (!this.waiting.length) this.closes?.();
    for (const message of this.watched) this.look(message);
    if (this.isFlowing) for (const data of this.held.splice(0)) super.dispatch("message", { data });
    const isWanted = this.isFlowing || (this.wake && !this.held.length);
    const delivery = isWanted ? this.session.handOver(this.machine.now) : undefined;
    if (delivery?.data !== undefined) this.emit("message", { data: delivery.data });
    else if (delivery) this.emit("gap", { dropped: { first: delivery.first, count: delivery.count } });
  }

  /** A fate counts from when it is so, not from when it is told: what is accepted in between is of the next session. */
  protected override emit(type: string, fields?: any): void {
    if (fields?.fate) {
      this.era++;
      if (this.fates.push(fields.fate) > 64) this.fates.shift();
    }
    super.emit(type, fields);
  }

  protected override dispatch(type: string, fields?: any): void {
    if (type === "session") this.counts.connections++;
    if (type === "gap") this.counts.gaps++;
    if (type === "close" || type === "gap") {
      if (type === "close") for (const message of this.waiting.splice(0)) message.accept();
      for (const message of this.watched) this.look(message);
    }
    const isHeld = type === "message" && !this.isFlowing;
    if (isHeld) this.held.push(fields.data);
    else super.dispatch(type, fields);
    if (isHeld || type === "close") {
      this.wake?.();
      this.wake = undefined;
    }
  }

  private admit(): void {
    for (let first; (first = this.waiting[0]) && first.data !== undefined; this.waiting.shift()) {
      first.number = this.machine.send(first.data);
      if (!first.number) return;
      first.data = undefined;
      first.era = this.era;
      first.accept();
    }
  }

  /** @internal Settles a message if its fate is known. */
  look(message: Message): void {
    let outcome: Outcome | undefined;
    for (; message.number && !outcome && message.era < this.era; message.era++) {
      const { delivered, unknown, resent } = this.fates.at(message.era - this.era) ?? { delivered: 0, unknown: Infinity, resent: false };
      if (message.number <= delivered) outcome = "delivered";
      else if (message.number <= unknown) outcome = "unknown";
      else if (!resent) outcome = "not delivered";
      else message.number -= unknown;
    }
    if (message.number && message.number <= this.machine.settled) outcome ??= this.mode === "plain" ? "unknown" : "delivered";
    if (this.readyState > 2 || (!message.number && !this.waiting.includes(message))) outcome ??= "not delivered";
    if (!outcome) this.watched.add(message);
    else {
      this.watched.delete(message);
      message.settle?.(outcome);
    }
  }

  // ---- the page -----------------------------------------------------------------------------------

  protected override leavePage(isKept: boolean): void {
    // What comes after the copy was made would be lost with it.
    this.stored?.store();
    super.leavePage(isKept || !!this.stored);
  }

  protected override enterPage(): void {
    this.stored?.unstore();
    super.enterPage();
  }
}

class Message implements Sent {
  /** Its number in its session; 0 before it is accepted. */
  number = 0;
  /** How many sessions were lost before it was accepted. */
  era = 0;
  accept!: () => void;
  readonly accepted = new Promise<void>((resolve) => (this.accept = resolve));
  settle: ((outcome: Outcome) => void) | undefined;
  private promise: Promise<Outcome> | undefined;

  constructor(
    /** Until it is accepted; undefined while a Blob is being read. */
    public data: Data | undefined,
    private socket: MainstaySocket,
  ) {}

  get delivered(): Promise<Outcome> {
    return (this.promise ??= new Promise((resolve) => {
      this.settle = resolve;
      this.socket.look(this);
    }));
  }
}
