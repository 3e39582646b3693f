/** A cable in this process: a test cuts it between two messages. Other tests break connections by `@mainstay/chaos`. */

import { once } from "node:events";
import net from "node:net";

export class Cable {
  private server = net.createServer((near) => this.join(near));
  private ends = new Set<net.Socket>();
  private isRefusing = false;

  constructor(private target: () => number) {}

  async open(): Promise<this> {
    await once(this.server.listen(0, "127.0.0.1"), "listening");
    return this;
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.server.address() as net.AddressInfo).port}`;
  }

  /** Resets every connection. */
  cut(): void {
    for (const end of this.ends) reset(end);
  }

  /** Refuses new connections. */
  refuse(isRefusing: boolean): void {
    this.isRefusing = isRefusing;
  }

  async close(): Promise<void> {
    this.cut();
    await new Promise<void>((done) => this.server.close(() => done()));
  }

  private join(near: net.Socket): void {
    if (this.isRefusing) return reset(near);
    const far = net.connect(this.target(), "127.0.0.1");
    for (const [from, to] of [[near, far], [far, near]] as const) {
      this.ends.add(from);
      from.setNoDelay().pipe(to);
      from.on("error", () => to.destroy());
      from.on("close", () => (to.destroy(), this.ends.delete(from)));
    }
  }
}

/** Node 20 cannot reset a socket that is being shut down: it would leave it open, and never end. */
function reset(socket: net.Socket): void {
  if (socket.writableEnded) socket.destroy();
  else socket.resetAndDestroy();
}
