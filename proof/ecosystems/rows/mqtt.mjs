import mqtt from 'mqtt';

import { open } from '../lib/client.mjs';
import { Flow } from '../lib/leg.mjs';
import { insider, mosquitto } from '../lib/mosquitto.mjs';

export default {
  title: 'mosquitto over WebSocket / mqtt.js',
  uses: ['debian:mosquitto', 'npm:mqtt'],
  profile: 'mqtt',
  server: mosquitto,
  async play(leg, { times }) {
    await leg.check('subprotocol agreed', async () => {
      const socket = await open(leg.url('/mqtt'), ['mqtt']);
      socket.close();
      return socket.protocol;
    });
    const client = mqtt.connect(leg.url('/mqtt'), { clientId: 'reader' });
    client.on('error', () => {}).setMaxListeners(0);
    await leg.check('connects', () => new Promise((done) => client.once('connect', () => done())));
    for (const qos of [0, 1, 2]) {
      for (const size of [10, 100_000]) await leg.check(`${size} B to itself, QoS ${qos}`, () => round(client, qos, size));
    }
    await leg.check('a last will after a cut', () => will(leg, client));
    const inside = insider(leg);
    const flow = new Flow();
    client.on('message', (topic, payload) => topic === 'ticks' && flow.saw(payload.toString()));
    client.subscribe('ticks');
    await leg.restarts({ flow: flow.until, order: (id) => client.publish('orders', id), times });
    inside.end();
    client.end(true);
  },
};

async function round(client, qos, size) {
  const topic = `round/${qos}/${size}`;
  await client.subscribeAsync(topic, { qos });
  const came = new Promise((done) => client.on('message', (name, payload) => name === topic && done(payload.length)));
  await client.publishAsync(topic, 'x'.repeat(size), { qos });
  const length = await came;
  await client.unsubscribeAsync(topic);
  return length;
}

async function will(leg, client) {
  await client.subscribeAsync('wills');
  const will = new Promise((done) => client.on('message', (name, payload) => name === 'wills' && done(payload.toString())));
  const other = mqtt.connect(leg.url('/mqtt'), { clientId: 'mortal', reconnectPeriod: 0, will: { topic: 'wills', payload: 'gone' } });
  other.on('error', () => {});
  await new Promise((done) => other.once('connect', done));
  other.stream.destroy();
  return will;
}
