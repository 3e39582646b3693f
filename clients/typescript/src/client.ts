/**
 * The socket that an application holds: a drop-in for `WebSocket` that stays.
 *
 * This is the only file that touches `WebSocket`, timers and page events. What happens next is decided by
 * {@link Machine}; here connections are opened, messages moved, and events dispatched. `plain.ts` and `index.ts`
 * make the two classes that are exported.
 */

import type { Io, Machine, MachineConfig, Mode, Status } from "./machine.js";
import type { Fate } from "./session.js";
import type { Bytes, Data } from "./wire.js";

/** A value, or a function that is asked for it before each attempt: tokens expire. */
export type Fresh<T> = T | (() => T | Promise<T>);

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
  protocols?: string[],
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
  /** The server broke the protocol, or a function of the options threw. The connection is replaced. */
  error: Event & { error?: Error };
  /** Attached: to the same session, or to a new one. */
  session: Event & { mode: Mode; resumed: boolean; epoch: number; id: string };
  /** What it is doing; after a loss, why, and when the next attempt is made. */
  status: Event & { status: Status; code?: number; reason?: string; retryInMs?: number };
  /**
   * Something is lost, told once. `fate`: a session was lost, and what became of what was sent in it. `dropped`: the
   * server's policy dropped messages of its own. Neither: a plain peer was re-attached; how much is lost is not known.
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

/** Offered beside sessions, so that a server which takes the first offer unseen, or must take one, speaks plain WebSocket. */
const PLAIN = "plain";
/** How often a clock that stood still is looked for. */
const TICK = 5000;

export abstract class BaseSocket extends EventTarget {
  declare static readonly CONNECTING: 0;
  declare static readonly OPEN: 1;
  declare static readonly CLOSING: 2;
  declare static readonly CLOSED: 3;
  declare readonly CONNECTING: 0;
  declare readonly OPEN: 1;
  declare readonly CLOSING: 2;
  declare readonly CLOSED: 3;
  onopen: ((event: Event) => void) | null = null;
  onmessage: ((event: MessageEvent) => void) | null = null;
  onclose: ((event: SocketEvents["close"]) => void) | null = null;
  onerror: ((event: SocketEvents["error"]) => void) | null = null;
  readonly extensions = "";
  /** What binary messages arrive as. */
  binaryType: "blob" | "arraybuffer" = "blob";
  /** The application's subprotocol, if one was agreed on. */
  protocol = "";
  /** Where the newest connection goes. */
  url = "";
  protected machine: Machine;
  protected options: BaseOptions;
  protected clock: () => number;
  private connections = new Map<number, InstanceType<WebSocketLike>>();
  private events: [type: string, fields?: any][] = [];
  private isStepping = false;
  private wasOpen = false;
  /** The status that the application was told last. */
  private told: Status = "connecting";
  private timer: any;
  private cleanup: (() => void)[] = [];

  constructor(
    url: Fresh<string | URL>,
    protocols: Fresh<string | string[]>,
    options: BaseOptions,
    makeMachine: (now: number, io: Io) => Machine,
    private prepare: () => void | Promise<void> = () => {},
  ) {
    super();
    const { connectTimeoutMs, silenceLimitMs, ping, keep } = options;
    for (const [name, value] of Object.entries({ connectTimeoutMs, silenceLimitMs, "ping.intervalMs": ping?.intervalMs, "keep[0]": keep?.[0] })) {
      if (value !== undefined && !(value >= 1)) throw new RangeError(`${name} is ${value}: at least 1 is allowed`);
    }
    this.options = options;
    for (const type of ["open", "message", "close", "error"] as const) {
      super.addEventListener(type, (event: any) => this[`on${type}`]?.(event));
    }
    if (typeof url !== "function") this.url = absolute(url);
    // Milliseconds that never run backwards and go on while the computer sleeps.
    let skew = 0;
    let newest = 0;
    this.clock = () => {
      const wall = Date.now();
      skew = Math.max(skew, newest - wall);
      return (newest = wall + skew);
    };
    this.machine = makeMachine(this.clock(), {
      dial: async (id, offers) => {
        try {
          const asked = await Promise.all([ask(url), ask(protocols), this.prepare()]);
          this.url = absolute(asked[0]);
          // It may have been given up meanwhile.
          if (this.machine.dialled === id) this.connect(id, offer([asked[1]].flat(), offers));
        } catch (error) {
          this.emit("error", { error });
          this.lose(id, 1006, `${error}`);
        }
      },
      write: (id, data) => {
        const connection = this.connections.get(id);
        const isEmpty = !connection?.bufferedAmount;
        connection?.send(data);
        // Behind an empty buffer it leaves at once.
        if (isEmpty) this.machine.flushed();
      },
      drop: (id, code = 1000, reason = "") => {
        // Whether its closing handshake ever ends concerns nobody. A browser may send 1000 and 3000-4999 only.
        this.forget(id)?.close(code > 2999 ? code : 1000, reason.slice(0, 40));
      },
      emit: (type, fields) => this.emit(type, fields),
    });
    this.listen();
    // The first attempt starts when the caller has set its handlers.
    queueMicrotask(() => this.step());
  }

