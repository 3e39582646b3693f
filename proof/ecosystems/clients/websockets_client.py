"""The client of the library `websockets`: `websockets_client.py URL CHECK`. Prints one line of JSON: what it saw."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

url, check = sys.argv[1:]


async def echo(socket):
    lengths = []
    for size in (0, 100_000, 1_000_000):
        for data in ("x" * size, b"y" * size):
            await socket.send(data)
            lengths.append(await socket.recv() == data)
    return lengths


async def closing(socket):
    try:
        while True:
            await socket.recv()
    except ConnectionClosed as error:
        end = error.rcvd
        return [end and end.code, end and end.reason]


async def main():
    if check == "follow":  # connects again by itself; each tick's generation is a line
        async for socket in connect(url):
            try:
                await socket.send('{"join":true}')
                async for text in socket:
                    print(json.dumps(json.loads(text)["generation"]), flush=True)
            except ConnectionClosed:
                continue
    try:
        async with connect(url, subprotocols=["a.v1", "b.v2"]) as socket:
            saw = await {"echo": echo, "closing": closing}[check](socket)
            print(json.dumps([socket.subprotocol, saw]))
    except InvalidStatus as error:
        response = error.response
        print(json.dumps([response.status_code, response.headers.get("WWW-Authenticate"), response.body.decode()]))


asyncio.run(main())
