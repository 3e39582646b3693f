/** Helpers of tests over real connections: the gateway as a child process, and a wait for a condition. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Cable } from "./cable.js";

const target = fileURLToPath(new URL("../../../target", import.meta.url));
const program = [process.env.MAINSTAY, `${target}/release/mainstay`, `${target}/debug/mainstay`].find((path) => path && existsSync(path));

/** Runs the gateway in front of `upstream`, until `stop`. */
export async function gateway(upstream: string, options: string[] = []): Promise<{ port: number; stop(): Promise<void> }> {
  return serve(["--listen", "127.0.0.1:0", "--upstream", upstream, ...options]);
}

/** Runs the gateway with these arguments until `stop`. The test reads only its address from the output. */
export async function serve(options: string[]): Promise<{ port: number; stop(): Promise<void> }> {
  if (!program) throw new Error("the gateway is not built: cargo build -p mainstay-cli, or MAINSTAY=its path");
  const child = spawn(program, ["serve", ...options], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(child, "exit");
  const stop = async () => {
    child.kill("SIGKILL");
    await exited;
  };
  for await (const line of createInterface(child.stdout)) {
    const port = Number(/listening on ws:\/\/127\.0\.0\.1:(\d+)/.exec(line)?.[1]);
    if (!port) continue;
    child.stdout.resume();
    return { port, stop };
  }
  throw new Error(`the gateway ended with ${await exited}`);
}

/** A cable to a server on this port: to itself, or to a gateway in front of it. `replace` starts a new gateway, which has no sessions. */
export async function cableTo(port: number, isFronted: boolean, options?: string[]): Promise<{ cable: Cable; replace(): Promise<void>; close(): Promise<void> }> {
  const begin = async () => (isFronted ? gateway(`ws://127.0.0.1:${port}`, options) : undefined);
  let front = await begin();
  const cable = await new Cable(() => front?.port ?? port).open();
  const replace = async () => {
    await front?.stop();
    front = await begin();
  };
  const close = async () => {
    await cable.close();
    await front?.stop();
  };
  return { cable, replace, close };
}

/** Waits for a condition that no event reports. The error names the condition that never became true. */
export async function until(isSo: () => boolean): Promise<void> {
  for (const end = Date.now() + 25_000; !isSo(); await new Promise((done) => setTimeout(done, 5))) {
    if (Date.now() > end) throw new Error(`after 25 s this is not so: ${isSo}`);
  }
}
