"""The plain application (see lib/plain.mjs) in Django Channels, served by daphne, behind AllowedHostsOriginValidator."""

import asyncio

import django
from django.conf import settings
from record import PAGE, WORDS, record, take_order, tick

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF="channels_app", SECRET_KEY="proof", MIDDLEWARE=[])
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data, bytes_data)


class Sub(Echo):
    async def connect(self):
        await self.accept("b.v2")


class Close(AsyncWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.send("hello")
        code = self.scope["url_route"]["kwargs"].get("code")
        await self.close(code, WORDS if code else None)


class Fail(AsyncWebsocketConsumer):
    async def receive(self, **_):
        await self.send("hello")
        raise RuntimeError("the consumer raised")


class Secret(AsyncWebsocketConsumer):
    async def connect(self):
        await self.close()


class Leave(AsyncWebsocketConsumer):
    async def disconnect(self, code):
        record({"left": [code, ""]})


class Feed(AsyncWebsocketConsumer):
    tasks = ()

    async def receive(self, text_data):
        work = self.ticks() if "join" in text_data else self.receipt(take_order(text_data))
        self.tasks += (asyncio.create_task(work),)

    async def ticks(self):
        for number in range(1_000_000):
            await self.send(tick(number))
            await asyncio.sleep(0.05)

    async def receipt(self, text):
        await asyncio.sleep(0.5)
        await self.send(text)

    async def disconnect(self, _):
        for task in self.tasks:
            task.cancel()


def page(request):
    return HttpResponse(f"{len(request.body)} bytes" if request.method == "POST" else PAGE)


urlpatterns = [path("page", page)]
sockets = [
    path("echo", Echo.as_asgi()), path("browser", Echo.as_asgi()), path("sub", Sub.as_asgi()), path("close", Close.as_asgi()),
    path("close-<int:code>", Close.as_asgi()), path("raise", Fail.as_asgi()), path("secret", Secret.as_asgi()),
    path("leave", Leave.as_asgi()), path("feed", Feed.as_asgi()),
]
application = ProtocolTypeRouter({
    "http": get_asgi_application(),
    "websocket": AllowedHostsOriginValidator(URLRouter(sockets)),
})
