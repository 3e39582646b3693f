// The checks of a row whose server has no protocol of its own: `servers/` has the same application in several
// frameworks, each in its own idiom. The client is `ws`, and reconnecting-websocket where a connection must last.
//
// Paths: /echo; /close and /close-CODE end with such a Close; /raise and /return end their handler; /secret refuses with
// 401, /cookie sets one, /sub supports the subprotocol b.v2 alone, /browser admits pages of this host only, /leave
// writes down how a client left, /feed sends ticks to clients that have joined and accepts orders, /page is HTTP.

import ReconnectingWebSocket from 'reconnecting-websocket';
import WebSocket from 'ws';

import { closing, echo, http, leave, open, refusal, welcome } from './client.mjs';
import { Flow } from './leg.mjs';

const CLOSES = ['/close', '/close-1000', '/close-1001', '/close-1008', '/close-1011', '/close-4321'];

/** @param without names of checks that this server has no counterpart for */
export async function plainChecks(leg, { without = [], closes = CLOSES, sizes, page = true } = {}) {
  const check = (name, act) => (without.includes(name) ? undefined : leg.check(name, act));
  const url = (path) => leg.url(path);
  const { origin } = leg; // as a browser sends it with each handshake
  await check('echo of 0 B to 1 MB, 300 in order', () => echo(url('/echo'), sizes, { origin }));
  await check('subprotocol agreed', async () => {
    const socket = await open(url('/sub'), ['a.v1', 'b.v2'], { origin });
    socket.close();
    return socket.protocol;
  });
  for (const path of closes) await check(`server ends with ${path}`, () => closing(url(path), undefined, { origin }));
  await check('the handler raises', () => closing(url('/raise'), 'go on', { origin }));
  await check('the handler returns', () => closing(url('/return'), 'go on', { origin }));
  await check('401 with challenge, cookie and body', () => refusal(url('/secret'), { origin }));
  await check('cookie of the 101', () => welcome(url('/cookie'), { origin }));
  await check('a page of this host is admitted', async () => {
    const socket = await open(url('/browser'), [], { origin });
    socket.close();
  });
  await check('a page of another host is refused', async () => {
    const { status } = await refusal(url('/browser'), { origin: 'http://evil.example' });
    return status;
  });
  await check('a client leaves with 4321 "logged out"', () => leave(leg, (socket) => socket.close(4321, 'logged out')));
  await check('a client that is cut is no 1000', async () => {
    const [code] = await leave(leg, (socket) => socket.terminate());
    if (code === 1000) throw new Error('the server observed 1000');
  });
  if (page) {
    await check('GET of a page', () => http(url('/page')));
    await check('POST of 100 kB', () => http(url('/page'), { method: 'POST', body: 'p'.repeat(100_000), headers: { 'content-type': 'text/plain' } }));
    await check('404', () => http(url('/nowhere')));
  }
}

/** A client across restarts: it joins again after each `open`, as applications do. */
export async function plainRestarts(leg, times) {
  const flow = new Flow();
  class FromPage extends WebSocket {
    constructor(url, protocols) { super(url, protocols, { origin: leg.origin }); }
  }
  const steady = { minUptime: 200, minReconnectionDelay: 1000, maxReconnectionDelay: 1000 }; // as lib/leg.mjs explains
  const socket = new ReconnectingWebSocket(leg.url('/feed'), [], { WebSocket: FromPage, ...steady });
  socket.addEventListener('open', () => socket.send('{"join":true}'));
  socket.addEventListener('message', ({ data }) => flow.saw(JSON.parse(data).generation ?? 0));
  await leg.restarts({ flow: flow.until, order: (id) => socket.send(JSON.stringify({ order: id })), times });
  socket.close();
}