  /** What it is doing. */
  get status(): Status {
    return this.machine.status;
  }

  /**
   * As `open` and `close` tell it. A session that is detached is OPEN: what is sent is kept, and no `open` follows, so
   * whoever asks before sending, or waits for `open`, is not misled. Detached from a plain peer is CONNECTING.
   */
  get readyState(): number {
    return ["attached", "closing", "ended"].indexOf(this.status) + 1 || Number(this.mode === "session");
  }

  /** Payload that the peer has not acknowledged; of a plain peer, that has not left. */
  get bufferedAmount(): number {
    let sum = this.machine.bufferedAmount;
    if (this.mode === "plain") for (const connection of this.connections.values()) sum += connection.bufferedAmount;
    return sum;
  }

  /** What the server speaks: sessions, or plain WebSocket. Undefined before the first attach. */
  get mode(): Mode | undefined {
    return this.machine.mode;
  }

  /** Smoothed round-trip time of probes, in milliseconds. Undefined before the first. */
  get rtt(): number | undefined {
    return this.machine.rtt;
  }

  /** Accepts a message, to be sent now or when there is a connection. @throws {@link QueueFullError} */
  send(message: string | ArrayBufferLike | ArrayBufferView): unknown {
    const isAccepted = this.machine.send(dataOf(message));
    this.step();
    if (!isAccepted && this.readyState < 2) throw new QueueFullError("too much is waiting to be sent");
    return;
  }

  /** Ends in order: what was accepted is delivered first. What is not within 10 s is unknown. */
  close(code = 1000, reason = ""): void {
    checkCloseCode(code);
    this.step(() => this.machine.close(code, reason));
  }

  /** Listens; returns what ends that. */
  on<Name extends keyof SocketEvents>(type: Name, listener: (event: SocketEvents[Name]) => void): () => void {
    this.addEventListener(type, listener as any);
    return () => this.removeEventListener(type, listener as any);
  }

  /** Dials now if it waits, probes if it is attached. */
  retryNow(): void {
    this.step(() => this.machine.retryNow());
  }

  /** Leaves the connection and stays away until {@link retryNow}. A session goes on for as long as the server keeps it. */
  suspend(): void {
    this.step(() => this.machine.suspend());
  }

  /** Acts, does what is due, dispatches what happened, and sets the next timer. A handler that calls back in is already inside. */
  protected step(act?: () => unknown): void {
    const { machine, connections } = this;
    machine.now = this.clock();
    act?.();
    if (this.isStepping) return;
    this.isStepping = true;
    clearTimeout(this.timer);
    if (machine.isProbeQueued && ![...connections.values()].some((connection) => connection.bufferedAmount)) machine.flushed();
    // Paused: what has arrived is read first.
    const isPaused = machine.timeout();
    for (let event; this.pump(), machine.write(), (event = this.events.shift()); ) this.dispatch(...event);
    this.isStepping = false;
    if (machine.isEnded) for (const end of this.cleanup.splice(0)) end();
    else this.arm(isPaused ? 0 : machine.isProbeQueued ? 250 : machine.current ? TICK : Infinity);
  }

  /** Sets the next timer, `longest` away at most; none where nothing is due. */
  private arm(longest: number): void {
    const { machine } = this;
    const wait = Math.min(longest, Math.max(machine.dueAt - machine.now, 0));
    if (wait === Infinity) return;
    const expected = machine.now + wait;
    this.timer = setTimeout(() => {
      // Asleep, and not merely a hidden page whose timers are held back: the peer may have given up on us.
      const isLate = this.clock() - expected > TICK / 2;
      this.step(() => isLate && this.options.page?.sleep !== false && !globalThis.document?.hidden && machine.retryNow());
    }, wait);
  }

  /** Hands over the next that a session has for the application, if that wants it. */
  protected pump(): void {}

  protected emit(type: string, fields?: object): void {
    this.events.push([type, type === "status" ? { status: this.machine.status, ...fields } : fields]);
  }

