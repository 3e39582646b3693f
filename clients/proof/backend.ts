/** The application behind the gateway: it echoes each message, and remembers it. */

import net from "node:net";
import { WebSocketServer } from "ws";

export class Backend {
  /** The numbers of the messages of each connection, in order. One connection is one session of the gateway. */
  readonly seen: number[][] = [];

  private constructor(private server: WebSocketServer) {
    server.on("connection", (connection) => {
      const numbers: number[] = [];
      this.seen.push(numbers);
      connection.on("message", (data: Buffer, isBinary) => {
        numbers.push(data.length < 1000 ? Number(data.toString()) : data.readUInt32BE());
        connection.send(data, { binary: isBinary });
      });
    });
  }

  static async open(): Promise<Backend> {
    const server = new WebSocketServer({ port: 0, host: "127.0.0.1", maxPayload: 16 * 1024 * 1024 });
    await new Promise((done) => server.once("listening", done));
    return new Backend(server);
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.server.address() as net.AddressInfo).port}`;
  }

  close(): void {
    for (const connection of this.server.clients) connection.terminate();
    this.server.close();
  }
}
