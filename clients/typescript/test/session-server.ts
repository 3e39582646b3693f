/** A server of `mainstay.v1` that a test controls. It keeps the messages of each connection, in order. */

import { once } from "node:events";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";
import type { Options } from "@mainstay/client";
import { WebSocket as NodeSocket, WebSocketServer } from "ws";
import { type Account, type Control, decode, encode, type Frame, type Hello, Type } from "../src/wire.js";

export const WebSocket = NodeSocket as unknown as NonNullable<Options["WebSocket"]>;

/** One connection of the client. */
export class ClientConnection {
  /** The application's messages: text, or the length of bytes. */
  readonly received: (string | number)[] = [];
  hello: Hello | undefined;

  constructor(
    private socket: NodeSocket,
    private server: SessionServer,
    /** The path and query of the opening request. */
    readonly path: string,
  ) {
    socket.on("message", (data: Buffer<ArrayBuffer>, isBinary) => this.read(decode(isBinary ? new Uint8Array(data) : data.toString())));
  }

  write(...messages: (Control | string)[]): void {
    for (const message of messages) this.socket.send(typeof message === "string" ? message : encode(message));
  }

  welcome(account?: Account, maxMessage?: number, resumeAt?: string): void {
    const bytes = (length: number) => new Uint8Array(length).fill(this.server.connections.length);
    this.write({ type: Type.Welcome, id: bytes(8), token: bytes(24), epoch: 1, resumed: false, acknowledged: 0, first: 1, resumeWindowMs: 120_000, heartbeatIntervalMs: 25_000, window: { messages: 1024, bytes: 1_048_576 }, account, maxMessage, resumeAt });
  }

  resume(epoch: number, acknowledged: number, first: number, resumeAt?: string): void {
    const bytes = (length: number) => new Uint8Array(length).fill(this.server.connections.length);
    this.write({ type: Type.Welcome, id: bytes(8), token: bytes(24), epoch, resumed: true, acknowledged, first, resumeWindowMs: 120_000, heartbeatIntervalMs: 25_000, window: { messages: 1024, bytes: 1_048_576 }, resumeAt });
  }

  /** Acknowledges all messages that were received. */
  acknowledge(): void {
    this.write({ type: Type.Ack, acknowledged: this.received.length });
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
      this.server.onHello(this, this.server.connections.push(this));
    } else if (frame?.type === Type.Data) {
      const { data } = frame;
      this.received.push(typeof data === "string" ? data : data.length);
      this.server.onMessage(this, this.received.at(-1)!);
    }
  }
}

export class SessionServer {
  url = "";
  readonly connections: ClientConnection[] = [];
  /** `number` counts the connections from 1. */
  onHello: (connection: ClientConnection, number: number) => void = (connection) => connection.welcome();
  onMessage: (connection: ClientConnection, message: string | number) => void = () => {};

  static async open(t: TestContext): Promise<SessionServer> {
    const self = new SessionServer();
    const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "mainstay.v1" });
    server.on("connection", (socket, { url }) => new ClientConnection(socket, self, `${url}`));
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
export function positionsOf({ hello }: ClientConnection): number[] {
  const { acknowledged, sent, firstHeld } = hello!.resume!;
  return [acknowledged, sent, firstHeld];
}
