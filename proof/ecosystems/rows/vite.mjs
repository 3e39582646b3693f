import { mkdirSync, writeFileSync } from 'node:fs';
import { get } from 'node:http';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { http, message, open, refusal } from '../lib/client.mjs';
import { Flow } from '../lib/leg.mjs';

export default {
  title: "Vite's dev server: page, HMR / its own client's subprotocol by ws",
  uses: ['npm:vite', 'npm:ws'],
  server: ({ port, folder }) => {
    const root = join(folder, 'site');
    mkdirSync(root, { recursive: true });
    writeFileSync(join(root, 'index.html'), '<script type="module" src="/main.js"></script>\n');
    writeFileSync(join(root, 'main.js'), 'import.meta.hot?.accept(); document.title = 1;\n');
    return { command: process.execPath, args: ['node_modules/vite/bin/vite.js', root, '--host', '127.0.0.1', '--port', String(port), '--strictPort', '--clearScreen', 'false'] };
  },
  async play(leg, { times }) {
    await leg.check('the page', async () => (await text(leg.url('/'))).includes('/@vite/client'));
    await leg.check('a module', () => http(leg.url('/main.js')).then(({ status, type }) => [status, type]));
    await leg.check("Vite's client", () => http(leg.url('/@vite/client')).then(({ status, type }) => [status, type]));
    await leg.check('a page for a Host that is not allowed is refused', () => statusFor(leg, 'dev.example.org'));
    const hmr = async () => (await text(leg.url('/@vite/client'))).match(/wsToken = "([^"]+)"/)?.[1];
    const connect = async () => open(leg.url(`/?token=${await hmr()}`), ['vite-hmr'], { origin: leg.origin });
    await leg.check('HMR connects', async () => {
      const socket = await connect();
      const hello = JSON.parse(await message(socket));
      socket.close();
      return [socket.protocol, hello.type];
    });
    await leg.check('HMR for a Host that is not allowed is refused', async () => {
      const { status } = await refusal(leg.url(`/?token=${await hmr()}`), { protocols: ['vite-hmr'], origin: leg.origin, headers: { host: 'dev.example.org' } });
      return status;
    });
    await leg.check('an edit is announced', async () => {
      await text(leg.url('/main.js'));
      const socket = await connect();
      writeFileSync(join(leg.folder, 'site/main.js'), 'import.meta.hot?.accept(); document.title = 2;\n');
      const kinds = [];
      for (let index = 0; !kinds.some((kind) => kind === 'update' || kind === 'full-reload'); index++) kinds.push(JSON.parse(await message(socket, index)).type);
      socket.close();
      return kinds.at(-1);
    });
    // As Vite's client does: after a loss it tries to connect as `vite-ping` each second, and then loads the page again.
    const flow = new Flow();
    let over = false;
    const pings = () => open(leg.url('/'), ['vite-ping'], { origin: leg.origin }).then((socket) => !socket.close(), () => false);
    const watch = async () => {
      while (!over) {
        const socket = await connect().catch(() => undefined);
        if (socket) {
          await message(socket).then(() => flow.saw(leg.generation), () => {});
          await socket.closed;
        }
        while (!over && !(await pings())) await sleep(1000);
      }
    };
    watch();
    await leg.restarts({ flow: flow.until, times });
    over = true;
  },
};

async function text(url) {
  return (await fetch(url.replace(/^ws/, 'http'))).text();
}

function statusFor(leg, host) {
  return new Promise((done, fail) => {
    get(leg.origin, { headers: { host } }, (answer) => { answer.resume(); done(answer.statusCode); }).on('error', fail);
  });
}
