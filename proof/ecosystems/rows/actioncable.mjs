import { ConnectionMonitor, createConsumer, adapters } from '@rails/actioncable';
import WebSocket from 'ws';

import { closing, http, open } from '../lib/client.mjs';
import { Flow } from '../lib/leg.mjs';

export default {
  title: 'Rails Action Cable, puma / @rails/actioncable',
  uses: ['debian:ruby-actioncable', 'debian:puma', 'npm:@rails/actioncable'],
  profile: 'actioncable',
  server: () => ({ command: 'ruby', args: ['servers/actioncable.rb'] }),
  async play(leg, { times }) {
    const { origin } = leg;
    await leg.check('a page of this host is admitted, subprotocol agreed', async () => {
      const socket = await open(leg.url('/cable'), ['actioncable-v1-json', 'actioncable-unsupported'], { origin });
      socket.close();
      return socket.protocol;
    });
    await leg.check('a page of another host is refused', () => open(leg.url('/cable'), ['actioncable-v1-json'], { origin: 'http://evil.example' }).then(() => 'admitted', (error) => error.message));
    await leg.check('reject_unauthorized_connection', () => closing(leg.url('/cable?who=nobody'), undefined, { origin, protocols: ['actioncable-v1-json'] }));
    await leg.check('a page', () => http(leg.url('/page')));
    const cable = consumer(leg);
    for (const size of [10, 100_000, 1_000_000]) await leg.check(`echo of ${size} B`, () => echo(cable, size));
    await leg.check('a subscription is rejected', () => new Promise((done) => cable.subscriptions.create('SecretChannel', { rejected: () => done('rejected'), connected: () => done('connected') })));
    const flow = new Flow();
    const news = cable.subscriptions.create('NewsChannel', { received: ({ generation }) => flow.saw(generation) });
    await leg.restarts({ flow: flow.until, order: (id) => news.perform('order', { id }), times, phase: () => look(cable) });
    await leg.subscribedAgain();
    cable.disconnect();
  },
};

/**
 * Resolves when the client has just looked whether its connection is stale. It looks by its own clock, every 6 s here,
 * and connects again only then: restarts come at the same time of that clock on each leg.
 */
function look({ connection: { monitor } }) {
  return new Promise((done) => {
    monitor.reconnectIfStale = () => {
      delete monitor.reconnectIfStale;
      monitor.reconnectIfStale();
      done();
    };
  });
}

/** The client is made for browsers: this provides the globals that it uses. */
function consumer(leg) {
  ConnectionMonitor.staleThreshold = 4; // seconds; with lib/dice.mjs it looks after half as much more
  globalThis.document ??= { visibilityState: 'visible' };
  globalThis.addEventListener ??= () => {};
  globalThis.removeEventListener ??= () => {};
  adapters.WebSocket = class extends WebSocket {
    constructor(url, protocols) { super(url, protocols, { origin: leg.origin }); }
  };
  return createConsumer(leg.url('/cable'));
}

function echo(cable, size) {
  return new Promise((done, fail) => {
    const channel = cable.subscriptions.create('EchoChannel', {
      connected: () => channel.perform('echo', { text: 'x'.repeat(size) }),
      received: ({ text }) => { channel.unsubscribe(); done(text.length); },
      rejected: () => fail(new Error('rejected')),
    });
  });
}
