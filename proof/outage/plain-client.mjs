// The usual client: a plain WebSocket that opens a new one when the old one closes.
//
//   node plain-client.mjs URL SECONDS RECORD [RATE]
//
// Sends `{"id": ...}` RATE times a second (default 50) for SECONDS, waits up to two seconds for late answers, and
// prints one line of JSON:
//
//   sent             messages that the application sent, also those for which no WebSocket was open
//   answered         how many of them the backend answered
//   lost_up          how many of them are not in the backend's record
//   duplicates_up    records of a message beyond its first
//   received_down    numbered messages received
//   gaps_down        numbered messages the backend sent before the last one received that never came
//   duplicates_down  numbered messages received again
//   reconnects       times a new WebSocket was opened after the first

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import WebSocket from 'ws';

const [url, seconds, recordPath, rate = '50'] = process.argv.slice(2);
const client = new URL(url).searchParams.get('client') ?? '';
const sent = [];
const answered = new Set();
const down = [];
let socket;
let opened = 0;
let stopped = false;

connect();
while (socket.readyState !== WebSocket.OPEN) await sleep(10);
const timer = setInterval(send, 1000 / Number(rate));
await sleep(Number(seconds) * 1000);
clearInterval(timer);
for (let waited = 0; answered.size < sent.length && waited < 2000; waited += 50) await sleep(50);
stopped = true;
socket.close();
console.log(JSON.stringify(counts()));

function connect() {
  socket = new WebSocket(url);
  socket.on('open', () => { opened += 1; });
  socket.on('message', (data) => {
    const message = JSON.parse(data);
    if ('re' in message) answered.add(message.re);
    else down.push(message.n);
  });
  socket.on('error', () => {}); // a close follows
  socket.on('close', () => { if (!stopped) setTimeout(connect, 100); });
}

function send() {
  const id = randomUUID();
  sent.push(id);
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ id }));
}

function counts() {
  const record = readFileSync(recordPath, 'utf8').trimEnd().split('\n').map(JSON.parse)
    .filter((line) => line.client === client);
  const ids = new Set(sent);
  const arrived = record.map((line) => line.id).filter((id) => ids.has(id));
  const numbers = new Set(down);
  const last = down.reduce((max, n) => Math.max(max, n), 0);
  const first = down.reduce((min, n) => Math.min(min, n), last);
  return {
    sent: sent.length,
    answered: answered.size,
    lost_up: sent.length - new Set(arrived).size,
    duplicates_up: arrived.length - new Set(arrived).size,
    received_down: down.length,
    gaps_down: record.filter((line) => line.n >= first && line.n < last && !numbers.has(line.n)).length,
    duplicates_down: down.length - numbers.size,
    reconnects: opened - 1,
  };
}
