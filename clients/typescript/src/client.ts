/**
 * The socket that an application holds: a drop-in for `WebSocket` that stays.
 *
 * This is the only file that touches `WebSocket`, timers and page events. What happens next is decided by
 * {@link Machine}; here connections are opened, messages moved, and events dispatched. `plain.ts` and `index.ts`
 * make the two classes that are exported.
 */

import type { Io, Machine, MachineConfig, Mode, Status } from "./machine.js";
import type { Fate } from "./session.js";
import type { Data } from "./wire.js";

/** A value, or a function that is asked for it before each attempt: tokens expire. */
export type Fresh<T> = T | (() => Awaitable<T>);
type Awaitable<T> = T | Promise<T>;

export interface BaseOptions extends MachineConfig {
  /** Which events of the page and the network are listened to. @default all */
  page?: { network?: boolean; visibility?: boolean; lifecycle?: boolean; sleep?: boolean };
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
   * The server broke the protocol, or a function of the options threw: the connection is replaced. Or a message that
   * waited is larger than the server takes: it is not delivered.
   */
  error: Event & { error?: Error };
  /** Attached: to the same session, or to a new one. */
  session: Event & { mode: Mode; resumed: boolean; epoch: number; id: string };
  /** What it is doing; after a loss, why, and when the next attempt is made. */
  status: Event & { status: Status; code?: number; reason?: string; retryInMs?: number };
  /**
   * Something is lost, told once. `fate`: a session was lost, and what became of what was sent in it; or, with the cause
   * `replaced` and no `open` behind it, the session goes on and what the backend sent meanwhile may be missing. `dropped`:
   * the server's policy dropped messages of its own. Neither: a plain peer was re-attached; how much is lost is not known.
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
}

/** How often a clock that stood still is looked for. */
const TICK = 5000;

/** The handlers, beside listeners as in `WebSocket`. */
export interface BaseSocket {
  onopen: ((event: Event) => void) | null;
  onmessage: ((event: MessageEvent) => void) | null;
  onclose: ((event: SocketEvents["close"]) => void) | null;
  onerror: ((event: SocketEvents["error"]) => void) | null;
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
  readonly extensions = "";
  /** What binary messages arrive as. */
  binaryType: "blob" | "arraybuffer" = "blob";
  /** Where the newest connection goes. */
  url = "";
  /** @internal */
  declare protected machine: Machine;
  /** @internal */
  declare chosen: BaseOptions;
  private byId: { [id: number]: InstanceType<WebSocketLike> } = {};
  /** @internal */
  protected events: [type: string, fields?: any][] = [];
  declare private isStepping: boolean | undefined;
  /** The status that the application was told last. */
  private told: Status = "connecting";
  declare private timer: any;
  /** When it fires. A deadline that moves away is looked at then: no timer is touched for a message. */
  private timerAt = Infinity;
  /** Ends what is listened to outside, as the options of each listener. */
  private listening = new AbortController();
  declare private prepare: () => Promise<[url: string | URL, protocols: string | string[]]>;
  /** By how much the clock is ahead of the wall's. */
  private skew = 0;

