"""What the servers in Python share: where to listen, what to write down, and what /feed sends."""

import json
import os

PORT = int(os.environ["PORT"])
GENERATION = os.environ["GENERATION"]
WORDS = "in a word: ä"
SECRET = b'{"error":"token expired"}'
PAGE = "words " * 1000
COOKIES = [("Set-Cookie", "sid=new; HttpOnly"), ("Set-Cookie", "lb=7"), ("X-Request-Id", "42")]


def record(line):
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps(line) + "\n")


def tick(number):
    return json.dumps({"tick": number, "generation": GENERATION})


def take_order(text):
    """Writes an order down; returns its receipt."""
    order = json.loads(text)["order"]
    record({"order": order, "generation": GENERATION})
    return json.dumps({"receipt": order})
