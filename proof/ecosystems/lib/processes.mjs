// Background programs: each has a log, is ended by process id, and ends with this process at the latest.

import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { createServer, connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, () => process.exit(1));

export class Program {
  /** @param {{ command: string, args?: string[], env?: object, cwd?: string, log: string }} what */
  constructor({ command, args = [], env = {}, cwd, log }) {
    const out = openSync(log, 'a');
    this.log = log;
    this.line = [command, ...args].join(' ');
    this.child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ['ignore', out, out] });
    closeSync(out);
    running.add(this.child);
    this.ended = new Promise((done) => {
      this.child.once('exit', done);
      this.child.once('error', done);
    }).then(() => running.delete(this.child));
  }

  get isRunning() {
    return running.has(this.child);
  }

  /** Waits until something accepts connections at `port`. */
  async listens(port, seconds = 30) {
    for (const end = Date.now() + seconds * 1000; ; await sleep(20)) {
      if (await accepts(port)) return this;
      if (!this.isRunning) throw new Error(`\`${this.line}\` ended early:\n${this.tail()}`);
      if (Date.now() > end) throw new Error(`\`${this.line}\` does not listen after ${seconds} s:\n${this.tail()}`);
    }
  }

  /** Sends `signal` and waits for the end; a program that takes longer than `seconds` is killed. */
  async end(signal = 'SIGKILL', seconds = 5) {
    this.child.kill(signal);
    const late = setTimeout(() => this.child.kill('SIGKILL'), seconds * 1000);
    await this.ended;
    clearTimeout(late);
  }

  tail(lines = 15) {
    return readFileSync(this.log, 'utf8').trimEnd().split('\n').slice(-lines).join('\n');
  }
}

/** Ends all programs, and waits for that. */
export async function endAll() {
  await Promise.all([...running].map((child) => new Promise((done) => {
    child.once('exit', done);
    child.kill('SIGKILL');
  })));
}

function accepts(port) {
  return new Promise((done) => {
    const socket = connect(port, '127.0.0.1');
    const is = (it) => { socket.destroy(); done(it); };
    socket.once('connect', () => is(true)).once('error', () => is(false));
  });
}

/**
 * A port that the system says is free, outside the range that it gives to outgoing connections: such a connection
 * must not take the port of a server that is away for a moment, nor connect to itself.
 */
export async function freePort() {
  const first = Number(readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8').split(/\s+/)[0]);
  const [low, high] = first > 20_000 ? [10_000, first] : [0, 0];
  for (;;) {
    const port = high === 0 ? 0 : low + (crypto.getRandomValues(new Uint32Array(1))[0] % (high - low));
    const server = createServer();
    const given = await new Promise((done) => {
      server.once('error', () => done(undefined)).listen(port, '127.0.0.1', () => done(server.address().port));
    });
    if (given === undefined) continue;
    await new Promise((done) => server.close(done));
    return given;
  }
}
