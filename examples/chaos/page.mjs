// The page under test: what the user sends comes back, and is shown.
import { MainstaySocket } from "@mainstay/client";
import ReconnectingWebSocket from "reconnecting-websocket";

const { server, client } = Object.fromEntries(new URLSearchParams(location.search));
const show = (status) => (document.querySelector("#status").textContent = status);

function connect() {
  if (client === "reconnecting-websocket") return new ReconnectingWebSocket(server);
  const socket = new MainstaySocket(server);
  socket.on("status", ({ status }) => show(status === "attached" ? "connected" : "reconnecting"));
  return socket;
}

const socket = connect();
socket.addEventListener("open", () => show("connected"));
socket.addEventListener("close", () => show("reconnecting"));
socket.addEventListener("message", ({ data }) => {
  const item = document.createElement("li");
  item.textContent = data;
  document.querySelector("#log").append(item);
});
document.forms[0].addEventListener("submit", (event) => {
  event.preventDefault();
  socket.send(new FormData(event.target).get("text"));
});
