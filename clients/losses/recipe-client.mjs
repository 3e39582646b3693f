// The recipe's client: it connects again 3 s after `close`, and sends if the socket is open.
//
//   node recipe-client.mjs URL

import WebSocket from "ws";
import { count, note } from "./numbers.mjs";

const RECONNECT_AFTER_MS = 3000;
let socket;

function connect() {
  socket = new WebSocket(process.argv[2]);
  socket.onopen = () => note({ event: "open" });
  socket.onmessage = ({ data }) => note({ got: Number(data) });
  socket.onerror = () => {}; // `close` follows
  socket.onclose = () => {
    note({ event: "lost" });
    setTimeout(connect, RECONNECT_AFTER_MS);
  };
}

connect();
count((n) => {
  note({ sent: n });
  if (socket.readyState === WebSocket.OPEN) socket.send(String(n));
});
