/**
 * A client of `mainstay.v1` for an application's tests. It runs the hooks and the handler of a route without a network. The
 * test decides when the connection breaks, when the client comes back, and when its session expires.
 *
 * Nothing here waits for a timer.
 *
 * @example
 * const client = await connect(app, "/echo");
 * client.send("hello");
 * assert.equal(await client.next(), "hello");
 * await client.close();
 */

import { randomFillSync } from "node:crypto";
import { once } from "node:events";
import { type Bytes, ClientSession, type Data, decode, type Fate, type SessionEvent, toHex } from "@mainstay/client/protocol";
import type { FastifyInstance } from "fastify";
import type { WebSocket } from "ws";
import { dataOf, type Sendable, type Session } from "./session.js";

/** The options of {@link connect}. */
export interface ConnectOptions {
  /** Header fields of the upgrade request, such as `cookie`. @default none */
  headers?: Record<string, string>;
  /** The credentials for the server's `authenticate`. @default none */
  credentials?: string | Uint8Array;
  /** The application's subprotocol. @default none */
  subprotocol?: string;
}

/** The server refused the client, with a code of `docs/PROTOCOL.md` "Closing" or of a Close. */
export class RefusedError extends Error {
  override name = "RefusedError";
  /** The close code. */
  declare code: number;

  constructor(code: number, reason: string) {
    super(`refused with ${code}${reason && `: ${reason}`}`);
    this.code = code;
  }
}

/**
 * Opens a session at a path. The promise settles once the session is attached and its handler was called.
 * @throws RefusedError if the server refuses the client, or the error of `injectWS` if it answers with an HTTP status.
 */
export async function connect(app: FastifyInstance, path: string, options: ConnectOptions = {}): Promise<TestClient> {
  await app.ready();
  const client = new TestClient(app, path, options);
  await client.resume();
  return client;
}

/** Marks the upgrade request of an injected connection. */
const INJECTED = Symbol("mainstay.testing");

/** Both ends of one injected connection. */
interface Wire {
  client: WebSocket;
  /** Needed to end the connection: without a network, no closing handshake finishes. */
  server: WebSocket | undefined;
}

/** A client whose connection the test controls. */
export class TestClient {
  /** One entry for each lost session: what became of the client's messages, and how many of the server's it missed. */
  readonly gaps: Fate[] = [];
  /** The code and the reason of the session's end, or of the refusal. Undefined while the session goes on. */
  end: { code: number; reason: string } | undefined;
  #app: FastifyInstance;
  #path: string;
  #options: ConnectOptions;
  #client: ClientSession;
  #wire: Wire | undefined;
  #connections = 0;
  #session: Session | undefined;
  #received: (string | Buffer)[] = [];
  #volatile: (string | Buffer)[] = [];
  /** Called after every event. */
  #wake = () => {};
  #isAttached = false;

  /** @internal */
  constructor(app: FastifyInstance, path: string, options: ConnectOptions) {
    this.#app = app;
    this.#path = path;
    this.#options = options;
    this.#client = new ClientSession({}, (length) => randomFillSync(new Uint8Array(length)) as Bytes);
    const { credentials } = options;
    if (credentials !== undefined) this.#client.credentials = new Uint8Array(Buffer.from(credentials));
  }

