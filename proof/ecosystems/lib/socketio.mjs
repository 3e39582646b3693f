// What both rows of Socket.IO do: with default transports, and with WebSocket alone.

import { once } from 'node:events';
import { io } from 'socket.io-client';

import { http } from './client.mjs';
import { Flow } from './leg.mjs';

export async function playSocketIo(leg, times, options) {
  const connect = (more) => io(leg.origin, { forceNew: true, ...options, ...more });
  await leg.check('connects; the transport in the end', async () => {
    const socket = connect();
    await once(socket.io.engine ?? socket, 'open').catch(() => {});
    if (!socket.connected) await once(socket, 'connect');
    if (socket.io.engine.transport.name === 'polling') await once(socket.io.engine, 'upgrade');
    const { name } = socket.io.engine.transport;
    socket.close();
    return name;
  });
  for (const size of [10, 100_000, 900_000]) {
    await leg.check(`acknowledged echo of ${size} B, text and binary`, async () => {
      const socket = connect();
      const text = await socket.emitWithAck('echo', 'x'.repeat(size));
      const data = await socket.emitWithAck('echo', Buffer.alloc(size, 7));
      socket.close();
      return [text.length, data.length];
    });
  }
  await leg.check('by polling alone', async () => {
    const socket = connect({ transports: ['polling'] });
    const text = await socket.emitWithAck('echo', 'x'.repeat(100_000));
    socket.close();
    return text.length;
  });
  await leg.check('100 emits in order', async () => {
    const socket = connect();
    const back = await Promise.all(Array.from({ length: 100 }, (_, n) => socket.emitWithAck('echo', n)));
    socket.close();
    if (back.some((value, n) => value !== n)) throw new Error(`in the order ${back}`);
  });
  await leg.check('middleware refuses', async () => {
    const socket = connect({ auth: { token: 'wrong' } });
    const [error] = await once(socket, 'connect_error');
    socket.close();
    return error.message;
  });
  await leg.check('the server disconnects', async () => {
    const socket = connect();
    socket.emit('leave');
    const [why] = await once(socket, 'disconnect');
    socket.close();
    return why;
  });
  await leg.check('an ordinary page', () => http(leg.url('/')));

  const flow = new Flow();
  const socket = connect({ reconnectionDelayMax: 1000 }); // steady, as lib/leg.mjs explains
  socket.on('connect', () => socket.emit('join', 'news'));
  socket.on('tick', (generation) => flow.saw(generation));
  await leg.check('a room is left', async () => {
    socket.emit('join', 'other');
    await socket.emitWithAck('part', 'other');
  });
  await leg.restarts({ flow: flow.until, order: (id) => socket.emit('order', id, () => {}), times });
  await leg.subscribedAgain();
  socket.close();
}
