"""The plain application (see lib/plain.mjs) in Tornado, with its own check that Origin names the Host."""

import asyncio

from record import COOKIES, PAGE, PORT, SECRET, WORDS, record, take_order, tick
from tornado.ioloop import PeriodicCallback
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler


class Echo(WebSocketHandler):
    def on_message(self, message):
        self.write_message(message, binary=isinstance(message, bytes))


class Sub(Echo):
    def select_subprotocol(self, _):
        return "b.v2"


class Close(WebSocketHandler):
    def open(self, code=None):
        self.write_message("hello")
        self.close(code and int(code), code and WORDS)


class Fail(WebSocketHandler):
    def on_message(self, _):
        self.write_message("hello")
        raise RuntimeError("the handler raised")


class Secret(WebSocketHandler):
    def prepare(self):
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Bearer realm="api"')
        self.set_header("Content-Type", "application/json")
        self.set_header("Set-Cookie", "try=2")
        self.finish(SECRET)


class Cookie(WebSocketHandler):
    def prepare(self):
        for name, value in COOKIES:
            self.add_header(name, value)


class Leave(WebSocketHandler):
    def on_close(self):
        record({"left": [self.close_code or 1006, self.close_reason or ""]})


class Feed(WebSocketHandler):
    def open(self):
        self.number, self.ticks = 0, PeriodicCallback(self.tick, 50)

    def tick(self):
        self.write_message(tick(self.number))
        self.number += 1

    async def on_message(self, text):
        if "join" in text:
            return self.ticks.start()
        receipt = take_order(text)
        await asyncio.sleep(0.5)
        await self.write_message(receipt)

    def on_close(self):
        self.ticks.stop()


class Page(RequestHandler):
    def get(self):
        self.write(PAGE)

    def post(self):
        self.write(f"{len(self.request.body)} bytes")


async def main():
    Application([
        ("/echo", Echo), ("/browser", Echo), ("/sub", Sub), ("/close", Close), (r"/close-(\d+)", Close), ("/raise", Fail),
        ("/secret", Secret), ("/cookie", Cookie), ("/leave", Leave), ("/feed", Feed), ("/page", Page),
    ]).listen(PORT, "127.0.0.1")
    await asyncio.Event().wait()


asyncio.run(main())
