/**
 * The socket that an application holds: a drop-in for `WebSocket` that stays.
 *
 * This is the only file that touches `WebSocket`, timers and page events. What happens next is decided by
 * {@link Machine}; here connections are opened, messages moved, and events dispatched. `plain.ts` and `index.ts`
 * make the two classes that are exported.
 */

import { cutSoon, needClass, On } from "./host.js";
import type { Machine, MachineConfig, MachineEvent, Mode, Status, Transmit } from "./machine.js";
import type { Fate } from "./session.js";
import { eventOf, missing, readFarewell, readProtocols, readUrl } from "./surface.js";
import { sizeOf } from "./text.js";
import type { Data } from "./wire.js";

/** A value, or a function that is asked for it before each attempt: tokens expire. */
export type Fresh<T> = T | (() => Awaitable<T>);
type Awaitable<T> = T | Promise<T>;

export interface BaseOptions extends MachineConfig {
  /** Which events of the page and the network are listened to. @default all */
  page?: { network?: boolean; visibility?: boolean; lifecycle?: boolean; sleep?: boolean };
  /**
   * What each session and each connection to a plain server begins with, made anew: written before what waits, and before
   * what the handlers of `open` send. @default nothing
   */
  greeting?: () => Awaitable<string | ArrayBuffer | ArrayBufferView | (string | ArrayBuffer | ArrayBufferView)[]>;
  /** Does not dial before `reconnect` is called. @default false */
  startClosed?: boolean;
  /** Closes the socket in order. */
  signal?: AbortSignal;
  /** The class of the connections. @default the global one */
  WebSocket?: WebSocketLike;
}

/** As much of the `WebSocket` class as is used. */
export type WebSocketLike = new (
  url: string,
  protocols?: string | string[],
) => {
  binaryType: any;
  readonly protocol: string;
  readonly extensions?: string;
  readonly bufferedAmount: number;
  send(data: any): void;
  close(code?: number, reason?: string): void;
  onopen: any;
  onmessage: any;
  onclose: any;
  onerror: any;
};

/** The events by name. Those of `WebSocket` are dispatched as well: `open` for every attach that is not a resume. */
export interface SocketEvents {
  open: Event;
  message: MessageEvent;
  /** Nothing follows. `fate`: what became of what was sent, where a session ended. */
  close: Event & { code: number; reason: string; wasClean: boolean; fate?: Fate };
  /**
   * The server broke the protocol, or a function of the options threw: the connection is replaced. Or a message is not
   * delivered: there was no room for it, it waited and is larger than the server takes, or its Blob cannot be read. Where
   * nothing listens for it, it is a warning of the console.
   */
  error: Event & { error?: Error };
  /** Attached: to the same session, or to a new one. */
  session: Event & { mode: Mode; resumed: boolean; epoch: number; id: string };
  /** What it is doing; after a loss, why, and when the next attempt is made. */
  status: Event & { status: Status; code?: number; reason?: string; nextAttemptInMs?: number };
  /**
   * Something is lost, told once. `fate`: a session was lost, and what became of what was sent in it; or, with the cause
   * `replaced` and no `open` behind it, the session goes on and what the backend sent meanwhile may be missing. `dropped`:
   * the server's policy dropped messages of its own, or nothing read so many that they had to be let go. Neither: a plain
   * peer was re-attached; how much is lost is not known.
   */
  gap: Event & { fate?: Fate; dropped?: { first: number; count: number } };
  /** A message outside the stream. */
  volatile: MessageEvent;
  /** The server judged what `authenticate` presented. */
  authenticated: Event & { accepted: boolean };
}

/** The queue is full; the message was not accepted. */
export class QueueFullError extends Error {
  override name = "QueueFullError";
  /** What was to be sent. */
  declare data: unknown;

  constructor(data: unknown) {
    super("too much waits to be sent");
    this.data = data;
  }
}

