import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

import { Flow } from '../lib/leg.mjs';
import { insider, mosquitto } from '../lib/mosquitto.mjs';
import { python } from '../lib/python.mjs';

export default {
  title: 'mosquitto over WebSocket / paho (Python)',
  uses: ['debian:mosquitto', 'pypi:paho-mqtt'],
  profile: 'mqtt',
  server: mosquitto,
  async play(leg, { times }) {
    const { command, args, env } = python('clients/paho_client.py', leg.port);
    const client = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'inherit'] });
    process.on('exit', () => client.kill('SIGKILL'));
    const flow = new Flow();
    const waiting = {};
    createInterface({ input: client.stdout }).on('line', (line) => {
      const [[word, value]] = Object.entries(JSON.parse(line));
      if (word === 'tick') flow.saw(value);
      else waiting[word]?.(value);
    });
    const printed = (word) => new Promise((done) => { waiting[word] = done; });
    await leg.check('connects', () => printed('connected'));
    for (const [size, qos] of [[10, 0], [100_000, 0], [100_000, 1], [100_000, 2]]) {
      await leg.check(`${size} B to itself, QoS ${qos}`, () => {
        client.stdin.write(`round ${size} ${qos}\n`);
        return printed('round');
      });
    }
    const inside = insider(leg);
    await leg.restarts({ flow: flow.until, order: (id) => client.stdin.write(`order ${id}\n`), times });
    inside.end();
    client.stdin.end();
  },
};
