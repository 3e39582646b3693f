/**
 * A client of `mainstay.v1` for tests of an application: it runs the hooks and the handler of a route without a network,
 * and does what networks do when the test says so: it detaches, resumes, and lets the session expire.
 *
 * Nothing here waits for a timer.
 */

import { randomFillSync } from "node:crypto";
import { once } from "node:events";
import { type Bytes, ClientSession, type Data, decode, type Fate, type SessionEvent, toHex } from "@mainstay/client/protocol";
import type { FastifyInstance } from "fastify";
import type { WebSocket } from "ws";
import { dataOf, type Sendable, type Session } from "./session.js";

export interface ConnectOptions {
  /** Headers of the upgrade request, such as `cookie`. */
  headers?: Record<string, string>;
  /** What `authenticate` gets. */
  credentials?: string | Uint8Array;
  /** An application's subprotocol. */
  subprotocol?: string;
}

/** The server refused: an end, a code of `docs/PROTOCOL.md` "Closing" or of a Close, and why. */
export class RefusedError extends Error {
  override name = "RefusedError";
  declare code: number;

  constructor(code: number, reason: string) {
    super(`refused with ${code}${reason && `: ${reason}`}`);
    this.code = code;
  }
}

/**
 * Opens a session at a path. Settles when it is attached and its handler was called.
 * @throws RefusedError, or the error of `injectWS` if an HTTP status refused the upgrade.
 */
export async function connect(app: FastifyInstance, path: string, options: ConnectOptions = {}): Promise<TestClient> {
  await app.ready();
  const client = new TestClient(app, path, options);
  await client.resume();
  return client;
}

/** Names the upgrade of an injected connection. */
const INJECTED = Symbol("mainstay.testing");

/** Both ends of one injected connection. */
interface Wire {
  near: WebSocket;
  /** The server's: a closing handshake does not come to its end without a network. */
  far: WebSocket | undefined;
}

/** A client whose connection breaks when the test says so. */
export class TestClient {
  /** What the client was told of lost sessions, one for each: the fate of what it sent, and how much it missed. */
  readonly gaps: Fate[] = [];
  /** The code and the reason of the session's end, or of the refusal. Undefined: it goes on. */
  end: { code: number; reason: string } | undefined;
  #app: FastifyInstance;
  #path: string;
  #options: ConnectOptions;
  #client: ClientSession;
  #wire: Wire | undefined;
  #connections = 0;
  #session: Session | undefined;
  #heard: (string | Buffer)[] = [];
  #volatile: (string | Buffer)[] = [];
  /** Called whenever something came. */
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

