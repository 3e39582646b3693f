import { HubConnectionBuilder, LogLevel } from '@microsoft/signalr';

import { Flow } from '../lib/leg.mjs';

export default {
  title: 'stand-in for SignalR / @microsoft/signalr',
  uses: ['npm:@microsoft/signalr', 'npm:ws'],
  profile: 'signalr',
  server: () => ({ command: process.execPath, args: ['servers/signalr.mjs'] }),
  async play(leg, { times }) {
    // Steady, as lib/leg.mjs explains: its own waits are 0, 2, 10 and 30 s.
    const hub = new HubConnectionBuilder().withUrl(`${leg.origin}/hub`).withAutomaticReconnect([0, ...Array(60).fill(1000)]).configureLogging(LogLevel.None).build();
    await leg.check('negotiates and connects', () => hub.start());
    for (const size of [10, 100_000, 1_000_000]) {
      await leg.check(`invocation with ${size} B`, async () => (await hub.invoke('Echo', 'x'.repeat(size))).length);
    }
    await leg.check('an invocation fails', () => hub.invoke('Fail', '').catch((error) => error.message));
    const flow = new Flow();
    hub.on('Tick', (generation) => flow.saw(generation));
    hub.onreconnected(() => hub.invoke('Join', ''));
    hub.invoke('Join', '').catch(() => {});
    await leg.restarts({ flow: flow.until, order: (id) => hub.invoke('Order', id).catch(() => {}), times });
    await leg.subscribedAgain();
    await hub.stop();
  },
};