/** A message that waits to be accepted. */
export interface Waiting {
  /** Undefined while its Blob is being read. */
  data: Data | undefined;
  blob: Blob | undefined;
  settleAs?(outcome: "not-delivered"): void;
}

/** What listens to an event, a function or an object, as in `WebSocket`. */
export type Listener<This, E> = ((this: This, event: E) => any) | { handleEvent(event: E): any };
type Listening = boolean | { capture?: boolean; once?: boolean; passive?: boolean; signal?: AbortSignal };

/** How often a clock that stood still is looked for. */
const TICK = 5000;

/** What needs no code here: handlers beside listeners, as in `WebSocket`, and the types of what is inherited. */
export interface BaseSocket {
  onopen: ((event: Event) => void) | null;
  onmessage: ((event: MessageEvent) => void) | null;
  onclose: ((event: SocketEvents["close"]) => void) | null;
  onerror: ((event: SocketEvents["error"]) => void) | null;
  removeEventListener<Name extends keyof SocketEvents>(type: Name, listener: Listener<this, SocketEvents[Name]> | null, options?: Listening): void;
  removeEventListener(type: string, listener: Listener<this, Event> | null, options?: Listening): void;
}

export abstract class BaseSocket extends EventTarget {
  declare static readonly CONNECTING: 0;
  declare static readonly OPEN: 1;
  declare static readonly CLOSING: 2;
  declare static readonly CLOSED: 3;
  declare readonly CONNECTING: 0;
  declare readonly OPEN: 1;
  declare readonly CLOSING: 2;
  declare readonly CLOSED: 3;
  /**
   * The class that was global when this one was loaded. A global that has this is one like this one, and asked for its
   * own: so a page may make this class its global `WebSocket`.
   */
  static readonly nativeWebSocket: WebSocketLike | undefined = globalThis.WebSocket;
  /** @internal */
  declare protected machine: Machine;
  /** @internal */
  declare chosen: BaseOptions;
  private byId: { [id: number]: InstanceType<WebSocketLike> } = {};
  /** What the `on...` attributes are. @internal */
  protected handlers: { [type: string]: unknown } = {};
  private binaryAs: "blob" | "arraybuffer" = "blob";
  private place = "";
  private cameFrom = "";
  /** What was written since the last microtask to a connection that counts it no longer. */
  declare private writtenNow: Data[] | undefined;
  /** What waits to be accepted, and goes out before a close. @internal */
  protected queued: Waiting[] = [];
  /** @internal */
  protected events: [type: string, fields?: any][] = [];
  /** The event `close`, which comes behind all others. */
  declare private farewell: object | undefined;
  /** `close` was called in this task, which hears of no end. */
  declare private isHeld: boolean | undefined;
  declare private isStepping: boolean | undefined;
  declare private hearsErrors: boolean | undefined;
  /** The error that was a warning last: one that repeats is one line. */
  declare private warned: string | undefined;
  /** The status that the application was told last. */
  private told: Status = "connecting";
  declare private timer: any;
  /** When it fires. A deadline that moves away is looked at then: no timer is touched for a message. */
  private timerAt = Infinity;
  /** The application wants no connection: what the page tells changes nothing. */
  declare private staysAway: boolean | undefined;
  /** Ends what is listened to outside. */
  private listening: (() => void)[] = [];
  /** What the next session, or plain connection, begins with. */
  private greetings: unknown[] = [];
  declare private askedFor: [url: Fresh<string | URL>, protocols: Fresh<string | string[]>];
  /** By how much the clock is ahead of the wall's. */
  private skew = 0;

