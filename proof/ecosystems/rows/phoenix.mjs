import { Socket } from 'phoenix';
import WebSocket from 'ws';

import { Flow } from '../lib/leg.mjs';

/** Its own waits, but none above 1 s: steady, as lib/leg.mjs explains. */
const steady = (tries) => [10, 50, 100, 150, 200, 250, 500][tries - 1] ?? 1000;

export default {
  title: 'stand-in for a Phoenix endpoint / phoenix.js',
  uses: ['npm:phoenix', 'npm:ws'],
  profile: 'phoenix',
  server: () => ({ command: process.execPath, args: ['servers/phoenix.mjs'] }),
  async play(leg, { times }) {
    const socket = new Socket(leg.url('/socket'), { transport: WebSocket, reconnectAfterMs: steady });
    socket.connect();
    const pushed = (push) => new Promise((done) => push.receive('ok', (answer) => done(['ok', answer])).receive('error', (answer) => done(['error', answer])));
    const room = socket.channel('room:news', {});
    await leg.check('joins', () => pushed(room.join()));
    await leg.check('a join is refused', () => { const secret = socket.channel('room:secret', {}); return pushed(secret.join()).finally(() => secret.leave()); });
    for (const size of [10, 100_000, 1_000_000]) {
      await leg.check(`push of ${size} B is answered`, async () => {
        const [status, { text }] = await pushed(room.push('echo', { text: 'x'.repeat(size) }));
        return [status, text?.length];
      });
    }
    await leg.check('a channel is left', async () => {
      const other = socket.channel('room:other', {});
      await pushed(other.join());
      return pushed(other.leave());
    });
    const flow = new Flow();
    room.on('tick', ({ generation }) => flow.saw(generation));
    await leg.restarts({ flow: flow.until, order: (id) => room.push('order', { id }), times });
    await leg.subscribedAgain();
    await leg.check('a push after all restarts is answered', () => pushed(room.push('echo', { text: 'still here' })));
    socket.disconnect();
  },
};
