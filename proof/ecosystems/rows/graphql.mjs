import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { createClient } from 'graphql-ws';
import WebSocket from 'ws';

import { open } from '../lib/client.mjs';
import { Flow } from '../lib/leg.mjs';

export default {
  title: 'graphql-ws, ws / its client',
  uses: ['npm:graphql-ws', 'npm:graphql', 'npm:ws'],
  profile: 'graphql-transport-ws',
  server: () => ({ command: process.execPath, args: ['servers/graphql.mjs'] }),
  async play(leg, { times }) {
    // In Node, an attempt that is refused is final for this client unless an option says otherwise; in a browser it is not.
    const connect = (options) => createClient({ shouldRetry: () => true, url: leg.url('/graphql'), webSocketImpl: WebSocket, connectionParams: { token: 'right' }, generateID: randomUUID, ...options });
    await leg.check('subprotocol agreed', async () => {
      const socket = await open(leg.url('/graphql'), ['graphql-transport-ws']);
      socket.close();
      return socket.protocol;
    });
    for (const size of [10, 100_000, 1_000_000]) await leg.check(`query with ${size} B`, () => echo(connect(), size));
    await leg.check('a token is refused with 4403', () => refused(connect({ retryAttempts: 0, connectionParams: { token: 'wrong' } })));
    await leg.check('no init ends with 4408', () => silent(leg));
    await leg.check('a subscription before init ends with 4401', () => uninvited(leg));

    const flow = new Flow();
    const client = connect({ retryWait: () => sleep(1000), retryAttempts: 60 }); // steady, as lib/leg.mjs explains
    client.subscribe({ query: 'subscription { ticks }' }, { next: ({ data }) => flow.saw(data.ticks), error: () => {}, complete: () => {} });
    const order = (id) => client.subscribe({ query: 'mutation ($id: String) { order(text: $id) }', variables: { id } }, { next: () => {}, error: () => {}, complete: () => {} });
    await leg.check('a subscription is left', async () => {
      for await (const _ of client.iterate({ query: 'subscription { others }' })) break;
    });
    await leg.restarts({ flow: flow.until, order, times });
    await leg.subscribedAgain();
  },
};

async function echo(client, size) {
  const variables = { text: 'x'.repeat(size) };
  for await (const { data } of client.iterate({ query: 'query ($text: String) { echo(text: $text) }', variables })) {
    await client.dispose();
    return data.echo.length;
  }
}

async function refused(client) {
  const error = await new Promise((done) => client.subscribe({ query: '{ echo }' }, { next: () => {}, error: done, complete: () => {} }));
  return [error.code, error.reason];
}

async function silent(leg) {
  const socket = await open(leg.url('/graphql'), ['graphql-transport-ws']);
  return socket.closed;
}

async function uninvited(leg) {
  const socket = await open(leg.url('/graphql'), ['graphql-transport-ws']);
  socket.send('{"id":"1","type":"subscribe","payload":{"query":"subscription { ticks }"}}');
  return socket.closed;
}
