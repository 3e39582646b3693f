/** A server of `mainstay.v1` that does what a test tells it: it shows what each session was sent, in order. */

import { once } from "node:events";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";
import type { Options } from "@mainstay/client";
import { WebSocket as NodeSocket, WebSocketServer } from "ws";
import { type Account, type Control, decode, encode, type Frame, type Hello, Type } from "../src/wire.js";

export const WebSocket = NodeSocket as unknown as NonNullable<Options["WebSocket"]>;

/** One connection of the client. */
export class Visit {
  /** The application's messages, text or length. */
  readonly heard: (string | number)[] = [];
  hello: Hello | undefined;

  constructor(
    private socket: NodeSocket,
    private server: SessionServer,
  ) {
    socket.on("message", (data: Buffer<ArrayBuffer>, isBinary) => this.read(decode(isBinary ? new Uint8Array(data) : data.toString())));
  }

  write(...messages: (Control | string)[]): void {
    for (const message of messages) this.socket.send(typeof message === "string" ? message : encode(message));
  }

  welcome(account?: Account, maxMessage?: number): void {
    const bytes = (length: number) => new Uint8Array(length).fill(this.server.visits.length);
    this.write([Type.Welcome, bytes(8), bytes(24), 1, false, 0, 1, 120_000, 25_000, [1024, 1_048_576], account, undefined, maxMessage]);
  }

  resume(epoch: number, received: number, first: number): void {
    const bytes = (length: number) => new Uint8Array(length).fill(this.server.visits.length);
    this.write([Type.Welcome, bytes(8), bytes(24), epoch, true, received, first, 120_000, 25_000, [1024, 1_048_576]]);
  }

  /** The application of the server was handed all that was heard. */
  acknowledge(): void {
    this.write([Type.Ack, this.heard.length]);
  }

  cut(): void {
    this.socket.terminate();
  }

  close(code: number, reason = ""): void {
    this.socket.close(code, reason);
  }

  private read(frame: Frame): void {
    if (frame?.[0] === Type.Hello) {
      this.hello = frame;
      this.server.onHello(this, this.server.visits.push(this));
    } else if (frame?.[0] === Type.Data) {
      const [, data] = frame;
      this.heard.push(typeof data === "string" ? data : data.length);
      this.server.onMessage(this, this.heard.at(-1)!);
    }
  }
}

export class SessionServer {
  url = "";
  readonly visits: Visit[] = [];
  /** `visit` counts them from 1. */
  onHello: (visit: Visit, number: number) => void = (visit) => visit.welcome();
  onMessage: (visit: Visit, message: string | number) => void = () => {};

  static async open(t: TestContext): Promise<SessionServer> {
    const self = new SessionServer();
    const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "mainstay.v1" });
    server.on("connection", (socket) => new Visit(socket, self));
    await once(server, "listening");
    self.url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}`;
    t.after(() => {
      for (const client of server.clients) client.terminate();
      server.close();
    });
    return self;
  }
}
