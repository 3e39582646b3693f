"""The plain application (see lib/plain.mjs) in aiohttp."""

import asyncio
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web
from record import COOKIES, PAGE, PORT, SECRET, WORDS, record, take_order, tick


async def accept(request, **options):
    socket = web.WebSocketResponse(**options)
    await socket.prepare(request)
    return socket


async def echo(request):
    socket = await accept(request)
    async for message in socket:
        await (socket.send_str if message.type == WSMsgType.TEXT else socket.send_bytes)(message.data)
    return socket


async def sub(request):
    socket = await accept(request, protocols=["b.v2"])
    await socket.receive()
    return socket


async def close(request):
    socket = await accept(request)
    await socket.send_str("hello")
    code = int(request.match_info.get("code", "1000"))
    await socket.close(code=code, message=WORDS.encode() if code != 1000 else b"")
    return socket


async def fail(request):
    socket = await accept(request)
    await socket.send_str("hello")
    await socket.receive()
    raise RuntimeError("the handler raised")


async def finish(request):
    socket = await accept(request)
    await socket.receive()
    return socket


async def secret(request):
    fields = {"WWW-Authenticate": 'Bearer realm="api"', "Set-Cookie": "try=2"}
    return web.Response(body=SECRET, status=401, headers=fields, content_type="application/json")


async def cookie(request):
    socket = web.WebSocketResponse()
    for name, value in COOKIES:
        socket.headers.add(name, value)
    await socket.prepare(request)
    await socket.receive()
    return socket


async def browser(request):
    if urlsplit(request.headers["Origin"]).netloc != request.host:
        raise web.HTTPForbidden
    return await finish(request)


async def leave(request):
    socket = await accept(request)
    left = await socket.receive()
    record({"left": [left.data if left.type == WSMsgType.CLOSE else 1006, left.extra or ""]})
    return socket


async def feed(request):
    socket = await accept(request)
    tasks = []
    async for message in socket:
        work = ticks(socket) if "join" in message.data else receipt(socket, take_order(message.data))
        tasks.append(asyncio.create_task(work))
    for task in tasks:
        task.cancel()
    return socket


async def ticks(socket):
    for number in range(1_000_000):
        await socket.send_str(tick(number))
        await asyncio.sleep(0.05)


async def receipt(socket, text):
    await asyncio.sleep(0.5)
    await socket.send_str(text)


async def page(request):
    return web.Response(text=f"{len(await request.read())} bytes" if request.method == "POST" else PAGE)


app = web.Application()
app.add_routes([
    web.get("/echo", echo), web.get("/sub", sub), web.get("/close", close), web.get(r"/close-{code:\d+}", close),
    web.get("/raise", fail), web.get("/return", finish), web.get("/secret", secret), web.get("/cookie", cookie),
    web.get("/browser", browser), web.get("/leave", leave), web.get("/feed", feed),
    web.get("/page", page), web.post("/page", page),
])
web.run_app(app, host="127.0.0.1", port=PORT, shutdown_timeout=1)
