"""Subscribers with clients of four makers, in one thread: none may notice what happens to workers.

Each keeps the offsets that it was sent, and never comes back by itself: an end of its connection
is noted, whoever caused it.
"""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.parse
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import websockets

from gateway.client import Message
from gateway.client.aio import AsyncClient
from tests.support import raw_websocket
from tests.support.gateway import Gateway
from tests.support.waiting import wait_for

CONNECTS_AT_ONCE = 100


@dataclass
class Member:
    """One subscriber: who made its client, what it was sent, and how its connection ended."""

    maker: str
    channel: str
    start: int | None = None
    """The channel's offset when it subscribed; None until then."""
    offsets: list[int] = field(default_factory=list)
    end: str = ""

    @property
    def position(self) -> int:
        return self.offsets[-1] if self.offsets else self.start or 0

    def take(self, push: dict[str, Any]) -> None:
        """One message of the JSON dialect."""
        if "connect" in push:
            self.start = push["connect"]["subs"][self.channel].get("offset", 0)
        elif "pub" in push:
            self.offsets.append(push["pub"]["offset"])
        elif "disconnect" in push:
            self.end = f"told {push['disconnect']}"

    def fault(self) -> str:
        """What was lost, repeated or reordered, or how the connection ended; empty: nothing."""
        first = (self.start or 0) + 1
        # As they are at one moment: the crowd's thread appends to them meanwhile.
        offsets = self.offsets.copy()
        if self.end:
            return f"{self.maker}: {self.end}"
        if offsets != list(range(first, first + len(offsets))):
            return f"{self.maker}: got {offsets} after {self.start}"
        return ""


class Crowd:
    """`each` subscribers of every maker (or of those named), connected while the block lasts."""

    def __init__(
        self,
        gateway: Gateway,
        channel: str,
        each: int = 5,
        makers: tuple[str, ...] = ("websockets", "aiohttp", "raw", "tidegate"),
    ) -> None:
        self._url = gateway.websocket_url
        self._http_port, self._tcp_port = gateway.http_port, gateway.tcp_port
        self._channel = channel
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crowd")
        self._tasks: list[asyncio.Task[None]] = []
        self._door = asyncio.Semaphore(CONNECTS_AT_ONCE)
        self._ways: dict[str, Callable[[Member], Coroutine[Any, Any, None]]] = {
            "websockets": self._websockets,
            "aiohttp": self._aiohttp,
            "raw": self._raw,
            "tidegate": self._tidegate,
        }
        self.members = [Member(maker, channel) for maker in makers for _ in range(each)]

    def __enter__(self) -> Crowd:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        wait_for(
            lambda: all(each.start is not None or each.end for each in self.members),
            "everybody's subscription",
            60,
        )
        assert not self.faults()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def faults(self) -> list[str]:
        return [fault for each in self.members if (fault := each.fault())]

    def ended(self) -> int:
        return sum(bool(each.end) for each in self.members)

    def position(self) -> int:
        """The last offset that everybody has whose connection has not ended."""
        return min((each.position for each in self.members if not each.end), default=0)

    def wait_for_offset(self, offset: int, timeout_s: float = 60) -> None:
        """Wait until everybody whose connection has not ended was sent `offset`."""
        wait_for(
            lambda: all(each.end or each.position >= offset for each in self.members),
            f"offset {offset} at everybody",
            timeout_s,
        )

    def assert_undisturbed(self, offset: int) -> None:
        """Everybody was sent all up to `offset`, once, in order, over one connection."""
        self.wait_for_offset(offset)
        assert self.faults() == [], self.faults()[:3]

    # ---- in the loop

    async def _start(self) -> None:
        self._tasks = [asyncio.create_task(self._follow(each)) for each in self.members]

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, member: Member) -> None:
        try:
            await self._ways[member.maker](member)
            member.end = member.end or "ended"
        except (OSError, websockets.WebSocketException, aiohttp.ClientError, EOFError) as error:
            member.end = f"{type(error).__name__}: {error}"

    def _connect_url(self) -> str:
        connect = json.dumps({"subs": {self._channel: {}}})
        return f"{self._url}?{urllib.parse.urlencode({'cf_connect': connect})}"

    async def _websockets(self, member: Member) -> None:
        async with self._door:
            socket = await websockets.connect(self._connect_url(), compression=None, proxy=None)
        async with socket:
            async for message in socket:
                member.take(json.loads(message))

    async def _aiohttp(self, member: Member) -> None:
        async with aiohttp.ClientSession() as session:
            async with self._door:
                socket = await session.ws_connect(self._connect_url())
            async with socket:
                async for message in socket:
                    member.take(message.json())
                member.end = f"closed with {socket.close_code}"

    async def _raw(self, member: Member) -> None:
        async with self._door:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._http_port)
            query = self._connect_url().partition("?")[2]
            path = f"GET {raw_websocket.PATH}?{query} HTTP/1.1"
            writer.write(raw_websocket.head(path, raw_websocket.HANDSHAKE))
            await reader.readuntil(b"\r\n\r\n")
        try:
            async for payload in _texts(reader, writer):
                member.take(json.loads(payload))
        finally:
            writer.close()

    async def _tidegate(self, member: Member) -> None:
        async with AsyncClient(f"127.0.0.1:{self._tcp_port}") as client:
            stream = await client.subscribe(self._channel)
            first = client.server
            member.start = stream.position.offset
            async for event in stream:
                if client.server is not first:
                    member.end = "had to connect again"
                if not isinstance(event, Message):
                    member.end = f"got {event}"
                    return
                member.offsets.append(event.offset)


async def _texts(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncIterator[bytes]:
    """The text frames of a server (RFC 6455 section 5.2); pings are answered."""
    while True:
        first, second = await reader.readexactly(2)
        assert first & 0x70 == 0 and second & 0x80 == 0, "half a frame was left out"
        length = second
        if second >= 126:
            length = int.from_bytes(await reader.readexactly(2 if second == 126 else 8), "big")
        payload = await reader.readexactly(length)
        match first & 0x0F:
            case raw_websocket.TEXT:
                yield payload
            case raw_websocket.PING:
                writer.write(raw_websocket.frame(raw_websocket.FIN | raw_websocket.PONG, payload))
            case raw_websocket.CLOSE:
                raise EOFError(f"closed with {int.from_bytes(payload[:2], 'big')}")
