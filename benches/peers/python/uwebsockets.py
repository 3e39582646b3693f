"""uWebSockets (C++) through socketify, called from CPython: its sweep of Pings comes half an idle timeout apart."""

import sys

from socketify import App, CompressOptions

value = lambda name: sys.argv[sys.argv.index(name) + 1]
host, port = value("--listen").rsplit(":", 1)
# uWebSockets takes 0 or at least 8 seconds, in steps of 4.
idle_timeout = max(8, -(-2 * int(value("--interval")) // 4) * 4)

options = {
    "compression": CompressOptions.DISABLED,
    "idle_timeout": idle_timeout,
    "send_pings_automatically": True,
    "max_payload_length": 16 * 1024 * 1024,
}

app = App()
app.ws("/echo", options | {"message": lambda ws, message, opcode: ws.send(message, opcode)})
app.ws(
    "/broadcast",
    options
    | {
        "open": lambda ws: ws.subscribe("room"),
        "message": lambda ws, message, opcode: app.publish("room", message, opcode),
    },
)
app.listen({"host": host, "port": int(port)}, lambda config: None)
app.run()
