/** `app.mainstay`: the sessions of one registration, from anywhere in the application. */

import { type Audience, type SendOptions, type Sent, sendTo, sendVolatileTo } from "./audience.js";
import { metricsOf, type Stats } from "./metrics.js";
import type { Server, SessionListeners } from "./server.js";
import { driverOf, type Sendable, type Session } from "./session.js";

/**
 * The sessions of one registration: rooms, broadcast, presence and metrics.
 *
 * @example
 * app.mainstay.onSession((session) => session.join("everyone"));
 * app.mainstay.to("everyone").send("hello");
 */
export class Mainstay {
  #server: Server;

  /** @internal */
  constructor(server: Server) {
    this.#server = server;
  }

  /** The sessions that have not ended, parked ones included, in the order in which they began. */
  get sessions(): ReadonlySet<Session> {
    return this.#server.sessions;
  }

  /** Returns the session with this {@link Session.id}; undefined if there is none. Plain clients have no id. */
  get(id: string): Session | undefined {
    return this.#server.find(id);
  }

  /** Returns the sessions in one or more of these rooms: `to("a", "b").send(data)` sends to each session once. */
  to(...rooms: string[]): Audience {
    const { rooms: all } = this.#server;
    return {
      get sessions() {
        return all.in(rooms);
      },
      send: (data, options) => this.#send(all.in(rooms), data, options),
      sendVolatile: (data, options) => sendVolatileTo(all.in(rooms), data, options),
    };
  }

  /** Sends a message to every session, without waiting. */
  broadcast(data: Sendable, options?: SendOptions): Sent {
    return this.#send(this.sessions, data, options);
  }

  /** The names of the rooms that have members. */
  get rooms(): string[] {
    return this.#server.rooms.names;
  }

  /** Calls `listener` for every new session, before its handler. Returns a function that removes the listener. */
  onSession(listener: SessionListeners["session"]): () => void {
    return this.#server.listen("session", listener);
  }

  /** Calls `listener` when a session's client is back on a new connection. Returns a function that removes the listener. */
  onResumed(listener: SessionListeners["resumed"]): () => void {
    return this.#server.listen("resumed", listener);
  }

  /**
   * Calls `listener` when a session lost its connection and waits for its client. Returns a function that removes the
   * listener.
   */
  onDetached(listener: SessionListeners["detached"]): () => void {
    return this.#server.listen("detached", listener);
  }

  /** Calls `listener` when a session ended; it has left its rooms. Returns a function that removes the listener. */
  onClosed(listener: SessionListeners["closed"]): () => void {
    return this.#server.listen("closed", listener);
  }

  /** Returns the current figures and the counts since the start. Visits every session. */
  stats(): Stats {
    return this.#server.stats();
  }

  /** Returns {@link stats} in Prometheus' text format, with the names of the gateway's `docs/METRICS.md`. */
  metrics(): string {
    return metricsOf(this.stats());
  }

  /** @internal Ends the session as if its resume window had passed, if it is parked. For `@mainstay/fastify/testing`. */
  expire(session: Session): void {
    driverOf(session).expire();
  }

  #send(sessions: Iterable<Session>, data: Sendable, options?: SendOptions): Sent {
    const result = sendTo(sessions, data, options);
    this.#server.counts.slow.disconnected += result.disconnected;
    this.#server.counts.slow.skipped += result.skipped;
    return result;
  }
}
