import { plainChecks, plainRestarts } from '../lib/plain.mjs';
import { python } from '../lib/python.mjs';

export default {
  title: 'websockets (Python) / ws, reconnecting-websocket',
  uses: ['pypi:websockets', 'npm:ws', 'npm:reconnecting-websocket'],
  server: () => python('servers/websockets_app.py'),
  async play(leg, { times }) {
    await plainChecks(leg, { page: false });
    await plainRestarts(leg, times);
  },
};
