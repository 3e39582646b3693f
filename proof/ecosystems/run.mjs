// Plays rows: `node run.mjs OUTPUT FOLDER JOBS RESTARTS ROW...`. All legs of a row at the same time, JOBS rows at a time. The legs'
// results are written to OUTPUT, a line of JSON each. Progress goes to the standard output.

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { LEGS } from './lib/fronts.mjs';

/** A leg that takes longer is ended. */
const LIMIT = 200_000;

const [output, folder, jobs, times, ...names] = process.argv.slice(2);
const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGTERM')));
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, () => process.exit(1));

process.chdir(import.meta.dirname);
writeFileSync(output, '');
const waiting = [...names];
await Promise.all(Array.from({ length: Number(jobs) }, async () => {
  for (let name; (name = waiting.shift()); ) await playRow(name);
}));

async function playRow(name) {
  const began = performance.now();
  const { default: row } = await import(`./rows/${name}.mjs`);
  const { title, profile = null, uses } = row;
  write({ row: name, title, profile, uses: uses.map(withVersion) });
  await Promise.all(LEGS.filter((leg) => leg !== 'profile' || profile).map((leg) => playLeg(name, leg)));
  console.log(`${name.padEnd(20)} ${((performance.now() - began) / 1000).toFixed(0).padStart(4)} s`);
}

async function playLeg(name, leg) {
  const own = join(folder, name, leg);
  mkdirSync(own, { recursive: true });
  const args = ['--import', './lib/dice.mjs', 'play.mjs', name, leg, own, times];
  const child = spawn(process.execPath, args, { cwd: import.meta.dirname, stdio: ['ignore', 'pipe', 'pipe'] });
  running.add(child);
  let [results, errors] = ['', ''];
  child.stdout.on('data', (data) => { results += data; });
  child.stderr.on('data', (data) => { errors += data; });
  const late = setTimeout(() => child.kill('SIGTERM'), LIMIT);
  const [code, signal] = await once(child, 'close');
  clearTimeout(late);
  running.delete(child);
  writeFileSync(join(own, 'client.log'), errors);
  appendFileSync(output, results);
  if (code !== 0) write({ row: name, leg, broken: `${signal ?? code}: ${errors.trim().split('\n').slice(-12).join('\n')}` });
}

function write(line) {
  appendFileSync(output, `${JSON.stringify(line)}\n`);
}

/** `npm:ws` as `ws 8.23.0`, as it is locked or installed. */
function withVersion(what) {
  const [registry, name] = what.split(':');
  if (registry === 'npm') return `${name} ${JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version}`;
  if (registry === 'pypi') {
    const locked = readFileSync('requirements.txt', 'utf8') + readFileSync('requirements-jupyter.txt', 'utf8');
    return `${name} ${locked.match(new RegExp(`^${name}==(\\S+)`, 'mi'))?.[1]}`;
  }
  const installed = spawnSync('dpkg-query', ['--show', '--showformat', '${Version}', name], { encoding: 'utf8' }).stdout;
  return `${name} ${installed || 'of Debian'}`;
}