  /** @internal */
  constructor(
    url: Fresh<string | URL>,
    protocols: Fresh<string | string[]>,
    options: BaseOptions,
    makeMachine: (now: number) => Machine,
  ) {
    super();
    if (url === undefined) throw missing();
    if (typeof url !== "function") this.place = readUrl(url);
    if (typeof protocols !== "function") readProtocols(protocols);
    checkRange("connectTimeoutMs", options.connectTimeoutMs);
    checkRange("silenceLimitMs", options.silenceLimitMs);
    checkRange("ping.intervalMs", options.ping?.intervalMs);
    checkRange("keep.messages", options.keep?.messages);
    checkRange("keep.bytes", options.keep?.bytes, 0);
    checkRange("maxRetries", options.maxRetries, 0);
    for (const name of ["greeting", "shouldReconnectOnClose"] as const) if (options[name] && typeof options[name] !== "function") throw new TypeError(`${name} is no function`);
    this.chosen = options;
    if (!On.Browser) needClass(this.connectionClass);
    this.askedFor = [url, protocols];
    this.machine = makeMachine(Date.now());
    this.listenToPage();
    // The first attempt starts when the caller has set its handlers.
    this.staysAway = options.startClosed;
    queueMicrotask(() => (options.signal?.aborted ? this.close() : this.staysAway ? this.suspend() : this.proceed()));
  }

  /** Where the newest connection goes. */
  get url(): string {
    return this.place;
  }

  /** What binary messages arrive as. What is no such name changes nothing. */
  get binaryType(): "blob" | "arraybuffer" {
    return this.binaryAs;
  }

  set binaryType(type) {
    if (type === "blob" || type === "arraybuffer") this.binaryAs = type;
  }

  /** Those of the connection. */
  get extensions(): string {
    return this.byId[this.machine.current]?.extensions ?? "";
  }

  /** The application's subprotocol, if one was agreed on. */
  get protocol(): string {
    return this.machine.protocol;
  }

  /** What it is doing. */
  get status(): Status {
    return this.machine.status;
  }

  /** As `open` and `close` tell it. Detached from a plain peer is CONNECTING. */
  get readyState(): 0 | 1 | 2 | 3 {
    return this.farewell ? 2 : ((["attached", "closing", "ended"].indexOf(this.status) + 1) as 0);
  }

  /** Payload that has not left, in bytes; text as UTF-8. */
  get bufferedAmount(): number {
    return this.unsent + (On.Browser ? this.leaving : Math.max(this.leaving, sizeOf(this.writtenNow ?? [])));
  }

  /** What the server speaks: sessions, or plain WebSocket. Undefined before the first attach. */
  get mode(): Mode | undefined {
    return this.machine.mode;
  }

  /** Smoothed round-trip time of probes, in milliseconds. Undefined before the first. */
  get rtt(): number | undefined {
    return this.machine.rtt;
  }

  /**
   * Ends in order: what was sent is delivered first, what waits for room or is read from a Blob included. What is not
   * within 10 s is unknown, or not delivered if it was never written. The event `close` comes later, when the other end
   * has answered; before that `readyState` is CLOSING.
   * @throws InvalidAccessError for a code other than 1000 and 3000-4999, SyntaxError for a reason above 123 bytes
   */
  close(code?: number, reason?: string): void {
    const farewell = readFarewell(code, reason);
    this.isHeld = true;
    setTimeout(() => {
      this.isHeld = false;
      this.proceed();
    });
    this.proceed((machine) => machine.close(...farewell));
  }

  override addEventListener<Name extends keyof SocketEvents>(type: Name, listener: Listener<this, SocketEvents[Name]> | null, options?: Listening): void;
  override addEventListener(type: string, listener: Listener<this, Event> | null, options?: Listening): void;
  override addEventListener(type: string, listener: any, options?: any): void {
    super.addEventListener(type, listener, options);
    if (listener) this.heed(type);
  }

  abstract send(message: any): unknown;

  /** Something listens to these events from now on. @internal */
  protected heed(type: string): void {
    if (type === "error") this.hearsErrors = true;
  }

  /** Listens; returns what ends that. */
  on<Name extends keyof SocketEvents>(type: Name, listener: (event: SocketEvents[Name]) => void): () => void {
    this.addEventListener(type, listener);
    return () => this.removeEventListener(type, listener);
  }

