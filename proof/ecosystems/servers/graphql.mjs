// graphql-ws's server over `ws`: a query, a mutation that must not run twice, a subscription; a token is asked for.

import { appendFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { GraphQLBoolean, GraphQLInt, GraphQLObjectType, GraphQLSchema, GraphQLString } from 'graphql';
import { useServer } from 'graphql-ws/use/ws';
import { WebSocketServer } from 'ws';

const { PORT, RECORD, GENERATION } = process.env;
const text = { text: { type: GraphQLString } };
const schema = new GraphQLSchema({
  query: new GraphQLObjectType({ name: 'Query', fields: { echo: { type: GraphQLString, args: text, resolve: (_, args) => args.text } } }),
  mutation: new GraphQLObjectType({ name: 'Mutation', fields: { order: { type: GraphQLBoolean, args: text, resolve: order } } }),
  subscription: new GraphQLObjectType({
    name: 'Subscription',
    fields: { ticks: { type: GraphQLInt, subscribe: ticks }, others: { type: GraphQLInt, subscribe: others } },
  }),
});

function record(line) {
  appendFileSync(RECORD, `${JSON.stringify({ ...line, generation: GENERATION })}\n`);
}

async function order(_, { text }) {
  record({ order: text });
  await sleep(500);
  return true;
}

async function* ticks() {
  record({ subscribed: 'ticks' });
  for (;; await sleep(50)) yield { ticks: Number(GENERATION) };
}

async function* others() {
  record({ subscribed: 'others' });
  for (;; await sleep(50)) yield { others: Number(GENERATION) };
}

const server = new WebSocketServer({ port: Number(PORT), host: '127.0.0.1', path: '/graphql' });
const disposable = useServer({ schema, onConnect: ({ connectionParams }) => connectionParams?.token === 'right' }, server);
process.on('SIGTERM', () => Promise.resolve(disposable.dispose()).then(() => process.exit(0)));
