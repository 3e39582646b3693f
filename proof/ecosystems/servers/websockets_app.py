"""The plain application (see lib/plain.mjs) with the library `websockets`."""

import asyncio
from http import HTTPStatus
from urllib.parse import urlsplit

from record import COOKIES, PORT, SECRET, WORDS, record, take_order, tick
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


def admit(connection, request):
    """Answers other than 101."""
    if request.path == "/secret":
        response = connection.respond(HTTPStatus.UNAUTHORIZED, SECRET.decode())
        response.headers["WWW-Authenticate"] = 'Bearer realm="api"'
        response.headers["Set-Cookie"] = "try=2"
        return response
    if request.path == "/browser" and urlsplit(request.headers["Origin"]).netloc != request.headers["Host"]:
        return connection.respond(HTTPStatus.FORBIDDEN, "another origin\n")


def welcome(_, request, response):
    if request.path == "/cookie":
        for name, value in COOKIES:
            response.headers[name] = value


async def handle(socket):
    path = socket.request.path
    if path == "/echo":
        async for message in socket:
            await socket.send(message)
    elif path.startswith("/close"):
        await socket.send("hello")
        code = path.partition("-")[2]
        await (socket.close(int(code), WORDS) if code else socket.close())
    elif path == "/raise":
        await socket.send(f"hello {await socket.recv()}")
        raise RuntimeError("the handler raised")
    elif path == "/return":
        await socket.recv()
    elif path == "/leave":
        await socket.wait_closed()
        record({"left": [socket.close_code, socket.close_reason]})
    elif path == "/feed":
        await feed(socket)
    else:
        await socket.wait_closed()


async def feed(socket):
    tasks = []
    async for text in socket:
        work = ticks(socket) if "join" in text else receipt(socket, take_order(text))
        tasks.append(asyncio.create_task(work))
    for task in tasks:
        task.cancel()


async def ticks(socket):
    for number in range(1_000_000):
        await socket.send(tick(number))
        await asyncio.sleep(0.05)


async def receipt(socket, text):
    await asyncio.sleep(0.5)
    try:
        await socket.send(text)
    except ConnectionClosed:
        pass


async def main():
    names = {"process_request": admit, "process_response": welcome, "select_subprotocol": lambda _, names: "b.v2" if "b.v2" in names else None}
    async with serve(handle, "127.0.0.1", PORT, **names) as server:
        await server.serve_forever()


asyncio.run(main())
