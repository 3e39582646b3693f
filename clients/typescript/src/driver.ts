/**
 * The driver of a socket: it opens connections, moves messages, sets the one timer, listens to the page and dispatches events.
 * This is the only file that touches `WebSocket` and timers; a {@link Machine} decides what happens next.
 *
 * All goes one way. `proceed` lets the machine act and then polls it: what it transmits is done, and each event is queued.
 * Then the queue is dispatched, event by event; before each, `feed` lets a subclass queue what the application wants next.
 */

import { cutSoon, needClass, On } from "./host.js";
import type { Machine, MachineEvent, Status, Transmit } from "./machine.js";
import type { BaseOptions, Fresh, WebSocketLike } from "./options.js";
import { eventOf, missing, readFarewell, readProtocols, readUrl } from "./surface.js";
import { sizeOf } from "./text.js";
import type { Data } from "./wire.js";

/** The queue is full: the message was not accepted. */
export class QueueFullError extends Error {
  override name = "QueueFullError";
  /** The message. */
  declare data: unknown;

  constructor(data: unknown) {
    super("too many messages wait");
    this.data = data;
  }
}

/** The socket of a driver: its events are dispatched there. */
export type Target = EventTarget & { send(message: any): unknown };

/** A message that waits to be accepted. */
export interface Waiting {
  /** Undefined while its Blob is being read. */
  data: Data | undefined;
  blob: Blob | undefined;
  settleAs?(outcome: "not-delivered"): void;
}

/** The events that wait to be dispatched, by the names of the socket's. */
export interface QueuedEvent {
  type: string;
  [field: string]: unknown;
}

/** The interval of the check whether the clock stood still. */
const TICK = 5000;

/** The class that was global when this module was loaded. */
export const nativeWebSocket: WebSocketLike | undefined = globalThis.WebSocket;

/** The drivers of all sockets. The sockets themselves have no member for it. */
const drivers = new WeakMap<object, Driver>();

/** Returns the driver of a socket. */
export const driverOf = <D extends Driver>(socket: object): D => drivers.get(socket) as D;

export abstract class Driver {
  /** The URL of the newest connection. */
  url = "";
  binaryType: "blob" | "arraybuffer" = "blob";
  /** Functions that are called, and awaited, before each attempt. */
  preparations: (() => unknown)[] = [];
  declare machine: Machine;
  declare options: BaseOptions;
  /** Messages that wait to be accepted, and go out before a close. */
  protected queued: Waiting[] = [];
  protected events: QueuedEvent[] = [];
  /** The event `close`, which is dispatched after all others. */
  declare private farewell: QueuedEvent | undefined;
  declare target: Target;
  declare private asked: [url: Fresh<string | URL>, protocols: Fresh<string | string[]>];
  private byId: { [id: number]: InstanceType<WebSocketLike> } = {};
  private origin = "";
  /** Messages written since the last microtask to a connection that does not count them any more. */
  declare private writtenNow: Data[] | undefined;
  /** `close` was called in this task, in which no `close` event is dispatched. */
  declare private isHeld: boolean | undefined;
  declare private isStepping: boolean | undefined;
  declare private hasErrorListener: boolean | undefined;
  /** The error that was the last warning: one that repeats is one line. */
  declare private warned: string | undefined;
  /** The status of the last `status` event. */
  private reported: Status = "connecting";
  declare private timer: any;
  /** When the timer fires. A deadline that moves away is checked then: no timer is touched for a message. */
  private timerAt = Infinity;
  /** The application wants no connection: events of the page have no effect. */
  declare private staysAway: boolean | undefined;
  /** The functions that remove the listeners of the page. */
  private listening: (() => void)[] = [];
  /** The first messages of the next session, or plain connection. */
  private greetings: unknown[] = [];
  /** By how much the clock is ahead of the wall clock. */
  private skew = 0;

