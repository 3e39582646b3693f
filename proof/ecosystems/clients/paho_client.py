"""paho over WebSocket: `paho_client.py PORT`. Commands are lines of its standard input, answers lines of JSON.

`round SIZE QOS` sends to itself; `order ID` publishes; every tick it receives is a line of its own.
"""

import json
import sys

import paho.mqtt.client as mqtt


def say(**line):
    print(json.dumps(line), flush=True)


def on_connect(client, _, flags, reason, properties):
    client.subscribe([("ticks", 0), ("round", 2)])
    say(connected=str(reason))


def on_message(client, _, message):
    if message.topic == "ticks":
        say(tick=message.payload.decode())
    else:
        say(round=len(message.payload))


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="paho", transport="websockets")
client.on_connect, client.on_message = on_connect, on_message
client.reconnect_delay_set(1, 1)  # steady, as lib/leg.mjs explains
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_start()
for command in sys.stdin:
    word, *arguments = command.split()
    if word == "round":
        client.publish("round", b"x" * int(arguments[0]), qos=int(arguments[1]))
    else:
        client.publish("orders", arguments[0])
client.disconnect()
