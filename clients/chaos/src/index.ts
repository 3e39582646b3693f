/**
 * Breaks WebSocket connections on purpose, for tests: starts the program `mainstay chaos` and steers it.
 *
 *     const proxy = await chaos({ upstream: "127.0.0.1:3000" });
 *     const socket = new WebSocket(proxy.url("/ws"));
 *     await proxy.inject({ kind: "black-hole", for: "8s" });
 *     await proxy.close();
 */

import { Program } from "./program.js";
import { request } from "./request.js";
import type { Connection, Event, Rule, Strike } from "./types.js";

export type { Bytes, Connection, Direction, Duration, Event, Fault, Rule, Strike } from "./types.js";

export interface Options {
  /** Where connections lead: `host:port`. */
  upstream: string;
  /** Where the proxy listens: an IP address and a port. Default: a free port of 127.0.0.1. */
  listen?: string;
  /** Makes a run repeatable: with one seed, the same faults strike each connection at the same times. Default: random, see {@link ChaosProxy.seed}. */
  seed?: number;
  /** Names of profiles, such as `"elevator"`: built in, or of the file in `scenario`. */
  profile?: string | string[];
  /** The path of a scenario file. */
  scenario?: string;
  /** Rules from the start on, beside those of `profile` and `scenario`. */
  faults?: Rule[];
  /** Receives every event of the timeline as it happens, for example to print it. */
  onEvent?: (event: Event) => void;
  /** The program. Default: the environment variable `MAINSTAY_BINARY`, or else `mainstay` on the path. */
  binary?: string;
  /** How long the program may take to start, in milliseconds. Default: 10000. */
  startMs?: number;
}

/**
 * Starts the proxy and waits until it listens.
 *
 * The promise is rejected if the program is missing or refuses an option; the error has the program's own words.
 */
export async function chaos(options: Options): Promise<ChaosProxy> {
  const binary = options.binary ?? (process.env["MAINSTAY_BINARY"] || "mainstay");
  const [program, started] = await Program.start(binary, argumentsOf(options), options.startMs ?? 10_000, options.onEvent ?? (() => {}));
  return new ChaosProxy(program, started);
}

/** A proxy between clients and the upstream. */
export class ChaosProxy {
  /** Where clients connect: `host:port`. */
  readonly address: string;
  readonly port: number;
  /** Repeats this run: the option `seed` of another one. */
  readonly seed: number;
  /** Where the HTTP API listens: `host:port`. */
  readonly api: string;

  /** @internal */
  constructor(
    private readonly program: Program,
    started: Event,
  ) {
    this.address = String(started["listen"]);
    this.port = Number(this.address.slice(this.address.lastIndexOf(":") + 1));
    this.seed = Number(started["seed"]);
    this.api = String(started["api"]);
  }

  /** Returns the URL for clients of this machine, with a path such as `"/ws"`. */
  url(path = "/"): string {
    const address = this.address.replace(/^0\.0\.0\.0:/, "127.0.0.1:").replace("[::]:", "[::1]:");
    return `ws://${address}/${path.replace(/^\//, "")}`;
  }

  /** Strikes now. Returns the number of the fault, for {@link lift}. */
  async inject(fault: Strike): Promise<number> {
    const { id } = await this.send<{ id: number }>("POST", "/faults", fault);
    return id;
  }

  /** Resets a connection, or all that are open. */
  async reset(connection?: number): Promise<void> {
    await this.send("DELETE", connection === undefined ? "/connections" : `/connections/${connection}`);
  }

  /** Ends a fault that lasts. What a black hole swallowed stays lost. */
  async lift(fault: number): Promise<void> {
    await this.send("DELETE", `/faults/${fault}`);
  }

  /** Ends every fault that lasts. */
  async liftAll(): Promise<void> {
    await this.send("DELETE", "/faults");
  }

  /** Returns the open connections. */
  connections(): Promise<Connection[]> {
    return this.send("GET", "/connections");
  }

  /** Returns what happened so far. */
  timeline(): Promise<Event[]> {
    return this.send("GET", "/timeline");
  }

  /** Leads new connections to another upstream, `host:port`. */
  async upstream(address: string): Promise<void> {
    await this.send("PUT", "/upstream", { upstream: address });
  }

  /** Ends all connections and the program. Later calls of other methods are rejected. */
  close(): Promise<void> {
    return this.program.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  private async send<T>(method: string, path: string, body?: unknown): Promise<T> {
    const ended = this.program.end;
    if (ended) throw ended;
    try {
      return await request<T>(this.api, method, path, body);
    } catch (error) {
      throw this.program.end ?? error;
    }
  }
}

function argumentsOf({ upstream, listen, seed, profile = [], scenario, faults = [], onEvent }: Options): string[] {
  // With `=`, so that no value is taken for a flag.
  const args = [`--upstream=${upstream}`, `--listen=${listen ?? "127.0.0.1:0"}`, "--api=127.0.0.1:0"];
  if (!onEvent) args.push("--quiet");
  if (seed !== undefined) args.push(`--seed=${seed}`);
  if (scenario !== undefined) args.push(`--scenario=${scenario}`);
  for (const name of [profile].flat()) args.push(`--profile=${name}`);
  for (const rule of faults) args.push(`--fault=${inOneLine(rule)}`);
  return args;
}

/** Returns a rule as the command line has it: `kind=black-hole,direction=up,for=8s`. As in JSON, what is `undefined` is left out. */
function inOneLine(rule: Rule): string {
  const given = Object.entries(rule).filter(([, value]) => value !== undefined);
  return given.map(([field, value]) => `${field}=${value}`).join(",");
}