  /** Listens for the next one only. Node's `events.once` asks for this method where there is `on`. */
  once<Name extends keyof SocketEvents>(type: Name, listener: (event: SocketEvents[Name]) => void): void {
    this.addEventListener(type, listener, { once: true });
  }

  /**
   * Leaves the connection with this code, if there is one, and dials at once, whatever the socket was doing. The count of
   * attempts begins anew, and a session goes on. After `close` it does nothing: make another socket.
   */
  reconnect(code = 1000, reason = ""): void {
    this.staysAway = false;
    this.proceed((machine) => machine.reconnect(code, reason));
  }

  /** Leaves the connection and stays away until {@link reconnect}. A session goes on for as long as the server keeps it. */
  suspend(): void {
    this.staysAway = true;
    this.hide();
  }

  /** The page goes, and may come back. @internal */
  hide(): void {
    this.proceed((machine) => machine.suspend());
  }

  /**
   * Acts, does what is due, dispatches what happened, and sets the next timer. A handler that calls back in is already inside.
   * @internal
   */
  protected proceed(act?: (machine: Machine) => unknown): void {
    this.machine.nowMs = this.clock();
    this.machine.isBusy = this.leaving;
    this.machine.waiting = this.queued.length;
    act?.(this.machine);
    this.flush();
    if (this.isStepping) return;
    this.isStepping = true;
    try {
      this.machine.handleTimeout();
      this.flush();
      for (let event; (event = this.nextEvent()); ) this.dispatch(...event);
    } finally {
      this.isStepping = false;
    }
    const { machine } = this;
    if (machine.beginning) void this.begin();
    let at = Math.max(machine.pollTimeout(), machine.nowMs);
    if (machine.current) at = Math.min(at, machine.nowMs + TICK);
    if (machine.isEnded) {
      at = Infinity;
      for (const end of this.listening.splice(0)) end();
    }
    if (at < this.timerAt || at === Infinity) {
      clearTimeout(this.timer);
      this.timerAt = at;
      if (at < Infinity) this.timer = setTimeout(() => this.tick(), at - machine.nowMs);
    }
  }

  /** Does what the machine wants done, and takes over what happened. @internal */
  protected flush(): void {
    this.machine.waiting = this.queued.length;
    for (let output; (output = this.machine.pollTransmit()); ) this.transmit(output);
    for (let event; (event = this.machine.pollEvent()); ) this.observe(event);
    const { successor } = this.machine;
    if (!successor) return;
    this.machine = successor;
    this.machine.successor = undefined;
    this.flush();
  }

  private transmit(output: Transmit): void {
    if (output.kind === "dial") void this.dial(output.id);
    else if (output.kind === "write") this.writeTo(output.id, output.data);
    else if (output.kind === "close") this.byId[output.id]?.close(output.code, output.reason);
    else this.forget(output.id, output.code, output.reason);
  }

  private nextEvent(): [type: string, fields?: any] | undefined {
    const { events } = this;
    this.pump();
    this.flush();
    if (!this.farewell) this.tellStatus();
    else if (!events.length && !this.isHeld) {
      const { farewell } = this;
      this.farewell = undefined;
      this.tellStatus();
      events.push(["close", farewell]);
    }
    return events.shift();
  }

  private tick(): void {
    const late = this.clock() - this.timerAt;
    this.timerAt = Infinity;
    // Asleep, and not merely a hidden page whose timers are held back: the peer may have given up on us.
    if (late > TICK / 2 && this.chosen.page?.sleep !== false && !globalThis.document?.hidden) this.wake();
    else this.proceed();
  }

  /** Milliseconds that never run backwards and go on while the computer sleeps. */
  private clock(): number {
    const wall = Date.now();
    this.skew = Math.max(this.skew, this.machine.nowMs - wall);
    return wall + this.skew;
  }

  /** Queues the next delivery of a session, if the application wants it. @internal */
  protected pump(): void {}

  /** Something happened. @internal */
  protected observe(event: MachineEvent): void {
    if (event.type === "close") this.farewell = event;
    else this.queue(event.type, event);
  }

