/** The real binary, started and ended as by an operator or a crash. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

const TARGET = new URL("../../target/", import.meta.url).pathname;

/** The binary under test. */
export const MAINSTAY =
  process.env["MAINSTAY"] ??
  ["debug", "release"].map((profile) => join(TARGET, profile, "mainstay")).find(existsSync) ??
  fail("no mainstay binary: run `cargo build -p mainstay-cli`, or name one in the environment variable MAINSTAY");

/** The program that judges credentials, which cargo puts beside it. */
export const CREDENTIALS_SERVER = join(dirname(MAINSTAY), "credentials_server");

export class Server {
  private constructor(
    private process: ChildProcess,
    readonly port: number,
    /** The URL of its admin listener. */
    readonly admin: string | undefined,
  ) {}

  /** Starts it and waits until it listens. */
  static async start(command: string, args: string[]): Promise<Server> {
    if (!existsSync(command)) fail(`${command} does not exist: build it, or set MAINSTAY to a binary with its examples beside it`);
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "ignore"] });
    const orphan = () => child.kill("SIGKILL");
    process.on("exit", orphan);
    child.on("exit", () => process.off("exit", orphan));
    let port: string | undefined;
    for await (const line of createInterface(child.stdout)) {
      port ??= /listening on ws:\/\/.*:(\d+)/.exec(line)?.[1];
      const admin = /admin on (\S+):/.exec(line)?.[1];
      if (!port || (!admin && args.includes("--admin"))) continue;
      // No test reads later output; a pipe that is left unread sometimes keeps Node 20 from ending.
      setImmediate(() => child.stdout.resume());
      return new Server(child, Number(port), admin);
    }
    return fail(`${command} ${args.join(" ")}: ended before it listened`);
  }

  /** Starts the gateway in front of `upstream`, with a heartbeat of a second. Port 0: any. */
  static gateway(port: number, upstream: string, flags: string[]): Promise<Server> {
    const common = ["serve", "--listen", `127.0.0.1:${port}`, "--upstream", upstream, "--admin", "127.0.0.1:0", "--heartbeat", "1s"];
    return Server.start(MAINSTAY, [...common, ...flags]);
  }

  /** Ends it as a crash does. */
  async kill(): Promise<void> {
    this.process.kill("SIGKILL");
    await this.gone();
  }

  /** Ends it as an operator does. */
  async drain(): Promise<void> {
    this.process.kill("SIGTERM");
    await this.gone();
  }

  /** Whether it accepts clients; false as soon as it begins to drain. */
  async isReady(): Promise<boolean> {
    return (await fetch(`${this.admin}/readyz`)).ok;
  }

  /** Returns the sum of the samples of a metric. */
  async metric(name: string): Promise<number> {
    const text = await (await fetch(`${this.admin}/metrics`)).text();
    const samples = text.split("\n").filter((line) => line.startsWith(`mainstay_${name}{`) || line.startsWith(`mainstay_${name} `));
    return samples.reduce((sum, line) => sum + Number(line.split(" ")[1]), 0);
  }

  /** Waits until it ends by itself; returns its exit code. */
  async ended(): Promise<number | null> {
    await this.gone();
    return this.process.exitCode;
  }

  private async gone(): Promise<void> {
    if (this.process.exitCode === null && this.process.signalCode === null) await once(this.process, "close");
  }
}

function fail(line: string): never {
  throw new Error(line);
}
