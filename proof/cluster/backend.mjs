// An ordinary Fastify application with @fastify/websocket, without any code of Mainstay.
//
//   node backend.mjs PORT RECORD EVERY
//
// A client sends `{"id": 1}`, `{"id": 2}`, ... and gets `{"conn", "seq", "re": id}` for each. Every connection is also sent
// `{"conn", "seq"}` each EVERY milliseconds. `conn` counts the connections of this process, `seq` the messages that were sent
// to one of them. `GET /ws?client=NAME` says which client it is. PORT 0 takes a free port.
//
// RECORD gets one line for each thing, within 50 ms, and all of it before the process ends:
//   open CONN CLIENT   take CONN ID SEQ   push CONN SEQ   close CONN CODE
//
// SIGUSR1 ends the pushes: every open connection, and every later one, is sent a last one with `"end": true`.

import { appendFileSync } from 'node:fs';
import Fastify from 'fastify';
import websocket from '@fastify/websocket';

const [port, record, every] = process.argv.slice(2);
const sockets = new Set();
let lines = [];
let opened = 0;
let isOver = false;

const app = Fastify();
await app.register(websocket);
app.get('/ws', { websocket: true }, (socket, request) => {
  const conn = ++opened;
  let seq = 0;
  const push = (more) => {
    if (socket.readyState !== socket.OPEN) return;
    lines.push(`push ${conn} ${++seq}`);
    socket.send(JSON.stringify({ conn, seq, ...more }));
  };
  const timer = setInterval(push, Number(every));
  const end = () => {
    clearInterval(timer);
    push({ end: true });
  };
  lines.push(`open ${conn} ${request.query.client}`);
  socket.on('message', (data) => {
    const { id } = JSON.parse(data);
    lines.push(`take ${conn} ${id} ${++seq}`);
    socket.send(JSON.stringify({ conn, seq, re: id }));
  });
  socket.on('close', (code) => {
    clearInterval(timer);
    sockets.delete(end);
    lines.push(`close ${conn} ${code}`);
  });
  sockets.add(end);
  if (isOver) end();
});

function write() {
  if (lines.length > 0) appendFileSync(record, `${lines.join('\n')}\n`);
  lines = [];
}

appendFileSync(record, '');
setInterval(write, 50);
await app.listen({ host: '127.0.0.1', port: Number(port), backlog: 65535 });
process.on('SIGUSR1', () => {
  isOver = true;
  sockets.forEach((end) => end());
});
process.once('SIGTERM', () => {
  write();
  process.exit(0);
});
console.log(`listening ${app.server.address().port}`);
