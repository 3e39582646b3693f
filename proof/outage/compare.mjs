// What @fastify/http-proxy makes of three outages: backend <- http-proxy <- plain client, for ten seconds, during
// which the backend is killed three times and started again a second later. Prints the client's counts as JSON.
//
//   node compare.mjs

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const workdir = mkdtempSync(join(tmpdir(), 'mainstay-compare-'));
const record = join(workdir, 'record.jsonl');
const running = new Set();

try {
  let backend = await listening('backend.mjs', 0, record);
  const proxy = await listening('http-proxy.mjs', 0, `http://127.0.0.1:${backend.port}`);
  const client = start('plain-client.mjs', `ws://127.0.0.1:${proxy.port}/ws`, 10, record);
  const report = text(client.stdout);
  for (let outage = 0; outage < 3; outage += 1) {
    await sleep(2000);
    backend.process.kill('SIGKILL');
    await sleep(1000);
    backend = await listening('backend.mjs', backend.port, record);
  }
  console.log(JSON.stringify({ through: '@fastify/http-proxy', outages: 3, ...JSON.parse(await report) }));
} finally {
  for (const child of running) child.kill('SIGKILL');
  rmSync(workdir, { recursive: true });
}

async function listening(script, ...args) {
  const child = start(script, ...args);
  const [line] = await Promise.race([
    once(createInterface({ input: child.stdout }), 'line'),
    once(child, 'exit').then(() => { throw new Error(`${script} ended before it was listening`); }),
  ]);
  return { process: child, port: Number(line.split(' ')[1]) };
}

function start(script, ...args) {
  const child = spawn(process.execPath, [join(here, script), ...args.map(String)], { stdio: ['ignore', 'pipe', 'inherit'] });
  running.add(child);
  child.once('exit', () => running.delete(child));
  return child;
}
