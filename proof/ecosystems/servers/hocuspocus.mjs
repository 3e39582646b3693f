// Hocuspocus with its defaults, without a store: a document lives in the server, and in the clients that bring it back.

import { Server } from '@hocuspocus/server';

const { PORT } = process.env;
const server = new Server({
  address: '127.0.0.1', port: Number(PORT), quiet: true,
  async onAuthenticate({ token }) { if (token === 'wrong') throw new Error('not you'); },
});
server.listen();
