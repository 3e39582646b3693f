// The plain application (see lib/plain.mjs) in Fastify with @fastify/websocket.

import { appendFileSync } from 'node:fs';
import websocket from '@fastify/websocket';
import Fastify from 'fastify';

const { PORT, RECORD, GENERATION } = process.env;
const record = (line) => appendFileSync(RECORD, `${JSON.stringify(line)}\n`);
const app = Fastify({ bodyLimit: 20_000_000 });
app.register(websocket, { options: { handleProtocols: (offered) => (offered.has('b.v2') ? 'b.v2' : false) } });

app.register(async (app) => {
  const on = (path, handler, options) => app.get(path, { websocket: true, ...options }, handler);
  on('/echo', (socket) => socket.on('message', (data, binary) => socket.send(data, { binary })));
  on('/sub', () => {});
  on('/close', (socket) => { socket.send('hello'); socket.close(); });
  for (const code of [1000, 1001, 1008, 1011, 4321]) {
    on(`/close-${code}`, (socket) => { socket.send('hello'); socket.close(code, 'in a word: ä'); });
  }
  on('/raise', async (socket) => { socket.send('hello'); throw new Error('the handler raised'); });
  on('/return', (socket) => socket.on('message', () => socket.terminate()));
  on('/leave', (socket) => socket.on('close', (code, reason) => record({ left: [code, reason.toString()] })));
  on('/cookie', () => {});
  on('/secret', () => {}, {
    preValidation: async (_, reply) => reply.code(401).header('www-authenticate', 'Bearer realm="api"').header('set-cookie', 'try=2').send({ error: 'token expired' }),
  });
  on('/browser', () => {}, {
    preValidation: async ({ headers }, reply) => {
      if (new URL(headers.origin).host !== headers.host) await reply.code(403).send({ error: 'another origin' });
    },
  });
  on('/feed', (socket) => {
    let tick = 0;
    socket.on('message', (data) => {
      const { join, order } = JSON.parse(data);
      if (join) {
        const timer = setInterval(() => socket.send(JSON.stringify({ tick: tick++, generation: GENERATION })), 50);
        socket.on('close', () => clearInterval(timer));
      }
      if (order) record({ order, generation: GENERATION });
      if (order) setTimeout(() => socket.send(JSON.stringify({ receipt: order })), 500);
    });
  });
  app.get('/page', async () => ({ page: 'words '.repeat(1000) }));
  app.get('/large', async (_, reply) => reply.header('etag', '"large"').send(Buffer.alloc(5_000_000, 'large ')));
  app.get('/moved', async (_, reply) => reply.redirect('/page', 307));
  app.get('/events', (request, reply) => {
    reply.hijack();
    reply.raw.writeHead(200, { 'content-type': 'text/event-stream' });
    const timer = setInterval(() => reply.raw.write(`data: ${GENERATION}\n\n`), 50);
    request.raw.on('close', () => clearInterval(timer));
  });
  app.post('/page', async (request) => ({ length: request.body.length }));
});

process.on('SIGTERM', () => app.close().then(() => process.exit(0)));
await app.listen({ port: Number(PORT), host: '127.0.0.1' });
app.websocketServer.on('headers', (headers, request) => { if (request.url === '/cookie') headers.push('Set-Cookie: sid=new; HttpOnly', 'Set-Cookie: lb=7', 'X-Request-Id: 42'); });
