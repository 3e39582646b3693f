import SockJS from 'sockjs-client';

import { http } from '../lib/client.mjs';
import { Flow } from '../lib/leg.mjs';

/** SockJS does not reconnect: applications do. */
const AGAIN = 500;

export default {
  title: 'SockJS / sockjs-client',
  uses: ['npm:sockjs', 'npm:sockjs-client'],
  server: () => ({ command: process.execPath, args: ['servers/sockjs.mjs'] }),
  async play(leg, { times }) {
    const url = `${leg.origin}/sockjs`;
    for (const transport of [undefined, 'websocket', 'xhr-streaming', 'xhr-polling']) {
      await leg.check(`echo of 100 kB by ${transport ?? 'what the client chooses'}`, () => echo(url, transport));
    }
    await leg.check('the server ends with a code', () => ended(url));
    await leg.check('its iframe page', () => http(leg.url('/sockjs/iframe.html')));
    const flow = new Flow();
    let socket;
    const connect = () => {
      socket = new SockJS(url);
      socket.onopen = () => socket.send('{"join":true}');
      socket.onmessage = ({ data }) => flow.saw(JSON.parse(data).generation ?? 0);
      socket.onclose = () => setTimeout(connect, AGAIN);
    };
    connect();
    await leg.restarts({ flow: flow.until, order: (id) => socket.send(JSON.stringify({ order: id })), times });
  },
};

function echo(url, transports) {
  const socket = new SockJS(url, null, { transports });
  return new Promise((done, fail) => {
    socket.onopen = () => socket.send(JSON.stringify({ echo: 'x'.repeat(100_000) }));
    socket.onmessage = ({ data }) => { done([socket.transport, data.length]); socket.onclose = null; socket.close(); };
    socket.onclose = ({ code, reason }) => fail(new Error(`closed with ${code} ${reason}`));
  });
}

function ended(url) {
  const socket = new SockJS(url);
  return new Promise((done) => {
    socket.onopen = () => socket.send('{"leave":true}');
    socket.onclose = ({ code, reason }) => done({ code, reason });
  });
}
