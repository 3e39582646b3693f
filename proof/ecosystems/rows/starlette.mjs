import { plainChecks, plainRestarts } from '../lib/plain.mjs';
import { python } from '../lib/python.mjs';

export default {
  title: 'uvicorn, Starlette / ws, reconnecting-websocket',
  uses: ['pypi:uvicorn', 'pypi:starlette', 'npm:ws', 'npm:reconnecting-websocket'],
  server: () => python('servers/starlette_app.py'),
  async play(leg, { times }) {
    await plainChecks(leg);
    await plainRestarts(leg, times);
  },
};
