// The checks for every WebSocket server, by the client `ws`.

import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import WebSocket from 'ws';

const MESSAGES = 300;

/** An open connection. It keeps what it receives in `inbox`, from the first byte on. */
export async function open(url, protocols = [], options = {}) {
  const socket = new WebSocket(url, protocols, options);
  socket.inbox = [];
  socket.on('message', (data, isBinary) => socket.inbox.push(isBinary ? data : data.toString()));
  socket.closed = new Promise((done) => socket.on('close', (code, reason) => done({ code, reason: reason.toString() })));
  socket.on('error', (error) => { socket.error = error; });
  await Promise.race([once(socket, 'open'), socket.closed.then(() => { throw socket.error ?? new Error('closed before it was open'); })]);
  return socket;
}

/** Waits for the connection's message number `index`. The connection's end is an error. */
export async function message(socket, index = 0) {
  const over = socket.closed.then(({ code, reason }) => { throw new Error(`closed with ${code} ${reason}`); });
  over.catch(() => {});
  while (socket.inbox.length <= index) await Promise.race([once(socket, 'message'), over]);
  return socket.inbox[index];
}

/** Text and binary of several sizes come back unchanged, and many small ones in order. */
export async function echo(url, sizes = [0, 2, 100_000, 1_000_000], options = {}) {
  const socket = await open(url, options.protocols, options);
  try {
    let index = options.greetings ?? 0;
    for (const size of sizes) {
      for (const data of options.binaryOnly ? [randomBytes(size)] : ['ä'.repeat(size / 2), randomBytes(size)]) {
        socket.send(data);
        const back = await message(socket, index++);
        if (digest(back) !== digest(data)) throw new Error(`${size} bytes came back as ${back.length}`);
      }
    }
    for (let n = 0; n < MESSAGES; n++) socket.send(`m${n}`);
    await message(socket, index + MESSAGES - 1);
    const wrong = socket.inbox.slice(index).findIndex((text, n) => text.toString() !== `m${n}`);
    if (wrong >= 0) throw new Error(`message ${wrong} is out of order`);
  } finally {
    socket.close();
  }
}

/** How the server ends the connection after `first` was sent. */
export async function closing(url, first, { protocols, ...options } = {}) {
  const socket = await open(url, protocols, options);
  if (first !== undefined) socket.send(first);
  const end = await socket.closed;
  return { ...end, before: socket.inbox.filter((data) => typeof data === 'string') };
}

/** The answer that refuses an upgrade: what a client can act on. */
export async function refusal(url, { protocols = [], ...options } = {}) {
  const socket = new WebSocket(url, protocols, options);
  socket.on('error', () => {});
  const answered = once(socket, 'unexpected-response');
  const [, answer] = await Promise.race([answered, once(socket, 'open').then(() => { throw new Error('admitted'); })]);
  let body = '';
  for await (const chunk of answer) body += chunk;
  socket.terminate();
  const { 'www-authenticate': challenge = null, location = null, 'retry-after': retry = null } = answer.headers;
  return { status: answer.statusCode, challenge, location, retry, cookies: answer.headers['set-cookie'] ?? [], body };
}

/** Fields of the 101 that a client can see. */
export async function welcome(url, options) {
  const socket = new WebSocket(url, [], options);
  const [answer] = await once(socket, 'upgrade');
  socket.on('error', () => {}).terminate();
  return { cookies: answer.headers['set-cookie'] ?? [], id: answer.headers['x-request-id'] ?? null };
}

/** An ordinary HTTP exchange. */
export async function http(url, options) {
  const answer = await fetch(url.replace(/^ws/, 'http'), { redirect: 'manual', ...options });
  return { status: answer.status, type: answer.headers.get('content-type'), digest: digest(Buffer.from(await answer.arrayBuffer())) };
}

/** What the server observes when a client leaves, from its record. */
export async function leave(leg, how) {
  const before = leg.seen().length;
  const socket = await open(leg.url('/leave'), [], { origin: leg.origin });
  await sleep(50);
  how(socket);
  for (;;) {
    const left = leg.seen().slice(before).find((line) => line.left !== undefined);
    if (left) return left.left;
    await sleep(20);
  }
}

function digest(data) {
  return createHash('sha256').update(typeof data === 'string' ? data : Buffer.from(data)).digest('hex').slice(0, 12);
}
