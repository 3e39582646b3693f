/**
 * A server of `mainstay.v1` for tests of an application, without a network. The test passes it to the socket as the option
 * `WebSocket`, and then makes it deliver, detach, resume, end and expire.
 *
 * The server sets no timer; the client has its own. After a loss the client dials again within a second, or at once on `reconnect()`.
 *
 * @example
 * const server = new TestServer();
 * const socket = new MainstaySocket("ws://test", [], { WebSocket: server.WebSocket });
 * const session = await server.session();
 * session.deliver("welcome");
 */

import type { WebSocketLike } from "./options.js";
import { Flow, Inbox, type Lane, Outbox } from "./flow.js";
import { type Account, type Bytes, bytesOf, Cause, type Control, type Data, decode, encode, type Frame, type Hello, toHex, Type, viewOf, type Window } from "./wire.js";

const WINDOW: Window = { messages: 1024, bytes: 1_048_576 };
/** The announced heartbeat interval. No heartbeat is sent, and the client waits for two hours. */
const HOUR = 3_600_000;

/** Calls the function later, without a timer or a microtask that a test may have replaced. */
const later = (act: () => void) => void Promise.resolve().then(act);

/** The server. It accepts any number of sockets. */
export class TestServer {
  /** The value for the option `WebSocket` of the sockets. */
  readonly WebSocket: WebSocketLike;
  /** All sessions so far, the newest last. */
  readonly sessions: TestSession[] = [];
  private given = 0;
  private wake = () => {};

  constructor() {
    const begin = (session: TestSession) => {
      this.sessions.push(session);
      this.wake();
    };
    const { sessions } = this;
    this.WebSocket = class extends Connection {
      constructor(_url: string, protocols?: string | string[]) {
        super(([] as string[]).concat(protocols ?? []), sessions, begin);
      }
    };
  }

  /** Waits for the next session, and returns it. Each session is returned once, in order. */
  async session(): Promise<TestSession> {
    while (this.sessions.length <= this.given) await new Promise<void>((resolve) => (this.wake = resolve));
    return this.sessions[this.given++]!;
  }
}

/** The server's end of one session. It receives and acknowledges the client's messages as they come. */
export class TestSession {
  /** The client's messages that {@link next} has not returned. */
  readonly waiting: Data[] = [];
  /** The client's messages outside the stream. */
  readonly volatiles: Data[] = [];
  /** The newest credentials of the client. */
  credentials: Bytes | undefined;
  /** The code and the reason of the end, by the client or by {@link end}. Undefined while the session goes on. */
  ended: { code: number; reason: string } | undefined;
  /** @internal */
  token: Bytes;
  /** @internal */
  account: Account | undefined;
  /** The connection that waits for its WELCOME, while the session is detached. */
  declare private asking: [connection: Connection, hello: Hello] | undefined;
  declare private connection: Connection | undefined;
  private flow = new Flow(new Outbox(WINDOW), new Inbox(WINDOW));
  private lane: Lane = { wrote: 0, read: 0 };
  private epoch = 0;
  private isAway = false;
  private wake: () => void = () => {};

  /** @internal */
  constructor(private number: number) {
    this.token = new Uint8Array(24).fill(number);
  }

  /** Whether the client has a connection. */
  get isAttached(): boolean {
    return !!this.connection;
  }

  /** Sends the client a message; while the client is detached, the message is kept. @throws RangeError if there is no room */
  deliver(data: string | Bytes): void {
    if (!this.flow.outbox.push(data)) throw new RangeError("the client acknowledges no message: there is no room for another");
    this.write();
  }

  /** Sends the client a message outside the stream. */
  deliverVolatile(data: string | Bytes): void {
    this.connection?.write({ type: Type.Volatile, data });
  }

