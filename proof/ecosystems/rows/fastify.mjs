import { plainChecks, plainRestarts } from '../lib/plain.mjs';

export default {
  title: 'Fastify + @fastify/websocket / ws, reconnecting-websocket',
  uses: ['npm:fastify', 'npm:@fastify/websocket', 'npm:ws', 'npm:reconnecting-websocket'],
  server: () => ({ command: process.execPath, args: ['servers/fastify.mjs'] }),
  async play(leg, { times }) {
    await plainChecks(leg);
    await plainRestarts(leg, times);
  },
};
