import { plainChecks, plainRestarts } from '../lib/plain.mjs';

export default {
  title: 'Go, gorilla/websocket / ws, reconnecting-websocket',
  uses: ['debian:golang-github-gorilla-websocket-dev', 'npm:ws', 'npm:reconnecting-websocket'],
  server: () => ({ command: process.env.GORILLA }),
  async play(leg, { times }) {
    await plainChecks(leg, { without: ['the handler raises'] });
    await plainRestarts(leg, times);
  },
};