  /** @internal */
  protected queue(type: string, fields?: object): void {
    this.tellStatus();
    this.events.push([type, fields]);
  }

  /** Queues the status, if it changed or there is more to say about it. */
  private tellStatus(): void {
    const { status, loss } = this.machine;
    if (loss || status !== this.told) this.events.push(["status", { status, ...loss }]);
    this.told = status;
    this.machine.loss = undefined;
  }

  /** @internal */
  protected dispatch(type: string, fields?: any): void {
    // A handler that left the connection meanwhile has a greeting on the next.
    if (type === "open" && this.machine.beginning) for (const message of this.greetings) this.send(message);
    const event = eventOf(type, fields?.data == null ? fields : { data: this.present(fields.data), origin: this.cameFrom });
    if (type === "error" && !this.hearsErrors && this.warned !== `${fields.error}`) console.warn((this.warned = `${fields.error}`));
    try {
      this.dispatchEvent(event);
    } catch (error) {
      // Platforms report what a listener throws; a document made for tests may be told to throw it here.
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  /** What waited follows what the handlers of `open` sent, those too that wait for it by a promise. */
  private async begin(): Promise<void> {
    // A promise that is awaited through a few functions goes on within so many turns.
    await 0, await 0, await 0, await 0, await 0;
    this.proceed((machine) => (machine.beginning = 0));
  }

  /** @internal */
  protected present(data: unknown): unknown {
    return this.binaryType === "blob" && (data as ArrayBuffer).byteLength >= 0 ? new Blob([data as ArrayBuffer]) : data;
  }

  // ---- what is sent -------------------------------------------------------------------------------

  /** There is no room for it: thrown where that was asked for, else an event, as a timer that sends is not to end a process. @internal */
  protected noRoom(payload: unknown): void {
    const error = new QueueFullError(payload);
    if ((this.chosen as { whenFull?: string }).whenFull === "throw") throw error;
    this.queue("error", { error });
  }

  /** Reads a message that is a Blob and waits. What cannot be read is an error, and not sent. @internal */
  protected async readBlob(message: Waiting): Promise<void> {
    try {
      message.data = new Uint8Array(await message.blob!.arrayBuffer());
    } catch (error) {
      this.queued.splice(this.queued.indexOf(message), 1);
      message.settleAs?.("not-delivered");
      this.queue("error", { error });
    }
    this.proceed();
  }

  /** Whatever else has to be known before an attempt. @internal */
  protected prepare(): unknown {
    return;
  }

  /** What to ask for, where the application asks for these subprotocols. @internal */
  protected offer(names: string[]): string[] {
    return names;
  }

  // ---- connections --------------------------------------------------------------------------------

  private async dial(id: number): Promise<void> {
    try {
      const [url, protocols, greeting] = await Promise.all([ask(this.askedFor[0]), ask(this.askedFor[1]), this.chosen.greeting?.(), this.prepare()]);
      this.greetings = [greeting ?? []].flat();
      this.place = readUrl(url);
      this.cameFrom = new URL(this.place).origin;
      // It may have been given up meanwhile.
      if (this.machine.dialled !== id) return;
      const names = this.offer(readProtocols(protocols));
      let connection = new this.connectionClass!(this.place, names);
      if (connection instanceof BaseSocket) {
        // What is global makes sockets like this one.
        connection.suspend();
        connection = new BaseSocket.nativeWebSocket!(this.place, names);
      }
      this.byId[id] = connection;
      connection.binaryType = "arraybuffer";
      /** Of one that was forgotten nothing is heard any more. */
      const then = (act: (event: any) => void) => (event: any) => this.byId[id] && this.proceed(() => act(event));
      connection.onopen = then(() => this.machine.handleOpened(id, connection.protocol));
      connection.onmessage = then(({ data }) => this.machine.handleMessage(id, data));
      /** Why, where the class tells it: browsers do not. */
      let cause = "";
      connection.onclose = then(({ code, reason }) => this.machine.handleLost(id, code, On.Browser ? reason : reason || cause));
      // Set in any case: `ws` throws where nobody listens.
      connection.onerror = On.Browser ? () => {} : then(({ message }) => {
        cause = message || "";
        // The WebSocket of Node 20 fires no `close` after a handshake that failed.
        if (this.machine.dialled === id) this.machine.handleLost(id, 1006, cause || "cannot be opened");
      });
    } catch (error) {
      this.queue("error", { error });
      // It says nothing of the server.
      this.proceed((machine) => machine.handleLost(id, 1011, `${error}`));
    }
  }

  private writeTo(id: number, data: Data): void {
    const connection = this.byId[id];
    connection?.send(data);
    // The class of `ws` writes at once and says 0.
    if (!On.Browser && connection?.bufferedAmount === 0 && (this.writtenNow ??= []).push(data) === 1) queueMicrotask(() => (this.writtenNow!.length = 0));
  }

  private forget(id: number, code: number, reason: string): void {
    const connection: any = this.byId[id];
    const isLeft = !On.Browser && connection?.readyState === 2;
    delete this.byId[id];
    // Whether its closing handshake ever ends concerns nobody. A browser may send 1000 and 3000-4999 only.
    connection?.close(code > 2999 ? code : 1000, reason.slice(0, 40));
    cutSoon(connection, isLeft);
  }

  /** What makes connections: what was chosen, or is global, or was before a class like this one took its place. */
  private get connectionClass(): WebSocketLike | undefined {
    let found: any = this.chosen.WebSocket ?? globalThis.WebSocket;
    while (found && "nativeWebSocket" in found) found = found.nativeWebSocket;
    return found;
  }

  /** What was sent and no connection has. @internal */
  protected get unsent(): number {
    return this.machine.bufferedAmount + sizeOf(this.queued.map(({ data, blob }) => data ?? { length: blob!.size }));
  }

  /** What was written and has not left. */
  private get leaving(): number {
    let sum = 0;
    for (const id in this.byId) sum += this.byId[id]!.bufferedAmount;
    return sum;
  }

  // ---- the page -----------------------------------------------------------------------------------

  private listenToPage(): void {
    const { document } = globalThis;
    /** Where an event says so, only a page that was kept. */
    const comeBack = ({ persisted = true }) => persisted && this.comeBack();
    this.listen(globalThis, "online", "network", comeBack);
    this.listen(globalThis, "offline", "network", () => this.look());
    this.listen(document, "visibilitychange", "visibility", () => document.hidden || this.comeBack());
    this.listen(document, "resume", "lifecycle", comeBack);
    // A page that is kept must not hold a connection.
    this.listen(globalThis, "pagehide", "lifecycle", ({ persisted }) => persisted && this.hide());
    this.listen(globalThis, "pageshow", "lifecycle", comeBack);
    this.listen(this.chosen.signal, "abort", undefined, () => this.close());
  }

  /** Something suggests that the network is there again. @internal */
  comeBack(): void {
    if (!this.staysAway) this.wake();
  }

  private wake(): void {
    this.proceed((machine) => machine.wake());
  }

  /** Something suggests that the network is gone. @internal */
  look(): void {
    this.proceed((machine) => machine.probe());
  }

  /** Until the end. Not at all where there is no such target, or it is not wanted. @internal */
  listen(target: EventTarget | undefined, type: string, group: keyof NonNullable<BaseOptions["page"]> | undefined, act: (event: any) => void): void {
    if (!target?.addEventListener || (group && this.chosen.page?.[group] === false)) return;
    target.addEventListener(type, act);
    this.listening.push(() => target.removeEventListener(type, act));
  }
}

function checkRange(name: string, value = 1, least = 1): void {
  if (!(value >= least)) throw new RangeError(`${name} is ${value}: at least ${least}`);
}

export const ask = <T>(value: Fresh<T>): Awaitable<T> => (typeof value === "function" ? (value as () => T)() : value);
