/** What the application learns about a session: its events, and the facts that come with them. */

/** Facts about a session's client, from its newest connection. */
export interface PeerInfo {
  /** The client's address, as `request.ip`. */
  address: string;
  /** The application's subprotocol, if the two ends agreed on one. */
  subprotocol: string | undefined;
  /** The client's principal: the return value of `authenticate`; "" for an anonymous client. */
  principal: string;
}

/** How a session ended. */
export interface End {
  /**
   * - `"ended"`: the client or this application ended it.
   * - `"expired"`: the client did not come back within the resume window.
   * - `"lost"`: the connection of a plain client broke.
   * - `"evicted"`: the server closes, or needed the session's place.
   */
  cause: "ended" | "expired" | "lost" | "evicted";
  /** The close code; 1006 if neither end sent one. */
  code: number;
  /** The reason that went with the code; otherwise why the server ended the session. */
  reason: string;
}

/** How a session lost its connection. */
export interface Loss {
  /** 4408: the heartbeat found the client dead. 1006: the connection broke. Otherwise the close code of the client. */
  code: number;
  /** The client's reason, or what the heartbeat found. */
  reason: string;
}

/** The events of a session, with their arguments. */
export interface SessionEvents {
  /**
   * A message, in order. Text is a string, binary data a Buffer. The message is acknowledged once the listeners were called,
   * and the client then forgets it.
   */
  message: [data: string | Buffer];
  /** A message outside the stream, from the client's `sendVolatile`. */
  volatile: [data: string | Buffer];
  /** The client dropped `count` of its own messages, from number `first` on. They never arrive. */
  gap: [gap: { first: number; count: number }];
  /** The client is back on a new connection, and nothing is lost. The first connection has no event: it calls the handler. */
  attached: [epoch: number];
  /** The connection is lost, and the session waits for its client. */
  detached: [loss: Loss];
  /** The session ended. It is the last event. */
  closed: [end: End];
  /** A listener of this session threw, or its promise was rejected. The plugin logs the error, and the session goes on. */
  error: [error: unknown];
}
