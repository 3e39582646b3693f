/** A cable between a client and a server that a test can cut, silence and narrow: the faults of a network, in one process. */

import net from "node:net";

export class Cable {
  private server = net.createServer((near) => this.join(near));
  private pairs = new Set<[net.Socket, net.Socket]>();
  private isSilent = false;
  private isRefusing = false;
  private bytesPerSecond = Infinity;
  /** When a narrow cable has room again, for each end that it reads from. */
  private freeAt = new WeakMap<net.Socket, number>();
  /** The number of connections so far. */
  count = 0;
  port = 0;

  constructor(private target: () => number) {}

  async open(): Promise<this> {
    await new Promise<void>((done) => this.server.listen(0, "127.0.0.1", done));
    this.port = (this.server.address() as net.AddressInfo).port;
    return this;
  }

  get url(): string {
    return `ws://127.0.0.1:${this.port}`;
  }

  /** Resets every connection. */
  cut(): void {
    for (const [near, far] of this.pairs) {
      reset(near);
      reset(far);
    }
  }

  /** Stops all bytes in both directions, also those of an end, without any notice. New connections pass. */
  silence(): void {
    for (const pair of this.pairs) {
      for (const end of pair) {
        for (const event of ["data", "end", "error", "close"]) end.removeAllListeners(event);
        end.on("data", () => {}).on("error", () => {});
      }
    }
  }

  /** Refuses new connections. */
  refuse(isRefusing: boolean): void {
    this.isRefusing = isRefusing;
  }

  /** Silences new connections too: they are accepted, and no byte follows. */
  swallow(isSilent: boolean): void {
    this.isSilent = isSilent;
  }

  /** Limits the bytes that pass in each direction each second. */
  narrow(bytesPerSecond: number): void {
    this.bytesPerSecond = bytesPerSecond;
  }

  async close(): Promise<void> {
    this.cut();
    await new Promise<void>((done) => this.server.close(() => done()));
  }

  private join(near: net.Socket): void {
    this.count++;
    if (this.isRefusing) return void reset(near);
    if (this.isSilent) return void near.on("error", () => {});
    const far = net.connect(this.target(), "127.0.0.1");
    const pair: [net.Socket, net.Socket] = [near, far];
    this.pairs.add(pair);
    for (const [from, to] of [[near, far], [far, near]] as const) {
      from.setNoDelay();
      from.on("data", (chunk) => this.pass(from, to, chunk));
      from.on("end", () => to.end());
      from.on("error", () => to.destroy());
      from.on("close", () => {
        to.destroy();
        this.pairs.delete(pair);
      });
    }
  }

  private pass(from: net.Socket, to: net.Socket, chunk: Buffer): void {
    if (this.bytesPerSecond === Infinity) {
      if (!to.write(chunk)) {
        from.pause();
        to.once("drain", () => from.resume());
      }
      return;
    }
    // The clock decides how much may pass, not the number of timers: timers fire late on a busy machine, and would make the cable
    // slower than the test asks for.
    from.pause();
    const now = performance.now();
    const free = Math.max(this.freeAt.get(from) ?? now, now - LATEST_MS);
    const slice = chunk.subarray(0, Math.max(4096, Math.floor(((now - free) * this.bytesPerSecond) / 1000)));
    if (slice.length < chunk.length) from.unshift(chunk.subarray(slice.length));
    to.write(slice);
    const freeAt = free + (1000 * slice.length) / this.bytesPerSecond;
    this.freeAt.set(from, freeAt);
    setTimeout(() => from.resume(), Math.max(0, freeAt - now));
  }
}

/** How late a timer may fire and have its bytes made up for. */
const LATEST_MS = 1000;

/** Node 20 cannot reset a socket that is being shut down: it would leave it open, and never end. */
function reset(socket: net.Socket): void {
  if (socket.writableEnded) socket.destroy();
  else socket.resetAndDestroy();
}
