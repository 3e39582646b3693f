/** The options of the sockets, and the types that they and their results are made of. */

import type { MachineConfig } from "./machine.js";
import type { Bytes } from "./wire.js";

type Awaitable<T> = T | Promise<T>;

/** A value, or a function that returns it and is called before each attempt: tokens expire. */
export type Fresh<T> = T | (() => Awaitable<T>);

type Greeting = string | ArrayBuffer | ArrayBufferView;

/** The options that both classes have. Times are in milliseconds. */
export interface BaseOptions extends MachineConfig {
  /** The groups of events of the page and the network that the socket listens to. @default all */
  page?: { network?: boolean; visibility?: boolean; lifecycle?: boolean; sleep?: boolean };
  /**
   * Makes the first message, or messages, of each session and of each connection to a plain server. They are written before the
   * messages that wait, and before those that the handlers of `open` send. Called before each attempt. @default none
   *
   * @example
   * new MainstaySocket(url, [], { greeting: async () => JSON.stringify({ login: await token() }) });
   */
  greeting?: () => Awaitable<Greeting | Greeting[]>;
  /** The socket makes no attempt before `reconnect` is called. @default false */
  startClosed?: boolean;
  /** Closes the socket in order when it is aborted. */
  signal?: AbortSignal;
  /** The class of the connections. @default the global one */
  WebSocket?: WebSocketLike;
}

/** The part of the `WebSocket` class that this package uses. */
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

/** What became of a message. Towards a plain peer, every message that was written is `unknown`. */
export type Outcome = "delivered" | "not-delivered" | "unknown";

/** A message of the application. */
export type Sendable = string | ArrayBufferLike | ArrayBufferView | Blob;

/** Where a session is kept while its page is away: `sessionStorageStore()` of `@mainstay/client/reload`. */
export type SessionStore = (driver: never, protocols?: unknown) => void;

/** The options of {@link MainstaySocket}. Times are in milliseconds. */
export interface Options extends BaseOptions {
  /**
   * Presented in HELLO. A function is called before each attempt; a value holds until `authenticate` replaces it. @default none
   *
   * @example
   * new MainstaySocket(url, [], { credentials: () => fetchToken() });
   */
  credentials?: Fresh<string | Bytes | undefined>;
  /**
   * What happens to a message for which there is no room in `keep`. `error`: it is `not-delivered`, and an `error` event has a
   * {@link QueueFullError}. `throw`: `send` throws that. `wait`: `accepted` of the result of `send` settles when there is room;
   * an application that does not await it makes the queue unbounded. @default "error"
   */
  whenFull?: "error" | "throw" | "wait";
  /** For how long the client asks the server to keep the session without a connection. @default the server's */
  resumeWindowMs?: number;
  /** Sends again in the next session the messages that a lost one certainly did not deliver. @default true */
  resendUndelivered?: boolean;
  /**
   * Whether the next connection goes where the server asks for it, as a cluster does whose nodes have URLs of their own: that host
   * gets the resume token, and the cookies that the browser has for it. `true`: to any host; `false`: to none. Where the socket
   * does not follow, the cluster forwards its messages. @default to the host of the URL, on any port
   */
  follow?: boolean;
  /**
   * Keeps the resume token, positions and unacknowledged messages while the page is away, so that a reload resumes the session.
   * @default false
   *
   * @example
   * import { sessionStorageStore } from "@mainstay/client/reload";
   *
   * new MainstaySocket(url, [], { persist: sessionStorageStore() });
   */
  persist?: SessionStore | false;
}

/** One message that was sent. */
export interface Sent {
  /** Settles when the message is accepted, at once unless it waits for room, or when it never will be: see `delivered`. */
  readonly accepted: Promise<void>;
  /** Settles when the outcome is known, and never rejects. */
  readonly delivered: Promise<Outcome>;
}
