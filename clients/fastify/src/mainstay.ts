/** `app.mainstay`: every session of one registration, from anywhere in the application. */

import { type Audience, type SendOptions, type Sent, sendTo, sendVolatileTo } from "./rooms.js";
import type { Server } from "./server.js";
import { type Closed, driverOf, type Loss, type Sendable, type Session } from "./session.js";
import { metricsOf, type Stats, statsOf } from "./metrics.js";

/** What is told of sessions, whatever their route. A listener that throws is logged; the session and the other listeners go on. */
export interface Presence {
  session: (session: Session) => void;
  resumed: (session: Session, epoch: number) => void;
  detached: (session: Session, loss: Loss) => void;
  closed: (session: Session, closed: Closed) => void;
}

export class Mainstay {
  #server: Server;

  /** @internal */
  constructor(server: Server) {
    this.#server = server;
  }

  /** Sessions that are not over, those whose clients are away included, in the order in which they began. */
  get sessions(): ReadonlySet<Session> {
    return this.#server.sessions;
  }

  /** The session with this {@link Session.id}. Plain clients have none. */
  get(id: string): Session | undefined {
    return this.#server.find(id);
  }

  /** The sessions in one of these rooms: `to("a", "b").send(data)` reaches each once. */
  to(...rooms: string[]): Audience {
    const { rooms: all } = this.#server;
    return {
      get sessions() {
        return all.in(rooms);
      },
      send: (data, options) => this.#send(all.in(rooms), data, options),
      sendVolatile: (data, options) => sendVolatileTo(all.in(rooms), driverOf, data, options),
    };
  }

  /** Sends to every session, without waiting. */
  broadcast(data: Sendable, options?: SendOptions): Sent {
    return this.#send(this.sessions, data, options);
  }

  /** The names of the rooms that have members. */
  get rooms(): string[] {
    return this.#server.rooms.names;
  }

  /** A session begins: before its handler is called. Returns what removes the listener, as the next three do. */
  onSession(listener: Presence["session"]): () => void {
    return this.#server.listen("session", listener);
  }

  /** A session's client is back over a new connection. */
  onResumed(listener: Presence["resumed"]): () => void {
    return this.#server.listen("resumed", listener);
  }

  /** A session's client is away; the session waits for it. */
  onDetached(listener: Presence["detached"]): () => void {
    return this.#server.listen("detached", listener);
  }

  /** A session is over; it has left its rooms. */
  onClosed(listener: Presence["closed"]): () => void {
    return this.#server.listen("closed", listener);
  }

  /** Counts of now and since the start. Looks at every session. */
  stats(): Stats {
    return statsOf(this.#server);
  }

  /** The same in Prometheus' text format, named as in the gateway's `docs/METRICS.md`. */
  metrics(): string {
    return metricsOf(this.stats());
  }

  /** @internal For `@mainstay/fastify/testing`: the session's resume window passes now, if its client is away. */
  expire(session: Session): void {
    driverOf(session).expire();
  }

  #send(sessions: Iterable<Session>, data: Sendable, options?: SendOptions): Sent {
    const result = sendTo(sessions, driverOf, data, options);
    this.#server.counts.slow.closed += result.closed;
    this.#server.counts.slow.skipped += result.skipped;
    return result;
  }
}