  /** The server's end of it: what the handler got. */
  get session(): Session {
    if (!this.#session) throw new Error("no session was attached");
    return this.#session;
  }

  /** Sends a message, now or when it is resumed. */
  send(data: Sendable): void {
    if (!this.#client.send(dataOf(data))) throw new Error(this.end ? "the session is over" : "more is sent than may be kept");
    this.#write();
  }

  /** The next message of the server. @throws if the session is over before one comes. */
  async next(): Promise<string | Buffer> {
    await this.#until(() => this.#heard.length > 0 || !!this.end);
    if (!this.#heard.length) throw new Error(`the session is over: ${this.end!.code} ${this.end!.reason}`);
    return this.#heard.shift()!;
  }

  /** The next message from outside the stream. */
  async nextVolatile(): Promise<string | Buffer> {
    await this.#until(() => this.#volatile.length > 0 || !!this.end);
    if (!this.#volatile.length) throw new Error(`the session is over: ${this.end!.code} ${this.end!.reason}`);
    return this.#volatile.shift()!;
  }

  /** What has come and was not asked for with {@link next}. */
  get waiting(): readonly (string | Buffer)[] {
    return this.#heard;
  }

  /** The connection breaks without a word. Settles when the server knows, and its session is parked. */
  async detach(): Promise<void> {
    const wire = this.#wire;
    if (!wire) return;
    const session = this.session;
    const known = session.state === "attached" && once(session, "detached");
    this.#lose();
    wire.near.terminate();
    await known;
    wire.far?.terminate();
  }

  /**
   * Comes back over a new connection; one that is still there is replaced by it. True: the session goes on. False: it was
   * gone, this is a new one, and {@link gaps} has one more. @throws RefusedError, as {@link connect}
   */
  async resume(): Promise<boolean> {
    const before = this.#session;
    const old = this.#wire;
    this.#isAttached = false;
    let closed: [code: number, reason: string] | undefined;
    const wire = await this.#dial(++this.#connections, (code, reason) => (closed = [code, reason]));
    this.#wire = wire;
    this.#client.handleOpened(performance.now(), this.#connections);
    this.#write();
    // The Close has the words of a refusal.
    await this.#until(() => this.#isAttached || !!closed);
    cut(old);
    if (!this.#isAttached) {
      cut(wire);
      throw new RefusedError(...closed!);
    }
    return this.#session === before;
  }

  /** The session's resume window passes while its client is away: it detaches first if it has to. */
  async expire(): Promise<void> {
    await this.detach();
    this.#app.mainstay.expire(this.session);
  }

  /** Ends the session in order. Settles when the server has taken everything and says so. */
  async close(code = 1000, reason = ""): Promise<void> {
    this.#client.close(code, reason);
    this.#write();
    await this.#until(() => !!this.end);
    cut(this.#wire);
  }

  async #dial(epoch: number, onClose: (code: number, reason: string) => void): Promise<Wire> {
    const app = this.#app;
    const { subprotocol, headers } = this.#options;
    const protocol = subprotocol === undefined ? "mainstay.v1" : `mainstay.v1+${subprotocol}`;
    const upgrade = { headers: { ...headers, "sec-websocket-protocol": protocol }, [INJECTED]: {} };
    let far: WebSocket | undefined;
    const accept = (socket: WebSocket, request: object) => {
      if ((request as typeof upgrade)[INJECTED] === upgrade[INJECTED]) far = socket;
    };
    app.websocketServer.on("connection", accept);
    try {
      const near = await app.injectWS(this.#path, upgrade, { onInit: (socket) => this.#listen(socket, epoch, onClose) });
      return { near, far };
    } finally {
      app.websocketServer.off("connection", accept);
    }
  }

  #listen(socket: WebSocket, epoch: number, onClose: (code: number, reason: string) => void): void {
    socket.on("message", (data: Buffer<ArrayBuffer>, isBinary) => this.#receive(epoch, isBinary ? data : data.toString()));
    socket.on("error", () => {});
    socket.on("close", (code, reason) => {
      onClose(code, reason.toString());
      if (this.#wire?.near === socket) this.#lose();
      this.#wake();
    });
  }

  #receive(epoch: number, data: Data): void {
    this.#client.handleFrame(epoch, decode(data));
    for (let delivery; (delivery = this.#client.deliver(performance.now())); ) {
      if (delivery.data !== undefined) this.#heard.push(present(delivery.data));
    }
    this.#write();
    this.#wake();
  }

  /** Everything that is due, and acknowledgements before their time, so that no timer is needed. */
  #write(): void {
    for (let output; (output = this.#client.pollTransmit(performance.now() + 1000)); ) {
      if (output.kind === "write") this.#wire?.near.send(output.data);
      else this.#wire?.near.close(1000);
    }
    for (let event; (event = this.#client.pollEvent()); ) this.#handle(event);
  }

  #lose(): void {
    this.#wire = undefined;
    this.#client.handleLost(this.#connections);
    this.#write();
  }

  async #until(isTrue: () => boolean): Promise<void> {
    while (!isTrue()) await new Promise<void>((resolve) => (this.#wake = resolve));
  }

  #handle(event: SessionEvent): void {
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
}

/** Both ends see that it is gone. */
function cut(wire: Wire | undefined): void {
  wire?.near.terminate();
  wire?.far?.terminate();
}

function present(data: Data): string | Buffer {
  return typeof data === "string" ? data : Buffer.from(data);
}
