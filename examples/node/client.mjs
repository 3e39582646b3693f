// Node 20 has no WebSocket of its own, so the class of `ws` is passed; from Node 22 on leave it out.
import { MainstaySocket } from "@mainstay/client";
import WebSocket from "ws";

const socket = new MainstaySocket(process.argv[2], [], { WebSocket });
socket.on("gap", ({ fate }) => console.log("lost:", fate));
socket.on("close", ({ code }) => console.log("closed:", code));

for (const word of ["one", "two"]) {
  // Settles over as many connections as it takes: "delivered", "not delivered" or "unknown". It never rejects.
  console.log(`${word}: ${await socket.send(word).delivered}`);
}

let answers = 0;
for await (const answer of socket) {
  console.log(`answer: ${answer}`);
  if (++answers === 2) socket.close();
}
