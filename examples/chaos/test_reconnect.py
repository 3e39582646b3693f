"""Test my reconnect, with pytest: the program `mainstay` on the path, and no package but the client under test."""

import asyncio
import http.client
import json
import random
import subprocess
import threading
from contextlib import asynccontextmanager

from websockets.asyncio.client import connect
from websockets.asyncio.server import broadcast, serve
from websockets.exceptions import ConnectionClosed


async def follow(url, seen):
    """The code under test: follows a feed over as many connections as it takes."""
    # The Pings find a half-open connection within 2 s.
    async for websocket in connect(url, ping_interval=1, ping_timeout=1, close_timeout=1):
        try:
            async for message in websocket:
                seen.append(int(message))
        except ConnectionClosed:
            pass
        # The iterator comes back from a lost connection at once: without this wait, all clients together.
        await asyncio.sleep(random.uniform(0, 2))


class Chaos:
    """`mainstay chaos`, steered by its HTTP API. It ends with this process, however this process ends."""

    def __init__(self, upstream, *options):
        command = ["mainstay", "chaos", "--upstream", upstream, "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.program = subprocess.Popen([*command, *options, "--json", "--until-stdin-closes"], **pipes)
        line = self.program.stdout.readline()
        assert line, f"mainstay chaos ended with {self.program.wait()}; its standard error says why"
        started = json.loads(line)
        self.url, self.api, self.timeline = f"ws://{started['listen']}/", started["api"], [started]
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.program.stdout:
            self.timeline.append(json.loads(line))

    def inject(self, **fault):
        connection = http.client.HTTPConnection(self.api)
        connection.request("POST", "/faults", json.dumps(fault), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 201, response.read()

    def handshakes(self):
        return [event["at"] for event in self.timeline if event["event"] == "handshake"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.program.stdin.close()
        self.program.wait()


@asynccontextmanager
async def stage(count):
    """A server that counts, the proxy in front of it, and so many clients with what each has seen."""
    async with serve(lambda socket: socket.wait_closed(), "127.0.0.1", 0, close_timeout=1) as server:
        with Chaos(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", "--seed", "7") as proxy:
            seen = [[] for _ in range(count)]
            tasks = [asyncio.create_task(follow(proxy.url, numbers)) for numbers in seen]
            tasks.append(asyncio.create_task(tick(server)))
            yield proxy, seen
            for task in tasks:
                task.cancel()


async def tick(server):
    number = 0
    while True:
        broadcast(server.connections, str(number := number + 1))
        await asyncio.sleep(0.05)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def more(seen):
    lengths = [len(numbers) for numbers in seen]
    await until(lambda: all(len(now) > before + 10 for now, before in zip(seen, lengths)))


def test_the_client_comes_back_after_a_reset_and_after_a_half_open_connection_and_sees_nothing_twice():
    async def scenario():
        async with stage(1) as (proxy, seen):
            await more(seen)
            for connections, kind in [(2, "reset"), (3, "black-hole")]:
                proxy.inject(kind=kind, target="open")
                await until(lambda: len(proxy.handshakes()) >= connections)
                await more(seen)
            assert seen[0] == sorted(set(seen[0]))

    asyncio.run(scenario())


def test_twenty_clients_do_not_come_back_in_lock_step():
    async def scenario():
        async with stage(20) as (proxy, seen):
            await more(seen)
            proxy.inject(kind="reset", target="open")
            await until(lambda: len(proxy.handshakes()) >= 40)
            times = proxy.handshakes()[20:]
            assert max(times) - min(times) > 0.3

    asyncio.run(scenario())
