import { playSocketIo } from '../lib/socketio.mjs';

export default {
  title: 'Socket.IO, WebSocket alone / socket.io-client',
  uses: ['npm:socket.io', 'npm:socket.io-client'],
  profile: 'engine.io',
  server: () => ({ command: process.execPath, args: ['servers/socketio.mjs'] }),
  play: (leg, { times }) => playSocketIo(leg, times, { transports: ['websocket'] }),
};
