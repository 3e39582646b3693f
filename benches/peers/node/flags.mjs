// --listen HOST:PORT, and --interval SECONDS of a server or --upstream URL of a gateway
export function flags() {
  const value = (name) => process.argv[process.argv.indexOf(name) + 1];
  const [host, port] = value("--listen").split(":");
  return { host, port: Number(port), interval: Number(value("--interval")) * 1000, upstream: value("--upstream") };
}

// Pings every connection each interval, and ends those that did not answer the Ping before.
export function beat(sockets, interval) {
  sockets.on("connection", (socket) => {
    socket.alive = true;
    socket.on("pong", () => (socket.alive = true));
    socket.on("error", () => {});
  });
  setInterval(() => {
    for (const socket of sockets.clients) {
      if (!socket.alive) {
        socket.terminate();
      } else {
        socket.alive = false;
        socket.ping();
      }
    }
  }, interval);
}