  constructor(target: Target, url: Fresh<string | URL>, protocols: Fresh<string | string[]>, options: BaseOptions, machine: Machine) {
    if (url === undefined) throw missing();
    if (typeof url !== "function") this.url = readUrl(url);
    if (typeof protocols !== "function") readProtocols(protocols);
    checkRange("connectTimeoutMs", options.connectTimeoutMs);
    checkRange("silenceLimitMs", options.silenceLimitMs);
    checkRange("ping.intervalMs", options.ping?.intervalMs);
    checkRange("keep.messages", options.keep?.messages);
    checkRange("keep.bytes", options.keep?.bytes, 0);
    checkRange("maxRetries", options.maxRetries, 0);
    for (const name of ["greeting", "shouldReconnectOnClose"] as const) if (options[name] && typeof options[name] !== "function") throw new TypeError(`${name} is no function`);
    this.options = options;
    if (!On.Browser) needClass(this.connectionClass);
    this.target = target;
    drivers.set(target, this);
    this.asked = [url, protocols];
    this.machine = machine;
    this.listenToPage();
    // The first attempt starts when the caller has set its handlers.
    this.staysAway = options.startClosed;
    queueMicrotask(() => (options.signal?.aborted ? this.close() : this.staysAway ? this.suspend() : this.proceed()));
  }

  /** Queues what the application is to get next, before the next event is dispatched. */
  protected abstract feed(): void;

  abstract send(message: any): unknown;

  get extensions(): string {
    return this.byId[this.machine.current]?.extensions ?? "";
  }

  get readyState(): 0 | 1 | 2 | 3 {
    return this.farewell ? 2 : ((["attached", "closing", "ended"].indexOf(this.machine.status) + 1) as 0);
  }

  get bufferedAmount(): number {
    return this.unsent + (On.Browser ? this.leaving : Math.max(this.leaving, sizeOf(this.writtenNow ?? [])));
  }

  // ---- what the application does ------------------------------------------------------------------

  close(code?: number, reason?: string): void {
    const farewell = readFarewell(code, reason);
    this.isHeld = true;
    setTimeout(() => {
      this.isHeld = false;
      this.proceed();
    });
    this.proceed((machine) => machine.close(...farewell));
  }

  reconnect(code: number, reason: string): void {
    this.staysAway = false;
    this.proceed((machine) => machine.reconnect(code, reason));
  }

  suspend(): void {
    this.staysAway = true;
    this.hide();
  }

  /** The page goes, and may come back. */
  hide(): void {
    this.proceed((machine) => machine.suspend());
  }

  /** There is a listener for these events from now on. */
  heed(type: string): void {
    if (type === "error") this.hasErrorListener = true;
  }

  // ---- one step -----------------------------------------------------------------------------------

