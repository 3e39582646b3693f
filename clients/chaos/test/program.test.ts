/** The life of the program: it does not start, it ends too early, or the process that started it ends. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, test } from "node:test";
import { chaos } from "@mainstay/chaos";
import { MAINSTAY } from "../../proof/gateway.js";

const home = mkdtempSync(join(tmpdir(), "mainstay-chaos-"));
after(() => rmSync(home, { recursive: true }));

/** A program in place of the real one. */
function program(name: string, script: string): string {
  const path = join(home, name);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
  return path;
}

const STARTED = `echo '{"at":0,"event":"started","listen":"127.0.0.1:1","api":"127.0.0.1:1","seed":7}'`;

test("a missing program is an error that says how to install it", async () => {
  const binary = join(home, "no-program");
  await assert.rejects(chaos({ upstream: "127.0.0.1:1", binary }), /"\S+no-program" is not there: install it with `cargo install mainstay-cli`, or name it in .*MAINSTAY_BINARY/);
});

test("the environment variable MAINSTAY_BINARY names the program", async (t) => {
  const before = process.env["MAINSTAY_BINARY"];
  t.after(() => (before === undefined ? delete process.env["MAINSTAY_BINARY"] : (process.env["MAINSTAY_BINARY"] = before)));
  process.env["MAINSTAY_BINARY"] = MAINSTAY;
  const proxy = await chaos({ upstream: "127.0.0.1:1" });
  await proxy.close();
});

test("a program that does not start is killed, and the error has what it wrote", async () => {
  const binary = program("slow", "echo $$ >&2; echo 'no output yet' >&2; exec sleep 600");
  const error: Error = await chaos({ upstream: "127.0.0.1:1", binary, startMs: 1000 }).then(() => assert.fail("it started"), (error) => error);
  assert.match(error.message, /did not start within 1 s: \d+\nno output yet/);
  const pid = Number(/: (\d+)\n/.exec(error.message)![1]);
  while (isAlive(pid)) await new Promise((done) => setTimeout(done, 10));
});

test("a program that ends while it is in use is an error with its exit code and what it wrote", async () => {
  const proxy = await chaos({ upstream: "127.0.0.1:1", binary: program("short", `${STARTED}; echo 'out of luck' >&2; exit 3`) });
  for (;;) {
    const error: Error = await proxy.connections().then(() => assert.fail("it answered"), (error) => error);
    // Until Node has noticed, nothing is known but that no one listens there.
    if (/ECONNREFUSED/.test(error.message)) continue;
    assert.match(error.message, /short chaos ended with exit code 3: out of luck/);
    break;
  }
  await proxy.close();
});

test("the program ends with a process that is killed, and does not keep one that is done", async () => {
  const script = (end: string) => `
    import { chaos } from "@mainstay/chaos";
    const proxy = await chaos({ upstream: "127.0.0.1:1", binary: ${JSON.stringify(MAINSTAY)} });
    await proxy.connections();
    console.log(proxy.port);
    ${end}`;
  for (const [end, signal] of [["setInterval(() => {}, 1000)", "SIGKILL"], ["", undefined]] as const) {
    const runner = spawn(process.execPath, ["--input-type=module", "-e", script(end)], { cwd: import.meta.dirname, stdio: ["ignore", "pipe", "inherit"] });
    const ended = once(runner, "exit");
    const [port] = await once(createInterface(runner.stdout), "line");
    if (signal) runner.kill(signal);
    assert.deepEqual(await ended, signal ? [null, signal] : [0, null]);
    while (await accepts(Number(port))) await new Promise((done) => setTimeout(done, 10));
  }
});

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

/** Whether something listens there. */
async function accepts(port: number): Promise<boolean> {
  const socket = net.connect(port, "127.0.0.1");
  return once(socket, "connect").then(() => (socket.destroy(), true), () => false);
}
