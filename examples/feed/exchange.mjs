// Stands for an exchange: plain WebSocket. It cuts each connection after two prices, and refuses the fourth with 401.
import { WebSocketServer } from "ws";

let connections = 0;
const verifyClient = () => ++connections < 4;
const server = new WebSocketServer({ host: "127.0.0.1", port: 8083, verifyClient }, () => console.log("listening"));
server.on("connection", (socket) => {
  const connection = connections;
  socket.on("message", (message) => {
    if (!`${message}`.startsWith("subscribe")) return;
    socket.send(`5000${connection} 1`);
    socket.send(`6000${connection} 2`);
    setTimeout(() => socket.terminate(), 200);
  });
});