  /** The server's end of the session, which the handler received. */
  get session(): Session {
    if (!this.#session) throw new Error("no session was attached");
    return this.#session;
  }

  /** Sends a message, now or at the next {@link resume}. @throws Error if the session has ended, or keeps too much. */
  send(data: Sendable): void {
    if (!this.#client.send(dataOf(data))) throw new Error(this.end ? "the session has ended" : "the client keeps as many messages as it may: the server acknowledges none");
    this.#update();
  }

  /** Returns the server's next message. @throws Error if the session ends before one arrives. */
  async next(): Promise<string | Buffer> {
    return this.#nextOf(this.#received);
  }

  /** Returns the server's next message outside the stream. @throws Error if the session ends before one arrives. */
  async nextVolatile(): Promise<string | Buffer> {
    return this.#nextOf(this.#volatile);
  }

  async #nextOf(queue: (string | Buffer)[]): Promise<string | Buffer> {
    await this.#until(() => queue.length > 0 || !!this.end);
    if (!queue.length) throw new Error(`the session has ended: ${this.end!.code} ${this.end!.reason}`);
    return queue.shift()!;
  }

  /** The messages that arrived and that {@link next} has not returned yet. */
  get waiting(): readonly (string | Buffer)[] {
    return this.#received;
  }

  /** Breaks the connection, without a Close. The promise settles once the server has parked the session. */
  async detach(): Promise<void> {
    const wire = this.#wire;
    if (!wire) return;
    const session = this.session;
    const detached = session.state === "attached" && once(session, "detached");
    this.#handleLost();
    wire.client.terminate();
    await detached;
    wire.server?.terminate();
  }

  /**
   * Comes back over a new connection, which replaces one that still exists. Returns true if the session goes on. Returns false
   * if the session was lost: {@link session} is a new one then, and {@link gaps} has one more entry.
   * @throws RefusedError or the error of `injectWS`, as {@link connect}.
   */
  async resume(): Promise<boolean> {
    const before = this.#session;
    const old = this.#wire;
    this.#isAttached = false;
    let closed: [code: number, reason: string] | undefined;
    const wire = await this.#dial(++this.#connections, (code, reason) => (closed = [code, reason]));
    this.#wire = wire;
    this.#client.handleOpened(performance.now(), this.#connections);
    this.#update();
    // The Close that follows a REFUSE carries the reason.
    await this.#until(() => this.#isAttached || !!closed);
    terminate(old);
    if (!this.#isAttached) {
      terminate(wire);
      throw new RefusedError(...closed!);
    }
    return this.#session === before;
  }

  /** Lets the session's resume window pass while the client is away. Detaches the client first if it is attached. */
  async expire(): Promise<void> {
    await this.detach();
    this.#app.mainstay.expire(this.session);
  }

  /** Ends the session in order. The promise settles once the server has received everything and has confirmed the end. */
  async close(code = 1000, reason = ""): Promise<void> {
    this.#client.close(code, reason);
    this.#update();
    await this.#until(() => !!this.end);
    terminate(this.#wire);
  }

  async #dial(epoch: number, onClose: (code: number, reason: string) => void): Promise<Wire> {
    const app = this.#app;
    const { subprotocol, headers } = this.#options;
    const protocol = subprotocol === undefined ? "mainstay.v1" : `mainstay.v1+${subprotocol}`;
    const upgrade = { headers: { ...headers, "sec-websocket-protocol": protocol }, [INJECTED]: {} };
    let server: WebSocket | undefined;
    const accept = (socket: WebSocket, request: object) => {
      if ((request as typeof upgrade)[INJECTED] === upgrade[INJECTED]) server = socket;
    };
    app.websocketServer.on("connection", accept);
    try {
      const client = await app.injectWS(this.#path, upgrade, { onInit: (socket) => this.#listen(socket, epoch, onClose) });
      return { client, server };
    } finally {
      app.websocketServer.off("connection", accept);
    }
  }

  #listen(socket: WebSocket, epoch: number, onClose: (code: number, reason: string) => void): void {
    socket.on("message", (data: Buffer<ArrayBuffer>, isBinary) => this.#handleMessage(epoch, isBinary ? data : data.toString()));
    socket.on("error", () => {});
    socket.on("close", (code, reason) => {
      onClose(code, reason.toString());
      if (this.#wire?.client === socket) this.#handleLost();
      this.#wake();
    });
  }

  #handleMessage(epoch: number, data: Data): void {
    this.#client.handleFrame(epoch, decode(data));
    for (let delivery; (delivery = this.#client.deliver(performance.now())); ) {
      if (delivery.data !== undefined) this.#received.push(present(delivery.data));
    }
    this.#update();
    this.#wake();
  }

  #handleLost(): void {
    this.#wire = undefined;
    this.#client.handleLost(this.#connections);
    this.#update();
  }

  /** Handles the events of the machine and writes its output. Acknowledgements go before their time, so no timer is needed. */
  #update(): void {
    for (let event; (event = this.#client.pollEvent()); ) this.#handleEvent(event);
    for (let output; (output = this.#client.pollTransmit(performance.now() + 1000)); ) {
      // Output for an older connection has no effect: that connection is lost.
      if (output.id !== this.#connections) continue;
      if (output.kind === "write") this.#wire?.client.send(output.data);
      else this.#wire?.client.close(1000);
    }
  }

  #handleEvent(event: SessionEvent): void {
    if (event.type === "gap") this.gaps.push(event.fate);
    else if (event.type === "volatile") this.#volatile.push(present(event.data));
    else if (event.type === "attached") {
      this.#isAttached = true;
      this.#session = this.#app.mainstay.get(toHex(event.welcome.id)) ?? this.#session;
    } else if (event.type === "ended") {
      this.end = { code: event.code, reason: event.reason };
      this.#wake();
    }
  }

  async #until(isTrue: () => boolean): Promise<void> {
    while (!isTrue()) await new Promise<void>((resolve) => (this.#wake = resolve));
  }
}

/** Ends the connection at both ends. */
function terminate(wire: Wire | undefined): void {
  wire?.client.terminate();
  wire?.server?.terminate();
}

function present(data: Data): string | Buffer {
  return typeof data === "string" ? data : Buffer.from(data);
}
