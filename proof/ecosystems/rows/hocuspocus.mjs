import { HocuspocusProvider, HocuspocusProviderWebsocket } from '@hocuspocus/provider';
import { setTimeout as sleep } from 'node:timers/promises';
import WebSocket from 'ws';
import * as Y from 'yjs';

const LARGE = 200_000;

export default {
  title: 'Hocuspocus / its provider, Yjs',
  uses: ['npm:@hocuspocus/server', 'npm:@hocuspocus/provider', 'npm:yjs'],
  profile: 'yjs',
  server: () => ({ command: process.execPath, args: ['servers/hocuspocus.mjs'] }),
  async play(leg, { times }) {
    const all = [];
    const join = (token = 'right') => {
      // `factor` makes it steady, as lib/leg.mjs explains.
      const websocketProvider = new HocuspocusProviderWebsocket({ url: leg.url('/'), WebSocketPolyfill: WebSocket, factor: 1 });
      const provider = new HocuspocusProvider({ websocketProvider, name: 'letter', document: new Y.Doc(), token });
      provider.attach();
      all.push(provider);
      return provider;
    };
    const text = (provider) => provider.document.getText('text');
    const until = async (is) => { while (!is()) await sleep(10); };
    await leg.check('a wrong token is refused', () => new Promise((done) => join('wrong').on('authenticationFailed', ({ reason }) => done(reason))));
    const ann = join();
    await leg.check('connects and is in step', () => until(() => ann.isSynced));
    await leg.check('200,000 bytes reach who comes later', async () => {
      text(ann).insert(0, 'x'.repeat(LARGE));
      const ben = join();
      await until(() => text(ben).length === LARGE);
    });
    const ben = all.at(-1);
    let edits = 0;
    // The edit of a generation has arrived when ben has what ann wrote since that server runs.
    const flow = async (generation) => {
      for (const start = edits + 1; ; await sleep(50)) {
        if (leg.generation < generation) continue;
        text(ann).insert(0, `[${generation}:${edits += 1}]`);
        if (new RegExp(`\\[${generation}:`).test(text(ben).toString().slice(0, 4000)) && edits >= start) return;
      }
    };
    await leg.restarts({ flow, times });
    await leg.check('both have the same in the end, once', async () => {
      await until(() => text(ann).toString() === text(ben).toString());
      const marks = text(ann).toString().match(/\[\d+:\d+\]/g);
      if (new Set(marks).size !== marks.length) throw new Error('an edit is there twice');
    });
    for (const provider of all) provider.destroy();
  },
};
