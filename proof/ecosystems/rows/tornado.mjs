import { plainChecks, plainRestarts } from '../lib/plain.mjs';
import { python } from '../lib/python.mjs';

export default {
  title: 'Tornado / ws, reconnecting-websocket',
  uses: ['pypi:tornado', 'npm:ws', 'npm:reconnecting-websocket'],
  server: () => python('servers/tornado_app.py'),
  async play(leg, { times }) {
    await plainChecks(leg, { without: ['the handler returns'] });
    await plainRestarts(leg, times);
  },
};
