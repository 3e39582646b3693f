// Socket.IO's server with its defaults: an echo, a room that is joined, orders.

import { appendFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { Server } from 'socket.io';

const { PORT, RECORD, GENERATION } = process.env;
const record = (line) => appendFileSync(RECORD, `${JSON.stringify({ ...line, generation: GENERATION })}\n`);
const http = createServer((_, answer) => answer.end('an ordinary page'));
const io = new Server(http);
io.use((socket, next) => next(socket.handshake.auth.token === 'wrong' ? new Error('not you') : undefined));
io.on('connection', (socket) => {
  socket.on('echo', (data, answer) => answer(data));
  socket.on('join', (room) => { socket.join(room); record({ subscribed: room }); });
  socket.on('part', (room, answer) => { socket.leave(room); answer(); });
  socket.on('leave', () => socket.disconnect(true));
  socket.on('order', (order, answer) => {
    record({ order });
    setTimeout(answer, 500);
  });
});
setInterval(() => io.to('news').emit('tick', GENERATION), 50);
process.on('SIGTERM', () => io.close(() => process.exit(0)));
http.listen(Number(PORT), '127.0.0.1');
