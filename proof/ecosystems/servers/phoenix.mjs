// A STAND-IN for a Phoenix endpoint, because neither npm nor PyPI nor Debian has one: its channel protocol of serializer 2.0.0
// ([join_ref, ref, topic, event, payload]), as phoenix.js speaks it. A connection keeps the channels that it has joined;
// it answers a message for another channel with "unmatched topic", as Phoenix does.

import { appendFileSync } from 'node:fs';
import { WebSocketServer } from 'ws';

const { PORT, RECORD, GENERATION } = process.env;
const record = (line) => appendFileSync(RECORD, `${JSON.stringify({ ...line, generation: GENERATION })}\n`);
const server = new WebSocketServer({ port: Number(PORT), host: '127.0.0.1', path: '/socket/websocket' });
server.on('connection', (socket) => {
  const joined = new Map();
  socket.on('message', (data) => {
    const [joinRef, ref, topic, event, payload] = JSON.parse(data);
    const reply = (status, response) => socket.send(JSON.stringify([joinRef, ref, topic, 'phx_reply', { status, response }]));
    if (topic === 'phoenix') return reply('ok', {});
    if (event === 'phx_join') {
      if (topic === 'room:secret') return reply('error', { reason: 'unauthorized' });
      joined.set(topic, joinRef);
      record({ subscribed: topic });
      return reply('ok', {});
    }
    if (joined.get(topic) !== joinRef) return reply('error', { reason: 'unmatched topic' });
    if (event === 'phx_leave') { joined.delete(topic); return reply('ok', {}); }
    if (event === 'echo') return reply('ok', payload);
    if (event === 'order') {
      record({ order: payload.id });
      setTimeout(() => reply('ok', {}), 500);
    }
  });
  const timer = setInterval(() => {
    for (const [topic, ref] of joined) socket.send(JSON.stringify([ref, null, topic, 'tick', { generation: GENERATION }]));
  }, 50);
  socket.on('close', () => clearInterval(timer));
});
