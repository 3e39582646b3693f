"""The plain application (see lib/plain.mjs) in Starlette, served by uvicorn."""

import asyncio
from urllib.parse import urlsplit

import uvicorn
from record import COOKIES, PAGE, PORT, SECRET, WORDS, record, take_order, tick
from starlette.applications import Starlette
from starlette.exceptions import WebSocketException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect


async def echo(socket):
    await socket.accept()
    while (message := await socket.receive())["type"] == "websocket.receive":
        await socket.send({**message, "type": "websocket.send"})


async def sub(socket):
    await socket.accept("b.v2")
    await socket.receive()


async def close(socket):
    await socket.accept()
    await socket.send_text("hello")
    if code := socket.path_params.get("code"):
        await socket.close(code, WORDS)
    else:
        await socket.close()


async def policy(socket):
    await socket.accept()
    raise WebSocketException(1008, WORDS)


async def fail(socket):
    await socket.accept()
    await socket.send_text("hello")
    raise RuntimeError("the handler raised")


async def finish(socket):
    await socket.accept()
    await socket.receive()


async def secret(socket):
    fields = {"WWW-Authenticate": 'Bearer realm="api"', "Set-Cookie": "try=2"}
    await socket.send_denial_response(Response(SECRET, 401, fields, "application/json"))


async def cookie(socket):
    await socket.accept(headers=[(name.lower().encode(), value.encode()) for name, value in COOKIES])
    await socket.receive()


async def browser(socket):
    if urlsplit(socket.headers["origin"]).netloc != socket.headers["host"]:
        return await socket.close()
    await socket.accept()
    await socket.receive()


async def leave(socket):
    await socket.accept()
    left = await socket.receive()
    record({"left": [left["code"], left.get("reason") or ""]})


async def feed(socket):
    await socket.accept()
    tasks = []
    try:
        while True:
            text = await socket.receive_text()
            tasks.append(asyncio.create_task(ticks(socket) if "join" in text else receipt(socket, take_order(text))))
    except WebSocketDisconnect:
        for task in tasks:
            task.cancel()


async def ticks(socket):
    for number in range(1_000_000):
        await socket.send_text(tick(number))
        await asyncio.sleep(0.05)


async def receipt(socket, text):
    await asyncio.sleep(0.5)
    await socket.send_text(text)


async def page(request):
    body = await request.body()
    return PlainTextResponse(f"{len(body)} bytes" if request.method == "POST" else PAGE)


app = Starlette(
    routes=[
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/sub", sub),
        WebSocketRoute("/close", close),
        WebSocketRoute("/close-1008", policy),
        WebSocketRoute("/close-{code:int}", close),
        WebSocketRoute("/raise", fail),
        WebSocketRoute("/return", finish),
        WebSocketRoute("/secret", secret),
        WebSocketRoute("/cookie", cookie),
        WebSocketRoute("/browser", browser),
        WebSocketRoute("/leave", leave),
        WebSocketRoute("/feed", feed),
        Route("/page", page, methods=["GET", "POST"]),
    ]
)

uvicorn.run(app, host="127.0.0.1", port=PORT, timeout_graceful_shutdown=1)