  /** Waits for the next message of the client, and returns it. @throws if the session ends before one comes */
  async next(): Promise<Data> {
    while (!this.waiting.length) {
      if (this.ended) throw new Error(`the session is over: ${this.ended.code} ${this.ended.reason}`);
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
    return this.waiting.shift()!;
  }

  /** Cuts the connection without a Close. The client gets no other before {@link resume}. */
  detach(): void {
    this.isAway = true;
    this.connection?.drop(1006, "");
  }

  /** Lets the client come back, and waits until it is attached. */
  async resume(): Promise<void> {
    this.isAway = false;
    if (this.asking) this.attach(...this.asking);
    while (!this.connection) {
      if (this.account || this.ended) throw new Error("the session is over: its client begins another");
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
  }

  /** Forgets the session, as a server does after the resume window: the client gets one `gap`, and begins another session. */
  expire(): void {
    const { inbox, outbox } = this.flow;
    const lost = outbox.last - outbox.acknowledged;
    this.account = { acknowledged: inbox.acknowledged, delivered: inbox.delivered, firstLost: outbox.acknowledged + 1, count: lost, cause: Cause.Expired };
    this.connection?.drop(1006, "");
    this.asking?.[0].drop(1006, "");
    this.wake();
  }

  /** Ends the session in order, as the server's application does. */
  end(code = 1000, reason = ""): void {
    const { inbox } = this.flow;
    this.ended = { code, reason };
    this.connection?.write({ type: Type.End, code, reason, acknowledged: inbox.acknowledged, delivered: inbox.delivered });
    this.wake();
  }

  /** @internal */
  hello(connection: Connection, hello: Hello): void {
    if (this.isAway) this.asking = [connection, hello];
    else this.attach(connection, hello);
  }

  /** @internal */
  attach(connection: Connection, { window, resume, credentials }: Hello, account?: Account): void {
    const { inbox, outbox } = this.flow;
    const before = this.connection;
    this.asking = undefined;
    this.connection = connection;
    before?.drop(4409, "");
    this.credentials = credentials ?? this.credentials;
    outbox.peer = window;
    const acknowledged = resume && this.epoch ? resume.acknowledged : 0;
    outbox.acknowledge(acknowledged);
    this.lane = { wrote: acknowledged, read: inbox.acknowledged };
    this.token = Uint8Array.from(this.token, (byte, at) => (at ? byte : byte + 1));
    connection.session = this;
    const id = new Uint8Array(8).fill(this.number);
    connection.write({
      type: Type.Welcome,
      id,
      token: this.token,
      epoch: ++this.epoch,
      resumed: this.epoch > 1,
      acknowledged: inbox.ack(),
      first: acknowledged + 1,
      resumeWindowMs: 120_000,
      heartbeatIntervalMs: HOUR,
      window: WINDOW,
      account,
    });
    this.write();
    this.wake();
  }

  /** @internal */
  lose(connection: Connection): void {
    if (this.connection === connection) this.connection = undefined;
    if (this.asking?.[0] === connection) this.asking = undefined;
  }

  /** @internal */
  read(frame: Frame): void {
    const { flow, lane, connection } = this;
    const { outbox, inbox } = flow;
    if (!frame || !connection) return;
    if (frame.type === Type.Data) flow.readData(lane, frame.data);
    else if (frame.type === Type.Ack) outbox.acknowledge(frame.acknowledged);
    else if (frame.type === Type.Ping || frame.type === Type.Pong) flow.readBeat(lane, frame);
    else if (frame.type === Type.Volatile) this.volatiles.push(frame.data);
    else if (frame.type === Type.Auth) {
      this.credentials = frame.credentials;
      connection.write({ type: Type.AuthResult, accepted: true, expiresInMs: 0 });
    } else if (frame.type === Type.End) this.over(frame.code, frame.reason);
    for (let got; (got = inbox.deliver(0)); ) if (got.data !== undefined) this.waiting.push(got.data);
    const beat = flow.writeOwed(0, lane);
    if (beat) connection.write(beat);
    else if (inbox.acknowledged > inbox.acked) connection.write({ type: Type.Ack, acknowledged: inbox.ack() });
    outbox.trim(lane.wrote);
    this.write();
    this.wake();
  }

  /** Answers the client's END, unless that is an answer itself. */
  private over(code: number, reason: string): void {
    if (!this.ended) this.end(code, reason);
    const { connection } = this;
    later(() => connection?.drop(1000, ""));
  }

  private write(): void {
    const { connection } = this;
    for (let data; connection && !this.ended && (data = this.flow.writeData(this.lane)) !== undefined; ) connection.write(data);
  }
}

/** The connections of the socket, in place of a WebSocket. */
class Connection {
  binaryType: unknown = "blob";
  protocol = "";
  readyState = 0;
  readonly extensions = "";
  readonly bufferedAmount = 0;
  onopen: any = null;
  onmessage: any = null;
  onclose: any = null;
  onerror: any = null;
  /** @internal */
  session: TestSession | undefined;

  constructor(
    offered: string[],
    private sessions: TestSession[],
    private begin: (session: TestSession) => void,
  ) {
    const protocol = offered.find((name) => /^mainstay\.v1(\+|$)/.test(name));
    later(() => {
      if (this.readyState) return;
      // This server accepts only clients that offer sessions.
      if (protocol === undefined) return this.drop(1006, "");
      this.readyState = 1;
      this.protocol = protocol;
      this.onopen?.({});
    });
  }

  send(data: Data): void {
    const frame = decode(typeof data === "string" ? data : viewOf(data.slice().buffer));
    later(() => {
      if (this.readyState > 1) return;
      if (this.session) this.session.read(frame);
      else if (frame?.type === Type.Hello) this.hello(frame);
    });
  }

  close(code = 1000, reason = ""): void {
    if (this.readyState < 2) later(() => this.drop(code, reason));
  }

  private hello(hello: Hello): void {
    const token = hello.resume && toHex(hello.resume.token);
    const session = token && this.sessions.find((session) => toHex(session.token) === token);
    if (session && !session.account && !session.ended) return session.hello(this, hello);
    const begun = new TestSession(this.sessions.length + 1);
    begun.attach(this, hello, session ? session.account : undefined);
    this.begin(begun);
  }

  /** @internal */
  write(message: Control | Data): void {
    const data = typeof message === "string" || message instanceof Uint8Array ? message : encode(message);
    const received = typeof data === "string" ? data : data.slice().buffer;
    later(() => this.readyState === 1 && this.onmessage?.({ data: received }));
  }

  /** @internal */
  drop(code: number, reason: string): void {
    if (this.readyState > 2) return;
    this.readyState = 3;
    for (const session of this.sessions) session.lose(this);
    later(() => this.onclose?.({ code, reason, wasClean: code !== 1006 }));
  }
}

/** Returns a message as text, for comparisons in tests. */
export const textOf = (data: Data): string => (typeof data === "string" ? data : new TextDecoder().decode(bytesOf(data)));