  /**
   * Acts, does what is due, dispatches the events, and sets the next timer. A handler that calls back into the socket acts
   * inside this step.
   */
  proceed(act?: (machine: Machine) => unknown): void {
    const before = this.machine;
    before.nowMs = this.clock();
    before.isBusy = this.leaving;
    before.waiting = this.queued.length;
    act?.(before);
    this.pollMachine();
    if (this.isStepping) return;
    this.isStepping = true;
    try {
      this.machine.handleTimeout();
      for (let event; (event = this.nextEvent()); ) this.dispatch(event);
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

  /** Does what the machine wants done, and queues what happened. */
  protected pollMachine(): void {
    this.machine.waiting = this.queued.length;
    for (let output; (output = this.machine.pollTransmit()); ) this.transmit(output);
    for (let event; (event = this.machine.pollEvent()); ) this.observe(event);
    const { successor } = this.machine;
    if (!successor) return;
    this.machine = successor;
    this.pollMachine();
  }

  private transmit(output: Transmit): void {
    const { id } = output;
    if (output.kind === "dial") void this.dial(id, output.offers);
    else if (output.kind === "write") this.write(id, output.data);
    else if (output.kind === "close") this.byId[id]?.close(output.code, output.reason);
    else this.forget(id, output.code, output.reason);
  }

  /** Something happened. */
  protected observe(event: MachineEvent): void {
    if (event.type === "close") this.farewell = event as any;
    else this.queue(event as any);
  }

  /** Queues an event, after that of a status that changed before it. */
  protected queue(event: QueuedEvent): void {
    this.queueStatus();
    this.events.push(event);
  }

  /** Queues the status, if it changed or a loss is to be reported. */
  private queueStatus(): void {
    const { status, loss } = this.machine;
    if (loss || status !== this.reported) this.events.push({ type: "status", status, ...loss });
    this.reported = status;
    this.machine.loss = undefined;
  }

  private nextEvent(): QueuedEvent | undefined {
    const { events } = this;
    this.pollMachine();
    this.feed();
    this.pollMachine();
    if (!this.farewell) this.queueStatus();
    else if (!events.length && !this.isHeld) {
      this.queue(this.farewell);
      this.farewell = undefined;
    }
    return events.shift();
  }

  protected dispatch(fields: QueuedEvent): void {
    const { type } = fields;
    // A handler that left the connection meanwhile gets a greeting on the next.
    if (type === "open" && this.machine.beginning) for (const message of this.greetings) this.target.send(message);
    if (fields.data != null) fields = { ...fields, data: this.present(fields.data), origin: this.origin };
    if (type === "error" && !this.hasErrorListener && this.warned !== `${fields.error}`) console.warn((this.warned = `${fields.error}`));
    try {
      this.target.dispatchEvent(eventOf(type, fields));
    } catch (error) {
      // Platforms report the error of a listener; a document made for tests may be configured to throw it here.
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  /** Messages that waited follow those that the handlers of `open` sent, also those sent after a promise. */
  private async begin(): Promise<void> {
    // A promise that is awaited through a few functions settles within so many turns.
    await 0, await 0, await 0, await 0, await 0;
    this.proceed((machine) => (machine.beginning = 0));
  }

  /** Message data as the application gets it. */
  present(data: unknown): unknown {
    return this.binaryType === "blob" && (data as ArrayBuffer).byteLength >= 0 ? new Blob([data as ArrayBuffer]) : data;
  }

  private tick(): void {
    const late = this.clock() - this.timerAt;
    this.timerAt = Infinity;
    // The computer slept, and this is no hidden page whose timers are throttled: the peer may have given the connection up.
    if (late > TICK / 2 && this.options.page?.sleep !== false && !globalThis.document?.hidden) this.probeNow();
    else this.proceed();
  }

  /** Milliseconds that never run backwards, and advance while the computer sleeps. */
  private clock(): number {
    const wall = Date.now();
    this.skew = Math.max(this.skew, this.machine.nowMs - wall);
    return wall + this.skew;
  }

  // ---- messages that wait -------------------------------------------------------------------------

  /** There is no room for a message: throws if the application asked for that; else queues an event, as a timer that sends must not end a process. */
  protected noRoom(payload: unknown): void {
    const error = new QueueFullError(payload);
    if ((this.options as { whenFull?: string }).whenFull === "throw") throw error;
    this.queue({ type: "error", error });
  }

  /** Reads a waiting message that is a Blob. One that cannot be read is an error, and not sent. */
  protected async readBlob(message: Waiting): Promise<void> {
    try {
      message.data = new Uint8Array(await message.blob!.arrayBuffer());
    } catch (error) {
      this.queued.splice(this.queued.indexOf(message), 1);
      message.settleAs?.("not-delivered");
      this.queue({ type: "error", error });
    }
    this.proceed();
  }

  /** Payload bytes that were sent and that no connection has. */
  protected get unsent(): number {
    return this.machine.bufferedAmount + sizeOf(this.queued.map(({ data, blob }) => data ?? { length: blob!.size }));
  }

  /** Payload bytes that were written and have not left. */
  private get leaving(): number {
    let sum = 0;
    for (const id in this.byId) sum += this.byId[id]!.bufferedAmount;
    return sum;
  }

  // ---- connections --------------------------------------------------------------------------------

  /** The subprotocols that also offer sessions, if the application asks for these. */
  protected offer(names: string[]): string[] {
    return names;
  }

  /** Where to connect instead of this URL. */
  protected placeOf(url: string): string {
    return url;
  }

  private async dial(id: number, offers: boolean): Promise<void> {
    try {
      const { options, asked: [askedUrl, askedProtocols] } = this;
      const [url, protocols, greeting] = await Promise.all([ask(askedUrl), ask(askedProtocols), options.greeting?.(), ...this.preparations.map((prepare) => prepare())]);
      this.greetings = [greeting ?? []].flat();
      this.url = this.placeOf(readUrl(url));
      this.origin = new URL(this.url).origin;
      // The attempt may have been given up meanwhile.
      if (this.machine.dialled !== id) return;
      const names = readProtocols(protocols);
      this.watch(id, this.open(offers ? this.offer(names) : names));
    } catch (error) {
      this.queue({ type: "error", error });
      // The error shows nothing about the server.
      this.proceed((machine) => machine.handleLost(id, 1011, `${error}`));
    }
  }

  private open(names: string[]): InstanceType<WebSocketLike> {
    const { url } = this;
    const connection = new this.connectionClass!(url, names);
    const driver: Driver | undefined = driverOf(connection);
    if (!driver) return connection;
    // What is global makes sockets like this one.
    driver.suspend();
    return new nativeWebSocket!(url, names);
  }

  /** Reports what happens to a connection, until it is forgotten. */
  private watch(id: number, connection: InstanceType<WebSocketLike>): void {
    this.byId[id] = connection;
    connection.binaryType = "arraybuffer";
    const then = (act: (machine: Machine, event: any) => void) => (event: any) => this.byId[id] && this.proceed((machine) => act(machine, event));
    connection.onopen = then((machine) => machine.handleOpened(id, connection.protocol));
    connection.onmessage = then((machine, { data }) => machine.handleMessage(id, data));
    /** Why, if the class reports it: browsers do not. */
    let cause = "";
    connection.onclose = then((machine, { code, reason }) => machine.handleLost(id, code, On.Browser ? reason : reason || cause));
    // Set in any case: `ws` throws an error that has no listener.
    connection.onerror = On.Browser ? () => {} : then((machine, { message }) => {
      cause = message || "";
      // The WebSocket of Node 20 fires no `close` after a handshake that failed.
      if (machine.dialled === id) machine.handleLost(id, 1006, cause || "cannot be opened");
    });
  }

  private write(id: number, data: Data): void {
    const connection = this.byId[id];
    connection?.send(data);
    // The class of `ws` writes at once and reports 0.
    if (!On.Browser && connection?.bufferedAmount === 0 && (this.writtenNow ??= []).push(data) === 1) queueMicrotask(() => (this.writtenNow!.length = 0));
  }

  /** Closes a connection, of which nothing is reported any more. */
  private forget(id: number, code: number, reason: string): void {
    const connection = this.byId[id];
    delete this.byId[id];
    cutSoon(connection);
    // It does not matter when its closing handshake ends. A browser may send 1000 and 3000-4999 only.
    connection?.close(code > 2999 ? code : 1000, reason.slice(0, 40));
  }

  /** The class of connections: the option, or the global one, or the one that was global before a class like this. */
  private get connectionClass(): WebSocketLike | undefined {
    let found: any = this.options.WebSocket ?? globalThis.WebSocket;
    while (found && "nativeWebSocket" in found) found = found.nativeWebSocket;
    return found;
  }

  // ---- the page -----------------------------------------------------------------------------------

  private listenToPage(): void {
    const { document } = globalThis;
    /** An event that has `persisted` counts only if the page was kept. */
    const comeBack = ({ persisted = true }) => persisted && this.comeBack();
    this.listen(globalThis, "online", "network", comeBack);
    this.listen(globalThis, "offline", "network", () => this.probe());
    this.listen(document, "visibilitychange", "visibility", () => document.hidden || this.comeBack());
    this.listen(document, "resume", "lifecycle", comeBack);
    // A page that is kept must not hold a connection.
    this.listen(globalThis, "pagehide", "lifecycle", ({ persisted }) => persisted && this.hide());
    this.listen(globalThis, "pageshow", "lifecycle", comeBack);
    this.listen(this.options.signal, "abort", undefined, () => this.close());
  }

  /** Something suggests that the network is there again. */
  comeBack(): void {
    if (!this.staysAway) this.probeNow();
  }

  probeNow(): void {
    this.staysAway = false;
    this.proceed((machine) => machine.probeNow());
  }

  /** Something suggests that the network is gone. */
  probe(): void {
    this.proceed((machine) => machine.probe());
  }

  /** Listens until the end; not at all if there is no such target, or the application does not want this group. */
  listen(target: EventTarget | undefined, type: string, group: keyof NonNullable<BaseOptions["page"]> | undefined, act: (event: any) => void): void {
    if (!target?.addEventListener || (group && this.options.page?.[group] === false)) return;
    target.addEventListener(type, act);
    this.listening.push(() => target.removeEventListener(type, act));
  }
}

function checkRange(name: string, value = 1, least = 1): void {
  if (!(value >= least)) throw new RangeError(`${name} is ${value}: at least ${least}`);
}

/** Returns the value, or calls the function that returns it. */
export const ask = <T>(value: Fresh<T>): T | Promise<T> => (typeof value === "function" ? (value as () => T)() : value);
