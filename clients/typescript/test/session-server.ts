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
    this.write({ type: Type.Welcome, id: bytes(8), token: bytes(24), epoch: 1, resumed: false, acknowledged: 0, first: 1, resumeWindowMs: 120_000, heartbeatIntervalMs: 25_000, window: { messages: 1024, bytes: 1_048_576 }, account, maxMessage });
  }

  resume(epoch: number, acknowledged: number, first: number): void {
    const bytes = (length: number) => new Uint8Array(length).fill(this.server.visits.length);
    this.write({ type: Type.Welcome, id: bytes(8), token: bytes(24), epoch, resumed: true, acknowledged, first, resumeWindowMs: 120_000, heartbeatIntervalMs: 25_000, window: { messages: 1024, bytes: 1_048_576 } });
  }

  /** The application of the server was handed all that was heard. */
  acknowledge(): void {
    this.write({ type: Type.Ack, acknowledged: this.heard.length });
  }

  cut(): void {
    this.socket.terminate();
  }

  close(code: number, reason = ""): void {
    this.socket.close(code, reason);
  }

  private read(frame: Frame): void {
    if (frame?.type === Type.Hello) {
      this.hello = frame;
      this.server.onHello(this, this.server.visits.push(this));
    } else if (frame?.type === Type.Data) {
      const { data } = frame;
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

/** The numbers with which a connection resumed: acknowledged, sent, first held. */
export function positionsOf({ hello }: Visit): number[] {
  const { acknowledged, sent, firstHeld } = hello!.resume!;
  return [acknowledged, sent, firstHeld];
}
