import { http } from '../lib/client.mjs';
import { plainChecks, plainRestarts } from '../lib/plain.mjs';

export default {
  title: 'Fastify + @fastify/websocket / ws, reconnecting-websocket',
  uses: ['npm:fastify', 'npm:@fastify/websocket', 'npm:ws', 'npm:reconnecting-websocket'],
  server: () => ({ command: process.execPath, args: ['servers/fastify.mjs'] }),
  async play(leg, { times }) {
    await plainChecks(leg);
    await leg.check('an answer of 5 MB', () => http(leg.url('/large')));
    await leg.check('a request of 5 MB', () => http(leg.url('/page'), { method: 'POST', body: 'p'.repeat(5_000_000), headers: { 'content-type': 'text/plain' } }));
    await leg.check('HEAD', async () => {
      const { status, headers } = await fetch(`${leg.origin}/large`, { method: 'HEAD' });
      return [status, headers.get('content-length'), headers.get('etag')];
    });
    await leg.check('a redirect', async () => {
      const { status, headers } = await fetch(`${leg.origin}/moved`, { redirect: 'manual' });
      return [status, headers.get('location')];
    });
    await leg.check('server-sent events, as they are sent', async () => {
      const answer = await fetch(`${leg.origin}/events`);
      for await (const chunk of answer.body) return [answer.headers.get('content-type'), new TextDecoder().decode(chunk).slice(0, 7)];
    });
    await plainRestarts(leg, times);
  },
};
