// An ordinary Fastify application with @fastify/websocket, without any code of Mainstay.
//
//   node backend.mjs PORT RECORD [RATE]
//
// Every message that reaches the application (`{"id": ...}`) is recorded, then answered with `{"re": id, "gen"}`. Every
// connection is also sent `{"n": 1, "gen"}`, `{"n": 2, "gen"}`, ... RATE times a second; the count goes on where the
// record ends, so a number is never used twice, over connections and restarts. `GET /ws?client=NAME` counts by client.
//
// RECORD gets one JSON line per message, before anything else happens with it: `{"gen", "client", "id"}` for a
// message received, `{"gen", "client", "n"}` for one sent. Lines are written synchronously, so that a process killed
// outright loses none; `gen` counts the processes that wrote to the file. PORT 0 takes a free port.

import { existsSync, openSync, readFileSync, writeSync } from 'node:fs';
import Fastify from 'fastify';
import websocket from '@fastify/websocket';

const [port, recordPath, rate = '25'] = process.argv.slice(2);
const record = openRecord(recordPath);

const app = Fastify();
await app.register(websocket);
app.get('/ws', { websocket: true }, (socket, request) => {
  const client = request.query.client ?? '';
  socket.on('message', (data) => {
    const { id } = JSON.parse(data);
    record.append({ client, id });
    socket.send(JSON.stringify({ re: id, gen: record.gen }));
  });
  const timer = setInterval(() => {
    if (socket.readyState !== socket.OPEN) return;
    const n = record.next(client);
    record.append({ client, n });
    socket.send(JSON.stringify({ n, gen: record.gen }));
  }, 1000 / Number(rate));
  socket.on('close', () => clearInterval(timer));
});

await app.listen({ host: '127.0.0.1', port: Number(port) });
process.once('SIGTERM', () => app.close());
console.log(`listening ${app.server.address().port}`);

function openRecord(path) {
  const lines = existsSync(path) ? readFileSync(path, 'utf8').trimEnd().split('\n').filter(Boolean).map(JSON.parse) : [];
  const gen = 1 + lines.reduce((max, line) => Math.max(max, line.gen), 0);
  const last = new Map(lines.filter((line) => line.n).map((line) => [line.client, line.n]));
  const file = openSync(path, 'a');
  return {
    gen,
    append: (entry) => writeSync(file, `${JSON.stringify({ gen, ...entry })}\n`),
    next(client) {
      const n = (last.get(client) ?? 0) + 1;
      last.set(client, n);
      return n;
    },
  };
}
