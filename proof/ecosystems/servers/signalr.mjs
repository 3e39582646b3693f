// A STAND-IN for ASP.NET Core SignalR, as there is no .NET in npm, PyPI or Debian 12: its HTTP negotiation and JSON hub
// protocol, as @microsoft/signalr speaks it. The hub has Echo, Order, Join (ticks follow) and Fail.

import { appendFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { randomUUID } from 'node:crypto';
import { WebSocketServer } from 'ws';

const { PORT, RECORD, GENERATION } = process.env;
const record = (line) => appendFileSync(RECORD, `${JSON.stringify({ ...line, generation: GENERATION })}\n`);
const END = '\x1e';
const tokens = new Set();
const http = createServer((request, answer) => {
  if (!request.url.startsWith('/hub/negotiate')) return answer.writeHead(404).end();
  const connectionToken = randomUUID();
  tokens.add(connectionToken);
  answer.setHeader('content-type', 'application/json');
  answer.end(JSON.stringify({ negotiateVersion: 1, connectionId: randomUUID(), connectionToken, availableTransports: [{ transport: 'WebSockets', transferFormats: ['Text', 'Binary'] }] }));
});
const server = new WebSocketServer({ noServer: true });
http.on('upgrade', (request, socket, head) => {
  const token = new URL(request.url, 'http://x').searchParams.get('id');
  if (!tokens.delete(token)) return socket.end('HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n');
  server.handleUpgrade(request, socket, head, serve);
});

function serve(socket) {
  const send = (message) => socket.send(JSON.stringify(message) + END);
  const timers = [setInterval(() => send({ type: 6 }), 15_000)];
  let isGreeted = false;
  socket.on('message', (data) => {
    for (const text of data.toString().split(END).filter(Boolean)) {
      const message = JSON.parse(text);
      if (!isGreeted) { isGreeted = message.protocol === 'json'; send({}); continue; }
      if (message.type !== 1) continue;
      const { target, arguments: [argument], invocationId } = message;
      const complete = (result) => invocationId && send({ type: 3, invocationId, ...result });
      if (target === 'Echo') complete({ result: argument });
      else if (target === 'Fail') complete({ error: 'An unexpected error occurred' });
      else if (target === 'Join') {
        record({ subscribed: 'Tick' });
        timers.push(setInterval(() => send({ type: 1, target: 'Tick', arguments: [GENERATION] }), 50));
        complete({ result: null });
      } else if (target === 'Order') {
        record({ order: argument });
        setTimeout(() => complete({ result: null }), 500);
      }
    }
  });
  socket.on('close', () => timers.forEach(clearInterval));
}
http.listen(Number(PORT), '127.0.0.1');
