import { Program, freePort } from '../lib/processes.mjs';
import { closing, message, open } from '../lib/client.mjs';
import { python } from '../lib/python.mjs';

const target = await freePort();

export default {
  title: 'websockify in front of a TCP server / ws',
  uses: ['pypi:websockify', 'npm:ws'],
  server: ({ port }) => python('-m', 'websockify', `127.0.0.1:${port}`, `127.0.0.1:${target}`),
  async play(leg) {
    const env = { TARGET_PORT: String(target) };
    const tcp = await new Program({ command: process.execPath, args: ['servers/websockify.mjs'], env, log: `${leg.folder}/target.log` }).listens(target);
    for (const protocols of [['binary'], [], ['binary', 'base64']]) {
      await leg.check(`greeting with subprotocols [${protocols}]`, async () => {
        const socket = await open(leg.url('/websockify'), protocols);
        const greeting = String(await message(socket));
        socket.close();
        return [socket.protocol, greeting];
      });
    }
    await leg.check('60 kB each way', () => stream(leg, 60_000));
    await leg.check('1 MB each way', () => stream(leg, 1_000_000));
    await leg.check('one greeting for one connection, and the end of the target is an end', async () => {
      const socket = await open(leg.url('/websockify'), ['binary']);
      await message(socket);
      await tcp.end();
      const { code } = await socket.closed;
      return { code, before: Buffer.concat(socket.inbox.map(Buffer.from)).toString() };
    });
    await leg.check('a target that is down', () => closing(leg.url('/websockify')));
  },
};

/** A stream of bytes: websockify does not preserve message boundaries. */
async function stream(leg, size) {
  const socket = await open(leg.url('/websockify'), ['binary']);
  await message(socket);
  socket.inbox.length = 0;
  for (let at = 0; at < size; at += 10_000) socket.send(Buffer.alloc(10_000, at / 10_000));
  let back = Buffer.alloc(0);
  while (back.length < size) {
    await message(socket);
    back = Buffer.concat([back, ...socket.inbox.splice(0)]);
  }
  socket.close();
  for (let at = 0; at < size; at += 1000) if (back[at] !== Math.floor(at / 10_000) % 256) throw new Error(`byte ${at} is wrong`);
}
