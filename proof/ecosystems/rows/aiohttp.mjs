import { plainChecks, plainRestarts } from '../lib/plain.mjs';
import { python } from '../lib/python.mjs';

export default {
  title: 'aiohttp / ws, reconnecting-websocket',
  uses: ['pypi:aiohttp', 'npm:ws', 'npm:reconnecting-websocket'],
  server: () => python('servers/aiohttp_app.py'),
  async play(leg, { times }) {
    await plainChecks(leg);
    await plainRestarts(leg, times);
  },
};
