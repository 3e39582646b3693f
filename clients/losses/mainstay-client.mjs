// The same client with @mainstay/client and its defaults, towards the plugin or the gateway.
//
//   node mainstay-client.mjs URL

import { MainstaySocket } from "@mainstay/client";
import WebSocket from "ws";
import { count, note } from "./numbers.mjs";

const socket = new MainstaySocket(process.argv[2], [], { WebSocket });

socket.onopen = () => note({ event: "open" });
socket.onmessage = ({ data }) => note({ got: Number(data) });
socket.on("status", ({ status }) => {
  if (status === "waiting" || status === "connecting") note({ event: "lost" });
});
socket.on("gap", () => note({ event: "gap" }));

count((n) => {
  note({ sent: n });
  try {
    void socket.send(String(n)).delivered.then((fate) => note({ fate, of: n }));
  } catch {
    note({ refused: n }); // the client keeps as many messages as it may
  }
});