  protected dispatch(type: string, fields?: any): void {
    if (type === "status") {
      if (fields.status === this.told && !fields.code) return;
      this.told = fields.status;
    }
    if (type === "close") this.dispatch("status", { status: "ended", ...fields });
    this.dispatchEvent(
      "data" in (fields ?? {}) ? new MessageEvent(type, { data: this.present(fields.data) }) : Object.assign(new Event(type), fields),
    );
    // The first of this socket is one too, where it goes on from a page that was reloaded.
    if (type === "session" && !(fields.resumed && this.wasOpen)) {
      this.wasOpen = true;
      this.dispatch("open");
    }
    if (type === "gap" && this.options.endOnGap) {
      // What has happened since belongs to what came after the gap.
      this.events = [];
      this.machine.end(1006, "something was lost: start again");
    }
  }

  protected present(data: Data): unknown {
    if (typeof data === "string") return data;
    const { buffer } = data.slice();
    return this.binaryType === "blob" ? new Blob([buffer]) : buffer;
  }

  // ---- connections --------------------------------------------------------------------------------

  private connect(id: number, protocols: string[]): void {
    const connection = new (this.options.WebSocket ?? WebSocket)(this.url, protocols);
    this.connections.set(id, connection);
    connection.binaryType = "arraybuffer";
    connection.onopen = () => {
      const [name, application = ""] = connection.protocol.split("+") as [string, string?];
      const isSession = name === "mainstay.v1";
      this.protocol = isSession ? application : name === PLAIN ? "" : connection.protocol;
      this.step(() => this.machine.opened(id, isSession ? "session" : "plain"));
    };
    connection.onmessage = ({ data }: MessageEvent) => {
      this.step(() => this.machine.received(id, typeof data === "string" ? data : new Uint8Array(data)));
    };
    connection.onclose = ({ code, reason }: CloseEvent) => this.lose(id, code, reason);
    // The WebSocket of Node 20 fires no `close` after a handshake that failed.
    connection.onerror = () => this.machine.dialled === id && this.lose(id, 1006, "cannot be opened");
  }

  private lose(id: number, code: number, reason: string): void {
    this.forget(id);
    this.step(() => this.machine.lost(id, code, reason));
  }

  private forget(id: number) {
    const connection = this.connections.get(id);
    this.connections.delete(id);
    // Some report an error for a close before the opening handshake ends.
    if (connection) connection.onopen = connection.onmessage = connection.onclose = connection.onerror = () => {};
    return connection;
  }

  // ---- the page -----------------------------------------------------------------------------------

  private listen(): void {
    const { page = {}, signal } = this.options;
    const listen = (target: any, type: string, wanted: boolean | undefined, act: (event: any) => void) => {
      if (wanted === false || !target?.addEventListener) return;
      target.addEventListener(type, act);
      this.cleanup.push(() => target.removeEventListener(type, act));
    };
    const { document } = globalThis;
    listen(globalThis, "online", page.network, () => this.retryNow());
    listen(globalThis, "offline", page.network, () => this.step(() => this.machine.probe()));
    listen(document, "visibilitychange", page.visibility, () => document.hidden || this.retryNow());
    listen(document, "freeze", page.lifecycle, () => this.leavePage(false));
    listen(document, "resume", page.lifecycle, () => this.enterPage());
    listen(document && globalThis, "pagehide", page.lifecycle, ({ persisted }) => this.leavePage(persisted));
    listen(document && globalThis, "pageshow", page.lifecycle, ({ persisted }) => persisted && this.enterPage());
    listen(signal, "abort", true, () => this.close());
    if (signal?.aborted) queueMicrotask(() => this.close());
  }

  /** The page goes, perhaps for good. One that is kept must not hold a connection. */
  protected leavePage(isKept: boolean): void {
    if (isKept) this.suspend();
  }

  /** It is back. */
  protected enterPage(): void {
    this.retryNow();
  }
}

for (const owner of [BaseSocket, BaseSocket.prototype]) Object.assign(owner, { CONNECTING: 0, OPEN: 1, CLOSING: 2, CLOSED: 3 });

export function checkCloseCode(code: number): void {
  if (code !== 1000 && !(code > 2999 && code < 5000)) throw new RangeError("close code: 1000 or 3000-4999");
}

function offer(names: string[], sessions: boolean): string[] {
  if (!sessions) return names;
  return names.length ? [...names, ...names.map((name) => `mainstay.v1+${name}`)] : [PLAIN, "mainstay.v1"];
}

export const ask = <T>(value: Fresh<T>): T | Promise<T> => (typeof value === "function" ? (value as () => T)() : value);

/** A copy, as what was sent may be changed later. */
export function dataOf(message: string | ArrayBufferLike | ArrayBufferView): Data {
  if (typeof message === "string") return message;
  const view = ArrayBuffer.isView(message) ? new Uint8Array(message.buffer, message.byteOffset, message.byteLength) : new Uint8Array(message);
  return view.slice() as Bytes;
}

/** As `WebSocket` reads it: relative to the page, http as ws. */
function absolute(url: string | URL): string {
  return new URL(url, globalThis.location?.href).href.replace(/^http/, "ws");
}
