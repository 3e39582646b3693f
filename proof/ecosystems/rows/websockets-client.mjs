import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

import { Flow } from '../lib/leg.mjs';
import { python } from '../lib/python.mjs';

export default {
  title: 'websockets (Python) / its own client, its own reconnecting loop',
  uses: ['pypi:websockets'],
  server: () => python('servers/websockets_app.py'),
  async play(leg, { times }) {
    for (const [what, path, check] of [
      ['echo of 0 B to 1 MB, text and binary', '/echo', 'echo'],
      ['server ends without a code', '/close', 'closing'],
      ['server ends with 1008', '/close-1008', 'closing'],
      ['server ends with 4321', '/close-4321', 'closing'],
      ['401 with challenge and body', '/secret', 'closing'],
    ]) {
      await leg.check(what, () => new Promise((done, fail) => {
        const lines = client(leg, path, check);
        lines.once('line', (line) => done(JSON.parse(line))).once('close', () => fail(new Error('it printed nothing')));
      }));
    }
    const flow = new Flow();
    client(leg, '/feed', 'follow').on('line', (line) => flow.saw(JSON.parse(line)));
    await leg.restarts({ flow: flow.until, times });
  },
};

/** How long it waits after a loss: at random up to the first, then the second and ever longer. Here it waits a second
 * each time, as lib/leg.mjs explains. */
const WAITS = { WEBSOCKETS_BACKOFF_INITIAL_DELAY: '2', WEBSOCKETS_BACKOFF_MIN_DELAY: '1', WEBSOCKETS_BACKOFF_FACTOR: '1' };

/** Its output. */
function client(leg, path, check) {
  const { command, args, env } = python('-c', 'import random, runpy, sys; random.random = lambda: 0.5; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")', 'clients/websockets_client.py', leg.url(path), check);
  const child = spawn(command, args, { env: { ...process.env, ...env, ...WAITS }, stdio: ['ignore', 'pipe', 'ignore'] });
  process.on('exit', () => child.kill('SIGKILL'));
  return createInterface({ input: child.stdout });
}
