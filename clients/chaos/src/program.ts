/** The program: how it starts, what it says when it does not, and how it ends. */

import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { clearTimeout, setTimeout } from "node:timers";
import type { Event } from "./types.js";

/** How much of the program's standard error an error quotes. */
const QUOTED = 4096;
/** How long the program may take to end before it is killed. */
const END_MS = 5_000;

type Child = ChildProcessByStdio<Writable, Readable, Readable>;

/** A running `mainstay chaos`. It ends with this process, however this process ends: its standard input closes then. */
export class Program {
  private errors = "";
  private isClosing = false;

  private constructor(
    private readonly child: Child,
    private readonly binary: string,
  ) {
    child.stderr.setEncoding("utf8").on("data", (text: string) => (this.errors = (this.errors + text).slice(-QUOTED)));
    // A program that has ended closes its input; a write to it is no failure of its own.
    child.stdin.on("error", () => {});
  }

  /** Starts the program and waits for its event `started`. `onEvent` receives this and every later event. */
  static async start(binary: string, args: string[], limitMs: number, onEvent: (event: Event) => void): Promise<[Program, Event]> {
    const child = spawn(binary, ["chaos", ...args, "--json", "--until-stdin-closes"], { stdio: ["pipe", "pipe", "pipe"], windowsHide: true });
    const program = new Program(child, binary);
    try {
      const started = await program.started(limitMs, onEvent);
      program.unref();
      return [program, started];
    } catch (error) {
      child.kill("SIGKILL");
      throw error;
    }
  }

  /** Ends the program and waits until it has ended. */
  async close(): Promise<void> {
    this.isClosing = true;
    if (this.hasEnded) return;
    this.child.ref();
    const ended = once(this.child, "exit");
    this.child.stdin.end();
    const late = setTimeout(() => this.child.kill("SIGKILL"), END_MS);
    await ended;
    clearTimeout(late);
  }

  /** Returns why a request cannot have been answered, or `undefined` if the program runs. */
  get end(): Error | undefined {
    if (this.isClosing) return new Error("this proxy is closed");
    return this.hasEnded ? this.failure(`ended with ${this.child.signalCode ?? `exit code ${this.child.exitCode}`}`) : undefined;
  }

  private get hasEnded(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }

  private started(limitMs: number, onEvent: (event: Event) => void): Promise<Event> {
    const { child, binary } = this;
    return new Promise<Event>((resolve, reject) => {
      const late = setTimeout(() => reject(this.failure(`did not start within ${limitMs / 1000} s`)), limitMs);
      const settle = () => clearTimeout(late);
      createInterface(child.stdout).on("line", (line) => {
        const event = read(line);
        if (!event) return;
        if (event.event === "started") settle(), resolve(event);
        onEvent(event);
      });
      // `close` comes after the last byte of standard error.
      child.on("close", () => (settle(), reject(this.end)));
      child.on("error", (error: NodeJS.ErrnoException) => {
        settle();
        reject(new Error(error.code === "ENOENT" ? missing(binary) : `${binary} cannot be started: ${error.message}`, { cause: error }));
      });
    });
  }

  /** From here on the program does not keep this process from ending. */
  private unref(): void {
    this.child.unref();
    for (const stream of this.child.stdio) (stream as { unref?(): void } | null)?.unref?.();
  }

  private failure(what: string): Error {
    const quoted = this.errors.trim();
    return new Error(`${this.binary} chaos ${what}${quoted ? `: ${quoted}` : ""}`);
  }
}

function read(line: string): Event | undefined {
  try {
    return JSON.parse(line);
  } catch {
    return undefined; // not the timeline's
  }
}

function missing(binary: string): string {
  return `the program ${JSON.stringify(binary)} is not there: install it with \`cargo install mainstay-cli\`, or name it in the option \`binary\` or the environment variable MAINSTAY_BINARY`;
}
