import { MainstaySocket } from "@mainstay/client";

const socket = new MainstaySocket("ws://127.0.0.1:8088/echo"); // was: new WebSocket(...)
socket.onmessage = ({ data }) => log(`answer: ${data}`);
socket.on("status", ({ status }) => show(status));
socket.on("gap", ({ fate }) => log(`lost: ${JSON.stringify(fate)}`));

async function send(text: string) {
  // Kept while the network is away; settles when it is known what became of it.
  log(`${text}: ${await socket.send(text).delivered}`);
}

document.forms[0]!.addEventListener("submit", (event) => {
  event.preventDefault();
  void send(String(new FormData(event.target as HTMLFormElement).get("text")));
});
void send("hello");

function show(status: string) {
  document.querySelector("#status")!.textContent = status === "attached" ? "connected" : status;
}

function log(line: string) {
  const item = document.createElement("li");
  item.textContent = line;
  document.querySelector("#log")!.append(item);
}
