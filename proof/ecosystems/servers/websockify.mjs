// The server behind websockify: a TCP server that greets as a VNC server does and echoes. Prints its port.

import { createServer } from 'node:net';

const server = createServer((socket) => {
  socket.write('RFB 003.008\n');
  socket.on('error', () => {}).pipe(socket);
});
server.listen(Number(process.env.TARGET_PORT), '127.0.0.1');
