// SockJS's server with its defaults.

import { appendFileSync } from 'node:fs';
import { createServer } from 'node:http';
import sockjs from 'sockjs';

const { PORT, RECORD, GENERATION } = process.env;
const service = sockjs.createServer({ log: () => {} });
service.on('connection', (connection) => {
  let timer;
  connection.on('data', (text) => {
    const { join, order, echo, leave } = JSON.parse(text);
    if (join) timer = setInterval(() => connection.write(JSON.stringify({ generation: GENERATION })), 50);
    if (order) appendFileSync(RECORD, `${JSON.stringify({ order, generation: GENERATION })}\n`);
    if (order) setTimeout(() => connection.write(JSON.stringify({ receipt: order })), 500);
    if (echo !== undefined) connection.write(text);
    if (leave) connection.close(3210, 'in a word');
  });
  connection.on('close', () => clearInterval(timer));
});
const http = createServer();
service.installHandlers(http, { prefix: '/sockjs' });
http.listen(Number(PORT), '127.0.0.1');
