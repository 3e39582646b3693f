// The broker of both MQTT rows, and a client that connects to it directly, by TCP: it publishes ticks, and writes down what arrives.

import { appendFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import mqtt from 'mqtt';

import { freePort } from './processes.mjs';

const tcp = await freePort();

/** Mosquitto with MQTT over WebSocket at `port`. */
export function mosquitto({ port, folder }) {
  const file = join(folder, 'mosquitto.conf');
  writeFileSync(file, `per_listener_settings false
allow_anonymous true
listener ${tcp} 127.0.0.1
listener ${port} 127.0.0.1
protocol websockets
`);
  const env = process.env.MOSQUITTO_LIBRARIES && { LD_LIBRARY_PATH: process.env.MOSQUITTO_LIBRARIES };
  return { command: process.env.MOSQUITTO ?? 'mosquitto', args: ['-c', file, '-v'], env };
}

/** Ticks carry the generation of the running broker; every message to `orders` is written down as an order. */
export function insider(leg) {
  const client = mqtt.connect(`mqtt://127.0.0.1:${tcp}`, { clientId: 'insider', reconnectPeriod: 20, connectTimeout: 2000 });
  client.on('connect', () => client.subscribe('orders', { qos: 2 }));
  client.on('message', (_, payload) => {
    appendFileSync(leg.record, `${JSON.stringify({ order: payload.toString(), generation: leg.generation })}\n`);
  });
  client.on('error', () => {});
  const timer = setInterval(() => client.connected && client.publish('ticks', String(leg.generation)), 50);
  return { end: () => { clearInterval(timer); client.end(true); } };
}
