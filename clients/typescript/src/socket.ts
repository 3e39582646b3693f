/**
 * The socket that an application holds: a drop-in for `WebSocket` that stays. It has the members of `WebSocket` and a few
 * more, and nothing else: a {@link Driver}, which only the modules of this package see, does the work.
 *
 * `plain.ts` and `index.ts` make the two classes that are exported.
 */

import { type Driver, driverOf, nativeWebSocket } from "./driver.js";
import type { Mode, Status } from "./machine.js";
import type { WebSocketLike } from "./options.js";
import type { Fate } from "./session.js";

/** The events by name. Those of `WebSocket` are among them: `open` for every attach that is not a resume. */
export interface SocketEvents {
  open: Event;
  message: MessageEvent;
  /** The end: no event follows. `fate`: what became of the messages that were sent, if a session ended. */
  close: Event & { code: number; reason: string; wasClean: boolean; fate?: Fate };
  /**
   * The server broke the protocol, or a function of the options threw: the connection is replaced. Or a message is not
   * delivered: there was no room for it, it waited and is larger than the server accepts, or its Blob cannot be read. An error
   * that no listener handles is a warning on the console.
   */
  error: Event & { error?: Error };
  /** The socket is attached: to the same session, or to a new one. */
  session: Event & { mode: Mode; resumed: boolean; epoch: number; id: string };
  /** The status changed, or a connection was lost: then why, and when the next attempt is made. */
  status: Event & { status: Status; code?: number; reason?: string; nextAttemptInMs?: number };
  /**
   * Messages are lost; each loss is reported once. `fate`: a session was lost, and what became of the messages that were sent in
   * it; or, with the cause `replaced` and without an `open` after it, the session goes on and what the backend sent meanwhile may
   * be missing. `dropped`: the server dropped messages of its own by its policy, or the client dropped messages that no listener
   * read. Neither: a plain peer was re-attached, and how much is lost is not known.
   */
  gap: Event & { fate?: Fate; dropped?: { first: number; count: number } };
  /** A message outside the stream. */
  volatile: MessageEvent;
  /** The server judged the credentials that `authenticate` presented. */
  authenticated: Event & { accepted: boolean };
}

/** A listener of an event, a function or an object, as in `WebSocket`. */
export type Listener<This, E> = ((this: This, event: E) => any) | { handleEvent(event: E): any };
type Listening = boolean | { capture?: boolean; once?: boolean; passive?: boolean; signal?: AbortSignal };

/** What needs no code here: handlers beside listeners, as in `WebSocket`, and the types of inherited members. */
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
   * The class that was global when this one was loaded. A global class that has this member is one like this one, and the socket
   * uses the member in its place: so a page may make this class its global `WebSocket`.
   */
  static readonly nativeWebSocket: WebSocketLike | undefined = nativeWebSocket;

  /** @internal */
  constructor(makeDriver: (target: BaseSocket) => Driver) {
    super();
    makeDriver(this);
  }

  /** The URL of the newest connection. */
  get url(): string {
    return driverOf(this).url;
  }

  /** The type of binary messages in events. Setting it to any other text has no effect, as with `WebSocket`. */
  get binaryType(): "blob" | "arraybuffer" {
    return driverOf(this).binaryType;
  }

  set binaryType(type) {
    if (type === "blob" || type === "arraybuffer") driverOf(this).binaryType = type;
  }

  /** The extensions of the connection. */
  get extensions(): string {
    return driverOf(this).extensions;
  }

  /** The application's subprotocol, if one was agreed on. */
  get protocol(): string {
    return driverOf(this).machine.protocol;
  }

  /** What the socket is doing. */
  get status(): Status {
    return driverOf(this).machine.status;
  }

  /**
   * The state as the events `open` and `close` report it. A detached session is OPEN: messages that are sent are kept, and no
   * `open` follows. Detached from a plain peer is CONNECTING.
   */
  get readyState(): 0 | 1 | 2 | 3 {
    return driverOf(this).readyState;
  }

  /**
   * Payload bytes that a session's server has not acknowledged, or that have not left towards a plain peer; text counts as UTF-8.
   */
  get bufferedAmount(): number {
    return driverOf(this).bufferedAmount;
  }

  /** What the server speaks: sessions, or plain WebSocket. Undefined before the first attach. */
  get mode(): Mode | undefined {
    return driverOf(this).machine.mode;
  }

  /** The smoothed round-trip time of probes, in milliseconds. Undefined before the first. */
  get rtt(): number | undefined {
    return driverOf(this).machine.rtt;
  }

  /**
   * Ends in order: messages that were sent are delivered first, those that wait for room or are read from a Blob included.
   * Messages that are not delivered within 10 s are unknown, or not delivered if they were never written. The event `close`
   * comes later, when the other end has answered; before that `readyState` is CLOSING.
   * @throws InvalidAccessError for a code other than 1000 and 3000-4999, SyntaxError for a reason above 123 bytes
   */
  close(code?: number, reason?: string): void {
    driverOf(this).close(code, reason);
  }

  override addEventListener<Name extends keyof SocketEvents>(type: Name, listener: Listener<this, SocketEvents[Name]> | null, options?: Listening): void;
  override addEventListener(type: string, listener: Listener<this, Event> | null, options?: Listening): void;
  override addEventListener(type: string, listener: any, options?: any): void {
    super.addEventListener(type, listener, options);
    if (listener) driverOf(this).heed(type);
  }

  abstract send(message: any): unknown;

  /**
   * Adds a listener, and returns a function that removes it.
   *
   * @example
   * const stop = socket.on("gap", ({ fate }) => console.warn("lost", fate));
   */
  on<Name extends keyof SocketEvents>(type: Name, listener: (event: SocketEvents[Name]) => void): () => void {
    this.addEventListener(type, listener);
    return () => this.removeEventListener(type, listener);
  }

  /** Adds a listener for the next event only. Node's `events.once` needs this method beside `on`. */
  once<Name extends keyof SocketEvents>(type: Name, listener: (event: SocketEvents[Name]) => void): void {
    this.addEventListener(type, listener, { once: true });
  }

  /**
   * Leaves the connection with this code, if there is one, and dials at once, whatever the socket was doing. The count of
   * attempts begins anew, and a session goes on. After `close` it has no effect: make another socket.
   *
   * @example
   * settings.onUrlChange(() => socket.reconnect());
   */
  reconnect(code = 1000, reason = ""): void {
    driverOf(this).reconnect(code, reason);
  }

  /** Dials at once if the socket waits, and probes the connection if it has one: a connection that lives is kept. */
  probeNow(): void {
    driverOf(this).probeNow();
  }

  /** Leaves the connection and stays away until {@link reconnect} or {@link probeNow}. A session goes on for as long as the server keeps it. */
  suspend(): void {
    driverOf(this).suspend();
  }
}
