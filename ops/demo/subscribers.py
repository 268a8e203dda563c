"""A process of many subscribers: `python -m ops.demo.subscribers`, started by the demonstration.

Its plan comes as one JSON line on stdin, its progress goes as JSON lines to stdout. A second line,
the newest offset of each channel, asks it to wait until everything has come, then to report.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from gateway.client import AsyncClient, Gap, Position
from gateway.client import Subscription as Stream
from gateway.errors import TidegateError
from ops.demo.tally import Subscription, Tally
from workers import child

PROGRESS_INTERVAL_S = 0.25
HANDSHAKES_MAX = 50
"""Connections being opened at a time: two cores serve gateway, subscribers and replay here."""
OPEN_TIMEOUT_S = 30.0
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
SETTLE_TIMEOUT_S = 20.0
"""For what was published and has not come yet, at the end."""

Session = Callable[[dict[str, Subscription]], Awaitable[None]]


class Data(msgspec.Struct):
    sent_ns: int


class Publication(msgspec.Struct):
    data: Data
    offset: int


class Subscribed(msgspec.Struct):
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[Publication] = []


class Connected(msgspec.Struct):
    subs: dict[str, Subscribed] = {}


class Push(msgspec.Struct):
    """What a unidirectional WebSocket brings; an empty one is a ping."""

    channel: str = ""
    pub: Publication | None = None
    connect: Connected | None = None


class Plan(msgspec.Struct):
    websocket_url: str
    tcp_host: str
    tcp_port: int
    websocket: list[list[str]]
    """Channels of each WebSocket subscriber."""
    tcp: list[list[str]]


class Subscribers:
    """The subscribers, each with a connection that is opened again whenever it ends."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._handshakes = asyncio.Semaphore(HANDSHAKES_MAX)
        self._decode = msgspec.json.Decoder(Push).decode
        self._decode_data = msgspec.json.Decoder(Data).decode
        self.tally = Tally()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for session, many in (
                (self._websocket, self._plan.websocket),
                (self._tcp, self._plan.tcp),
            ):
                for channels in many:
                    group.create_task(self._subscriber(session, self.tally.subscribe(channels)))

    async def _subscriber(self, session: Session, places: dict[str, Subscription]) -> None:
        attempt = 0
        while True:
            before = self.tally.counts.delivered
            await session(places)
            self.tally.counts.reconnects += 1
            attempt = 0 if self.tally.counts.delivered > before else attempt + 1
            # Full jitter: those whose connections ended together do not come back together.
            ceiling = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**attempt)
            await asyncio.sleep(random.uniform(0, ceiling))

    async def _websocket(self, places: dict[str, Subscription]) -> None:
        """One connection's life; returns when it is over or could not be opened."""
        opened = False
        try:
            async with self._handshakes:
                socket = await connect(
                    self._plan.websocket_url,
                    compression=None,
                    ping_interval=None,
                    proxy=None,
                    open_timeout=OPEN_TIMEOUT_S,
                )
                await socket.send(json.dumps({"name": "demo", "subs": _since(places)}))
                self._websocket_push(places, await socket.recv())
            opened = True
            self.tally.counts.connected += 1
            async for text in socket:
                self._websocket_push(places, text)
        except (OSError, TimeoutError, InvalidHandshake, WebSocketException):
            pass
        finally:
            self.tally.counts.connected -= opened

    def _websocket_push(self, places: dict[str, Subscription], text: str | bytes) -> None:
        push = self._decode(text)
        if push.pub is not None:
            self.tally.received(places[push.channel], push.pub.offset, push.pub.data.sent_ns)
        elif push.connect is not None:
            for channel, answer in push.connect.subs.items():
                self._subscribed(places[channel], answer)

    async def _tcp(self, places: dict[str, Subscription]) -> None:
        """One client's life: it connects again and recovers by itself, unless told to stay away."""
        client = AsyncClient(f"{self._plan.tcp_host}:{self._plan.tcp_port}", name="demo")
        opened = False
        try:
            async with self._handshakes:
                await client.connect()
                streams = [
                    await client.subscribe(channel, since=_position(place))
                    for channel, place in places.items()
                ]
            opened = True
            self.tally.counts.connected += 1
            await asyncio.gather(*(self._stream(places[one.channel], one) for one in streams))
        except TidegateError:
            pass
        finally:
            self.tally.counts.connected -= opened
            await client.close()

    async def _stream(self, place: Subscription, stream: Stream) -> None:
        if not place.joined:
            self._missed(place, stream.position.epoch, stream.position.offset)
        async for event in stream:
            if isinstance(event, Gap):
                self._missed(place, event.top.epoch, event.top.offset)
            else:
                sent_ns = self._decode_data(event.data).sent_ns
                self.tally.received(place, event.offset, sent_ns)

    def _missed(self, place: Subscription, epoch: str, top: int) -> None:
        self.tally.counts.unrecovered += place.subscribed(epoch, top, recovered=False)

    def _subscribed(self, place: Subscription, answer: Subscribed) -> None:
        counts = self.tally.counts
        counts.unrecovered += place.subscribed(
            answer.epoch, answer.offset, recovered=answer.recovered
        )
        counts.recovered += len(answer.publications)
        for publication in answer.publications:
            self.tally.received(place, publication.offset, publication.data.sent_ns)


def _position(place: Subscription) -> Position | None:
    return Position(place.epoch, place.offset) if place.joined else None


def _since(places: Mapping[str, Subscription]) -> dict[str, Any]:
    """The subscriptions of a connect request: from where each one left off."""
    return {
        channel: {"recover": True, "offset": place.offset, "epoch": place.epoch}
        if place.joined
        else {}
        for channel, place in places.items()
    }


async def _progress(tally: Tally) -> None:
    while True:
        _tell({"counts": tally.counts.as_map()})
        await asyncio.sleep(PROGRESS_INTERVAL_S)


async def _settled(tally: Tally, tops: Mapping[str, int]) -> None:
    """Returns when nothing is missing any more, or after SETTLE_TIMEOUT_S."""
    try:
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            while tally.missing(tops):
                await asyncio.sleep(PROGRESS_INTERVAL_S)
    except TimeoutError:
        pass


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


async def _read_line() -> bytes:
    return await asyncio.to_thread(sys.stdin.buffer.readline)


async def main() -> None:
    subscribers = Subscribers(msgspec.json.decode(await _read_line(), type=Plan))
    tasks = [
        asyncio.create_task(subscribers.run()),
        asyncio.create_task(_progress(subscribers.tally)),
    ]
    line = await _read_line()
    if line:
        tops = json.loads(line)
        await _settled(subscribers.tally, tops)
        _tell({"report": subscribers.tally.report(tops)})
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    child.leave_signals_to_the_supervisor()
    child.die_with_the_parent(os.getppid())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main())