  /** @internal */
  constructor(
    url: Fresh<string | URL>,
    options: BaseOptions,
    makeMachine: (now: number, io: Io) => Machine,
    /** The subprotocols to ask for, and all else that has to be known before an attempt. */
    prepare: () => Awaitable<string | string[]>,
  ) {
    super();
    checkRange("connectTimeoutMs", options.connectTimeoutMs);
    checkRange("silenceLimitMs", options.silenceLimitMs);
    checkRange("ping.intervalMs", options.ping?.intervalMs);
    checkRange("keep[0]", options.keep?.[0]);
    this.chosen = options;
    for (const type of ["open", "message", "close", "error"] as const) {
      this[`on${type}`] = null;
      super.addEventListener(type, (event: any) => this[`on${type}`]?.(event));
    }
    if (typeof url !== "function") this.url = absolute(url);
    this.prepare = () => Promise.all([ask(url), prepare()]);
    this.machine = makeMachine(Date.now(), this);
    this.listenToPage();
    // The first attempt starts when the caller has set its handlers.
    queueMicrotask(() => (options.signal?.aborted ? this.close() : this.proceed()));
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
  get readyState(): number {
    return ["attached", "closing", "ended"].indexOf(this.status) + 1;
  }

  /** Payload that has not left. */
  get bufferedAmount(): number {
    return this.machine.bufferedAmount + this.leaving;
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
   * within 10 s is unknown, or not delivered if it was never written.
   */
  close(code = 1000, reason = ""): void {
    if (code !== 1000 && !(code > 2999 && code < 5000)) throw new RangeError("close code: 1000 or 3000-4999");
    this.proceed((machine) => machine.close(code, reason));
  }

  /** Listens; returns what ends that. */
  on<Name extends keyof SocketEvents>(type: Name, listener: (event: SocketEvents[Name]) => void): () => void {
    this.addEventListener(type, listener as any);
    return () => this.removeEventListener(type, listener as any);
  }

  /** Dials now if it waits, probes if it is attached. */
  retryNow(): void {
    this.proceed((machine) => machine.retryNow());
  }

  /**
   * Leaves the connection with this code and dials at once, whatever it was doing. A session goes on. After `close` it does
   * nothing: make another socket.
   */
  reconnect(code = 1000, reason = ""): void {
    this.proceed((machine) => machine.isEnded || machine.reconnect(code, reason));
  }

  /** Leaves the connection and stays away until {@link retryNow}. A session goes on for as long as the server keeps it. */
  suspend(): void {
    this.proceed((machine) => machine.suspend());
  }

  /**
   * Acts, does what is due, dispatches what happened, and sets the next timer. A handler that calls back in is already inside.
   * @internal
   */
  protected proceed(act?: (machine: Machine) => unknown): void {
    const { machine } = this;
    machine.nowMs = this.clock();
    machine.isBusy = this.leaving;
    act?.(machine);
    if (this.isStepping) return;
    this.isStepping = true;
    machine.handleTimeout();
    for (let event; this.pump(), machine.writeOut(), this.tellStatus(), (event = this.events.shift()); ) this.dispatch(...event);
    this.isStepping = false;
    if (machine.beginning) void this.begin();
    const at = machine.isEnded ? Infinity : Math.min(machine.current ? machine.nowMs + TICK : Infinity, Math.max(machine.dueAt, machine.nowMs));
    if (machine.isEnded) this.listening.abort();
    if (at < this.timerAt || at === Infinity) {
      clearTimeout(this.timer);
      this.timerAt = at;
      if (at < Infinity) this.timer = setTimeout(() => this.tick(), at - machine.nowMs);
    }
  }

  private tick(): void {
    const late = this.clock() - this.timerAt;
    this.timerAt = Infinity;
    // Asleep, and not merely a hidden page whose timers are held back: the peer may have given up on us.
    if (late > TICK / 2 && this.chosen.page?.sleep !== false && !globalThis.document?.hidden) this.retryNow();
    else this.proceed();
  }

  /** Milliseconds that never run backwards and go on while the computer sleeps. */
  private clock(): number {
    const wall = Date.now();
    this.skew = Math.max(this.skew, this.machine.nowMs - wall);
    return wall + this.skew;
  }

  /** Hands over the next that a session has for the application, if that wants it. @internal */
  protected pump(): void {}

  /** @internal */
  emit(type: string, fields?: object): void {
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
    this.dispatchEvent(
      fields?.data == null ? Object.assign(new Event(type), fields) : new MessageEvent(type, { data: this.present(fields.data) }),
    );
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

  // ---- connections --------------------------------------------------------------------------------

  /** @internal */
  async dial(id: number): Promise<void> {
    const { machine } = this;
    try {
      const [url, protocols] = await this.prepare();
      this.url = absolute(url);
      // It may have been given up meanwhile.
      if (machine.dialled !== id) return;
      const connection = new (this.chosen.WebSocket ?? WebSocket)(this.url, protocols);
      this.byId[id] = connection;
      connection.binaryType = "arraybuffer";
      /** Of one that was forgotten nothing is heard any more. */
      const then = (act: (event: any) => void) => (event: any) => this.byId[id] && this.proceed(() => act(event));
      connection.onopen = then(() => machine.handleOpened(id, connection.protocol));
      connection.onmessage = then(({ data }) => machine.handleMessage(id, data));
      /** Why, where the class tells it: browsers do not. */
      let cause = "";
      connection.onclose = then(({ code, reason }) => machine.handleLost(id, code, reason || cause));
      connection.onerror = then(({ message }) => {
        cause = message || "";
        // The WebSocket of Node 20 fires no `close` after a handshake that failed.
        if (machine.dialled === id) machine.handleLost(id, 1006, cause || "cannot be opened");
      });
    } catch (error) {
      this.emit("error", { error });
      // Of the server it says nothing.
      this.proceed(() => machine.handleLost(id, 1011, `${error}`));
    }
  }

  /** @internal */
  writeTo(id: number, data: Data): void {
    this.byId[id]?.send(data);
  }

  /** @internal */
  forget(id: number, code = 1000, reason = ""): void {
    const connection: any = this.byId[id];
    delete this.byId[id];
    // Whether its closing handshake ever ends concerns nobody. A browser may send 1000 and 3000-4999 only.
    connection?.close(code > 2999 ? code : 1000, reason.slice(0, 40));
    // `ws` would wait half a minute for a peer that is gone, and keep the process for as long.
    if (connection?.readyState < 3 && connection.terminate) {
      const timer: any = setTimeout(() => connection.bufferedAmount || connection.terminate(), 2000);
      timer["unref"]?.();
      connection.onclose = () => clearTimeout(timer);
    }
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
    const comeBack = ({ persisted = true }) => persisted && this.retryNow();
    this.listen(globalThis, "online", "network", comeBack);
    this.listen(globalThis, "offline", "network", () => this.proceed((machine) => machine.probe()));
    this.listen(document, "visibilitychange", "visibility", () => document.hidden || this.retryNow());
    this.listen(document, "resume", "lifecycle", comeBack);
    // A page that is kept must not hold a connection.
    this.listen(globalThis, "pagehide", "lifecycle", ({ persisted }) => persisted && this.suspend());
    this.listen(globalThis, "pageshow", "lifecycle", comeBack);
    this.chosen.signal?.addEventListener("abort", () => this.close(), this.listening);
  }

  /** Until the end. Not at all where there is no such target, or it is not wanted. @internal */
  listen(target: EventTarget | undefined, type: string, group: keyof NonNullable<BaseOptions["page"]>, act: (event: any) => void): void {
    if (this.chosen.page?.[group] !== false) target?.addEventListener?.(type, act, this.listening);
  }
}

Object.assign(BaseSocket.prototype, Object.assign(BaseSocket, { CONNECTING: 0, OPEN: 1, CLOSING: 2, CLOSED: 3 }));

function checkRange(name: string, value = 1): void {
  if (!(value >= 1)) throw new RangeError(`${name} is ${value}: at least 1`);
}

export const ask = <T>(value: Fresh<T>): Awaitable<T> => (typeof value === "function" ? (value as () => T)() : value);

/** A copy, as what was sent may be changed later. What is neither text nor bytes is made text, as `WebSocket` does it. */
export function dataOf(message: any): Data {
  return message?.byteLength >= 0 ? new Uint8Array(message.buffer ?? message, message.byteOffset, message.byteLength).slice() : `${message}`;
}

/** As `WebSocket` reads it: relative to the page, http as ws. */
function absolute(url: string | URL): string {
  return new URL(url, globalThis.location?.href).href.replace(/^http/, "ws");
}
