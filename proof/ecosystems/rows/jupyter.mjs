import { KernelAPI, KernelManager, KernelMessage, ServerConnection } from '@jupyterlab/services';
import { setTimeout as sleep } from 'node:timers/promises';
import WebSocket from 'ws';

import { open, refusal } from '../lib/client.mjs';
import { Flow } from '../lib/leg.mjs';

const TOKEN = 'secret';
const OUTPUT = 200_000;

export default {
  title: 'jupyter_server, kernel channels / @jupyterlab/services',
  uses: ['pypi:jupyter_server', 'pypi:ipykernel', 'npm:@jupyterlab/services', 'npm:ws'],
  profile: 'jupyter',
  server: ({ port, folder }) => ({
    command: process.env.JUPYTER,
    args: ['-m', 'jupyter_server', '--ip=127.0.0.1', `--port=${port}`, '--ServerApp.port_retries=0', '--no-browser', '--allow-root',
      `--IdentityProvider.token=${TOKEN}`, `--ServerApp.root_dir=${folder}`],
    env: Object.fromEntries(['CONFIG', 'DATA', 'RUNTIME'].map((name) => [`JUPYTER_${name}_DIR`, `${folder}/jupyter`]).concat([['HOME', folder], ['IPYTHONDIR', folder]])),
  }),
  async play(leg, { times }) {
    const settings = ServerConnection.makeSettings({ baseUrl: leg.origin, wsUrl: leg.url(''), token: TOKEN, appendToken: true, WebSocket, fetch });
    const manager = new KernelManager({ serverSettings: settings });
    let kernel;
    await leg.check('a kernel starts, by HTTP and WebSocket', async () => {
      kernel = await manager.startNew({ name: 'python3' });
      return (await run(kernel, 'print("hello")')).length;
    });
    await leg.check(`a cell prints ${OUTPUT} bytes`, async () => (await run(kernel, `print("x" * ${OUTPUT}, end="")`)).length);
    await leg.check('an exception is shown', () => run(kernel, '1 / 0').catch((error) => error.message));
    for (const protocols of [[], ['v1.kernel.websocket.jupyter.org']]) {
      await leg.check(`a browser with its cookie, subprotocols [${protocols}]`, async () => {
        const socket = await open(leg.url(`/api/kernels/${kernel.id}/channels`), protocols, { origin: leg.origin, headers: { cookie: await login(leg) } });
        socket.close();
        return socket.protocol;
      });
    }
    await leg.check('a browser without a cookie is refused', () => refusal(leg.url(`/api/kernels/${kernel.id}/channels`), { origin: leg.origin }).then(({ status }) => status));
    await leg.check('a page of another host is refused', async () => {
      const options = { origin: 'http://evil.example', headers: { cookie: await login(leg) } };
      return (await refusal(leg.url(`/api/kernels/${kernel.id}/channels`), options)).status;
    });

    // Kernels end with their server. An application starts a new one when its own is gone.
    const flow = new Flow();
    let over = false;
    const work = async () => {
      for (; !over; await sleep(100)) {
        const { generation } = leg;
        try {
          if (!(await KernelAPI.getKernelModel(kernel.id, settings))) kernel = await manager.startNew({ name: 'python3' });
          await Promise.race([run(kernel, 'print(1)'), sleep(3000).then(() => { throw new Error('no answer'); })]);
          flow.saw(generation);
        } catch { /* the server is away */ }
      }
    };
    work();
    await leg.restarts({ flow: flow.until, times });
    over = true;
    await manager.shutdownAll().catch(() => {});
  },
};

async function run(kernel, code) {
  let output = '';
  const future = kernel.requestExecute({ code });
  future.onIOPub = (message) => {
    if (KernelMessage.isStreamMsg(message)) output += message.content.text;
  };
  const reply = await future.done;
  if (reply.content.status !== 'ok') throw new Error(`${reply.content.ename}: ${reply.content.evalue}`);
  return output;
}

/** The cookie that a browser gets with its first page; jupyter_server names it after the Host. */
async function login(leg) {
  const answer = await fetch(`${leg.origin}/api/status?token=${TOKEN}`, { redirect: 'manual' });
  const cookies = answer.headers.getSetCookie().map((cookie) => cookie.split(';')[0]);
  if (!cookies.some((cookie) => cookie.includes(leg.host.replace(/\W/g, '-')))) throw new Error(`no cookie for ${leg.host}: ${cookies}`);
  return cookies.join('; ');
}
