"""Thousands of clients of the bidirectional dialect that drop and return at random, in one process.

    python -m tests.support.fire '{"port": 8000, "clients": 1000, "channels": [...], ...}'

A client may be told that it missed something for ever only if it missed more than `missed_max`.

It writes `{"ready": true}` once everybody is subscribed. When it reads a line, the newest offset of
each channel, nobody drops any more, everybody catches up, and it writes what it has seen.

The handshake and what is sent are the `websockets` library's. What is received takes a short cut,
for there are tens of thousands of frames a second: a server's are not masked, and our gateway
fragments none.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import dataclass, field
from typing import Any

from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from tests.support.tokens import connection_token

RETURN_S_MAX = 1.0
CATCH_UP_S = 90.0
CONNECTS_PER_S = 500
FAULTS_MAX = 20


@dataclass
class Tally:
    """What all clients of this process have seen."""

    received: int = 0
    drops: int = 0
    recovered: int = 0
    gaps: int = 0
    """Told by `recovered: false`, and explained by how much was missed."""
    ends: dict[str, int] = field(default_factory=dict)
    """Close codes, and resets (0)."""
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)


class Client:
    """One subscriber: where it stands in its channel, over however many connections."""

    def __init__(self, number: int, fire: Fire) -> None:
        self.fire = fire
        self.channel = fire.channels[number % len(fire.channels)]
        self.name = f"client {number}"
        self.token = connection_token(f"{fire.name}-{number}")
        self.epoch: str | None = None
        self.offset = 0
        self.link: Link | None = None

    def begin(self) -> None:
        loop = asyncio.get_running_loop()
        self.fire.spawn(loop.create_connection(lambda: Link(self), "127.0.0.1", self.fire.port))

    def drop(self) -> None:
        """Cut the connection without a word."""
        if self.link is not None and self.epoch is not None:
            self.fire.tally.drops += 1
            self.link.transport.abort()

    def lost(self, code: int) -> None:
        """The connection has ended; come back, but for an end that forbids it."""
        self.link = None
        ends = self.fire.tally.ends
        ends[str(code)] = ends.get(str(code), 0) + 1
        if 3500 <= code < 4000 or code in (1002, 1007, 1009):
            self.fire.tally.fault(f"{self.name} was closed for good with {code}")
            return
        self.fire.later(random.uniform(0, RETURN_S_MAX), self.begin)

    def subscribe_command(self) -> dict[str, Any]:
        command: dict[str, Any] = {"channel": self.channel, "recoverable": True}
        if self.epoch is not None:
            command |= {"recover": True, "offset": self.offset, "epoch": self.epoch}
        return {"id": 2, "subscribe": command}

    def take(self, message: dict[str, Any]) -> None:
        if (push := message.get("push")) is not None:
            if "pub" in push:
                self.take_publication(push["pub"])
            elif "unsubscribe" in push:
                if push["unsubscribe"]["code"] < 2500:
                    self.fire.tally.fault(f"{self.name} was unsubscribed: {push['unsubscribe']}")
                elif self.link is not None:
                    self.link.send(self.subscribe_command())
        elif (result := message.get("subscribe")) is not None:
            self.take_subscribed(result)
        elif "error" in message:
            # Temporary ones (100) are those of a publisher or worker that is being replaced.
            if message["error"]["code"] != 100:
                self.fire.tally.fault(f"{self.name} was refused: {message}")
            assert self.link is not None
            self.link.transport.abort()

    def take_subscribed(self, result: dict[str, Any]) -> None:
        epoch, offset = result.get("epoch", ""), result.get("offset", 0)
        if self.epoch is None:
            self.epoch, self.offset = epoch, offset
            self.fire.arrived += 1
        elif result.get("recovered"):
            self.fire.tally.recovered += 1
            if epoch != self.epoch:
                self.fire.tally.fault(f"{self.name} recovered into another epoch")
        else:
            self.fire.tally.gaps += 1
            if epoch != self.epoch or offset - self.offset <= self.fire.missed_max:
                self.fire.tally.fault(
                    f"{self.name} could not recover from {self.epoch}:{self.offset}"
                    f" to {epoch}:{offset}, which no bound explains"
                )
            self.epoch, self.offset = epoch, offset
        for publication in result.get("publications", ()):
            self.take_publication(publication)

    def take_publication(self, publication: dict[str, Any]) -> None:
        self.fire.tally.received += 1
        offset = publication["offset"]
        if offset != self.offset + 1:
            self.fire.tally.fault(f"{self.name} got {offset} of {self.channel} after {self.offset}")
        self.offset = offset


class Link(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.code = 0
        self.is_open = False
        self.buffer = b""
        self.websocket = ClientProtocol(
            parse_uri(f"ws://127.0.0.1:{client.fire.port}/connection/websocket"), max_size=None
        )

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        self.client.link = self
        self.websocket.send_request(self.websocket.connect())
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self.is_open:
            self.read(self.buffer + data if self.buffer else data)
            return
        self.websocket.receive_data(data)
        if not any(isinstance(event, Response) for event in self.websocket.events_received()):
            return
        self.is_open = self.websocket.state is State.OPEN
        if self.is_open:
            connect = {"id": 1, "connect": {"token": self.client.token}}
            self.send(connect, self.client.subscribe_command())
        else:
            self.transport.abort()  # refused, or given up for being slow

    def read(self, data: bytes) -> None:
        """Takes the whole frames (RFC 6455 §5.2) of `data`; keeps the rest."""
        at, end = 0, len(data)
        while end - at >= 2:
            opcode, length, begin = data[at] & 15, data[at + 1], at + 2
            if length == 126:
                length, begin = int.from_bytes(data[at + 2 : at + 4]), at + 4
            elif length == 127:
                length, begin = int.from_bytes(data[at + 2 : at + 10]), at + 10
            if begin + length > end:
                break
            at = begin + length
            self.take(opcode, data[begin:at])
        self.buffer = data[at:]

    def take(self, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.TEXT:
            for line in payload.split(b"\n"):
                if line == b"{}":
                    self.send({})
                elif line:
                    self.client.take(json.loads(line))
        elif opcode == Opcode.CLOSE:
            self.code = int.from_bytes(payload[:2])
            self.transport.close()
        else:
            self.client.fire.tally.fault(f"{self.client.name} got a frame of opcode {opcode}")

    def connection_lost(self, exception: Exception | None) -> None:
        self.client.lost(self.code)

    def send(self, *commands: dict[str, Any]) -> None:
        if not self.transport.is_closing():
            self.websocket.send_text(b"\n".join(json.dumps(each).encode() for each in commands))
            self.flush()

    def flush(self) -> None:
        for data in self.websocket.data_to_send():
            if data:
                self.transport.write(data)


class Fire:
    """All clients of this process."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.name: str = config["name"]
        self.port: int = config["port"]
        self.channels: list[str] = config["channels"]
        self.missed_max: int = config["missed_max"]
        self.tally = Tally()
        self.arrived = 0
        self._drops_per_s: float = config["drops_per_s"]
        self._running: set[asyncio.Task[Any]] = set()
        self._clients = [Client(number, self) for number in range(config["clients"])]

    def spawn(self, coroutine: Any) -> None:
        """Run in the background; a connection that cannot be made is made later."""
        task = asyncio.ensure_future(coroutine)
        self._running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.tally.fault(f"a connection could not be made: {error!r}")

    def later(self, delay_s: float, call: Any) -> None:
        asyncio.get_running_loop().call_later(delay_s, call)

    async def run(self) -> None:
        for client in self._clients:
            client.begin()
            await asyncio.sleep(1 / CONNECTS_PER_S)
        while self.arrived < len(self._clients):
            await asyncio.sleep(0.05)
        print(json.dumps({"ready": True}), flush=True)
        dropping = asyncio.ensure_future(self._drop_at_random())
        tops = json.loads(await asyncio.to_thread(sys.stdin.readline))
        dropping.cancel()
        await self._catch_up(tops)
        print(json.dumps(vars(self.tally)), flush=True)

    async def _drop_at_random(self) -> None:
        while True:
            await asyncio.sleep(random.expovariate(self._drops_per_s))
            random.choice(self._clients).drop()

    async def _catch_up(self, tops: dict[str, int]) -> None:
        deadline = asyncio.get_running_loop().time() + CATCH_UP_S
        behind = self._clients
        while behind and asyncio.get_running_loop().time() < deadline:
            behind = [client for client in behind if client.offset < tops[client.channel]]
            await asyncio.sleep(0.1)
        for client in behind:
            self.tally.fault(f"{client.name} ended at {client.offset} of {tops[client.channel]}")


if __name__ == "__main__":
    asyncio.run(Fire(json.loads(sys.argv[1])).run())
