/**
 * What runtimes.test.ts runs in each runtime, as it is and so without types: a hundred numbers to an echo, each
 * printed as it comes back, then an ordered end. The process ends when nothing is left to do. Arguments: the URL, and
 * `ws` where that is to be used instead of the runtime's own WebSocket.
 */

import process from "node:process";
import { MainstaySocket } from "../dist/index.js";

const [url, own] = process.argv.slice(2);
const options = own === "ws" ? { WebSocket: (await import("ws")).WebSocket } : {};
const socket = new MainstaySocket(url, [], options);
// Ten under way: the next leaves when one is back.
for (let n = 1; n <= 10; n++) socket.send(`${n}`);
let received = 0;
socket.onmessage = async ({ data }) => {
  console.log(data);
  const next = Number(data) + 10;
  const sent = next <= 100 ? socket.send(`${next}`) : undefined;
  if (++received === 90) console.log(`the last one: ${await sent.delivered}`);
  if (data === "100") socket.close();
};
socket.onclose = ({ code }) => console.log(`closed with ${code} after ${socket.stats.connections} connections`);
