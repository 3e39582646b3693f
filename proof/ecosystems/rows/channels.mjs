import { plainChecks, plainRestarts } from '../lib/plain.mjs';
import { python } from '../lib/python.mjs';

export default {
  title: 'daphne, Django Channels / ws, reconnecting-websocket',
  uses: ['pypi:daphne', 'pypi:channels', 'npm:ws', 'npm:reconnecting-websocket'],
  server: ({ port }) => python('-m', 'daphne', '--bind', '127.0.0.1', '--port', port, 'channels_app:application'),
  async play(leg, { times }) {
    await plainChecks(leg, { without: ['the handler returns', 'cookie of the 101'], sizes: [2, 100_000, 1_000_000] });
    await plainRestarts(leg, times);
  },
};
