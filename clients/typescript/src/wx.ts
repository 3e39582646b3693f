/**
 * The socket for mini-programs: WeChat's `wx`, and those whose `connectSocket` has its shape (`tt`, `qq`, `swan`, `ks`).
 * It needs nothing of a browser. Binary messages arrive as ArrayBuffer.
 */

import { MainstaySocket as Base, type Options as BaseOptions } from "./index.js";
import { ask, driverOf } from "./driver.js";
import type { SessionDriver } from "./session-driver.js";
import type { Fresh } from "./options.js";
import { pool } from "./platform.js";

export * from "./index.js";

/** The part of `wx` that this package uses. Not every platform has the optional members. */
export interface Wx {
  connectSocket(options: { url: string; protocols?: string[]; header?: { [name: string]: string }; fail?: (result: { errMsg?: string }) => void }): SocketTask | undefined;
  getRandomValues?(options: { length: number; success: (result: { randomValues: ArrayBuffer }) => void; fail: () => void }): unknown;
  onAppShow?(act: () => void): void;
  offAppShow?(act: () => void): void;
  onNetworkStatusChange?(act: (result: { isConnected: boolean }) => void): void;
  offNetworkStatusChange?(act: (result: { isConnected: boolean }) => void): void;
}

/** What `connectSocket` returns. */
export interface SocketTask {
  onOpen(act: (result?: { header?: { [name: string]: string } }) => void): void;
  onMessage(act: (result: { data: string | ArrayBuffer }) => void): void;
  onClose(act: (result?: { code?: number; reason?: string }) => void): void;
  onError(act: (result?: { errMsg?: string }) => void): void;
  send(options: { data: string | ArrayBuffer; complete?: () => void }): void;
  close(options: { code?: number; reason?: string }): void;
}

export interface Options extends BaseOptions {
  /** The object whose `connectSocket` opens the connections. @default the global `wx` */
  wx?: Wx;
  /** Fields of the opening handshake; a function is called before each attempt. @default none */
  header?: Fresh<{ [name: string]: string }>;
}

declare const wx: Wx | undefined;

/**
 * The socket of `@mainstay/client`, over `wx.connectSocket`.
 *
 * @example
 * import { MainstaySocket } from "@mainstay/client/wx";
 *
 * new MainstaySocket("wss://example.com/chat", [], { header: () => ({ authorization: "Bearer token" }) });
 */
export class MainstaySocket extends Base {
  /** The name in source, which minifiers do not change. */
  static override readonly name: string = "MainstaySocket";

  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], { wx: host = typeof wx === "object" ? wx : undefined, header, ...options }: Options = {}) {
    if (!host?.connectSocket) throw new TypeError("no wx.connectSocket here: pass the object that has it as option, { wx: tt }");
    /** The header of the next attempt. */
    let fields: { [name: string]: string } | undefined;
    super(url, protocols, { WebSocket: classOver(host, () => fields), ...options });
    const driver = driverOf<SessionDriver>(this);
    driver.binaryType = "arraybuffer";
    driver.preparations.push(async () => (fields = await ask(header)), () => fill(host));
    const { onAppShow, offAppShow, onNetworkStatusChange, offNetworkStatusChange } = host;
    driver.listen(target(onAppShow, offAppShow), "show", "visibility", () => driver.comeBack());
    driver.listen(target(onNetworkStatusChange, offNetworkStatusChange), "network", "network", ({ isConnected }) => (isConnected ? driver.comeBack() : driver.probe()));
  }
}

/** An event target over two functions that add and remove a listener. */
function target(on: ((act: any) => void) | undefined, off: ((act: any) => void) | undefined): any {
  return on && { addEventListener: (_type: string, act: any) => on(act), removeEventListener: (_type: string, act: any) => off?.(act) };
}

/** Fetches random bytes for the next keys, if the platform has them. Waits for a second at most. */
function fill(host: Wx): Promise<void> | undefined {
  if (pool.length > 64 || !host.getRandomValues) return;
  return new Promise<void>((resolve) => {
    setTimeout(resolve, 1000);
    host.getRandomValues!({
      length: 256,
      success({ randomValues }) {
        pool.push(...new Uint8Array(randomValues));
        resolve();
      },
      fail: resolve,
    });
  });
}

/** A class with the members of `WebSocket` that this package uses. */
function classOver(host: Wx, fields: () => { [name: string]: string } | undefined) {
  return class {
    binaryType = "arraybuffer";
    protocol = "";
    readyState = 0;
    /** Payload bytes of sends that are not complete. */
    bufferedAmount = 0;
    onopen: any;
    onmessage: any;
    onclose: any;
    onerror: any;
    task: SocketTask | undefined;

    constructor(url: string, protocols: string | string[] = []) {
      const names = ([] as string[]).concat(protocols);
      const fail = ({ errMsg = "" }: { errMsg?: string } = {}) => this.end(1006, errMsg);
      const header = fields();
      const task = host.connectSocket({ url, ...(names.length && { protocols: names }), ...(header && { header }), fail });
      this.task = task;
      task?.onOpen((result) => {
        this.readyState = 1;
        this.protocol = chosenOf(result?.header, names);
        this.onopen?.({});
      });
      task?.onMessage((result) => this.onmessage?.(result));
      task?.onClose(({ code = 1006, reason = "" } = {}) => this.end(code, reason));
      task?.onError(fail);
    }

    send(data: string | Uint8Array<ArrayBuffer>): void {
      const { length } = data;
      this.bufferedAmount += length;
      const complete = () => (this.bufferedAmount -= length);
      this.task?.send({ data: typeof data === "string" ? data : data.slice().buffer, complete });
    }

    close(code: number, reason: string): void {
      if (this.readyState > 1) return;
      this.readyState = 2;
      this.task?.close({ code, reason });
    }

    /** Reports the end once, however often the platform does. */
    end(code: number, reason: string): void {
      if (this.readyState > 2) return;
      this.readyState = 3;
      this.onclose?.({ code, reason });
    }
  };
}

/** Returns the subprotocol that the server chose. If the platform does not show the answer, this assumes that the server chose sessions, if they were offered. */
function chosenOf(header: { [name: string]: string } | undefined, names: string[]): string {
  const shown = Object.keys(header ?? {});
  const name = shown.find((name) => name.toLowerCase() === "sec-websocket-protocol");
  return (name ? header![name] : shown.length ? "" : names[names.length - 1]) ?? "";
}
