"""The asyncio client: subscriptions that survive lost connections, and publishing.

async with AsyncClient("127.0.0.1:8001") as client:
    async for event in await client.subscribe("public:news"):
        match event:
            case Message(): print(event.offset, event.value)
            case Gap(): ...  # lost for good: fetch the state from where it is kept
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from gateway.client.backoff import Backoff, reconnects
from gateway.client.feed import Feed
from gateway.client.frames import CloseCode
from gateway.client.payloads import (
    Connected,
    Delivery,
    Failure,
    Goodbye,
    Position,
    Published,
    Subscribed,
    Unsubscribed,
)
from gateway.client.protocol import Event, Protocol, Settings
from gateway.client.subscription import Gap, Message
from gateway.client.wire import Wire
from gateway.errors import Disconnected, PublishError, SubscribeError, TidegateError, Unreachable

CONNECT_TIMEOUT_S = 10.0
# Unsubscribe codes from here on: subscribe again with the position (WIRE_PROTOCOL.md section 8).
_RESUBSCRIBE_FROM = 2500
_STATE_INVALIDATED = 2502


class Subscription(AsyncIterator[Message | Gap]):
    """The stream of one channel. Iterate over it; it ends with `unsubscribe` or `close`, and
    raises `SubscribeError` or `Disconnected` if the gateway ends it for good.

    The client's window is one for all its subscriptions: one that is not consumed holds up the
    others of the same client once the window is full.
    """

    def __init__(self, client: AsyncClient, feed: Feed) -> None:
        self._client = client
        self._feed = feed

    @property
    def channel(self) -> str:
        return self._feed.channel

    @property
    def position(self) -> Position:
        """Subscribe with it to go on after the last event that was taken."""
        assert self._feed.shown is not None, "known as soon as subscribe() returns"
        return self._feed.shown

    async def __anext__(self) -> Message | Gap:
        events = await self.receive_many(1)
        if not events:
            raise StopAsyncIteration
        return events[0]

    async def receive_many(self, events_max: int) -> list[Message | Gap]:
        """What is there, at most `events_max` events, at least one; none when it has ended."""
        await self._feed.wait()
        return self._feed.take(events_max)

    def take(self, events_max: int) -> list[Message | Gap]:
        """What is there, without waiting."""
        return self._feed.take(events_max)

    async def unsubscribe(self) -> None:
        """End the stream. What it still held is dropped."""
        await self._client._unsubscribe(self._feed)


@dataclass(slots=True)
class _Request:
    """A request that is out on the present connection."""

    # A `Goodbye` if the connection is lost first.
    answer: asyncio.Future[Event]
    # What a SUBSCRIBE was for.
    feed: Feed | None = None


class AsyncClient:
    """A connection to the gateway's TCP port that is made again whenever it is lost.

    `address`: "host:port". `window_bytes`: what may wait in this process for the application
    before the gateway has to hold back. `crc`: ask for a checksum on every frame.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8001",
        *,
        name: str = "",
        token: str = "",
        crc: bool = False,
        window_bytes: int = 256 * 1024,
        backoff: Backoff | None = None,
    ) -> None:
        self.address = address
        self._host, self._port = _parse_address(address)
        self._settings = Settings(name, token, crc, window_bytes)
        self._backoff = backoff or Backoff()
        self._feeds: dict[str, Feed] = {}
        self._aliases: dict[int, Feed] = {}
        self._requests: dict[int, _Request] = {}
        # Received and not consumed, over all subscriptions and connections.
        self._held_bytes = 0
        self._wire: Wire | None = None
        # The present one, and those that still say goodbye.
        self._wires: set[Wire] = set()
        self._ready = asyncio.Event()
        self._over: TidegateError | None = None
        self._keeper: asyncio.Task[None] | None = None
        # Resubscriptions under way: the loop itself keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()
        # What the gateway said of itself at the last connect.
        self.server: Connected | None = None

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # ---- what an application calls

    async def connect(self) -> None:
        """Connect for the first time. Raises `Unreachable` or `Disconnected`; later losses are
        mended in the background, as the close code's rule allows."""
        try:
            wire = await self._open()
        except TidegateError:
            await self._close_wires()
            raise
        self._keeper = asyncio.create_task(self._keep(wire))

    async def subscribe(self, channel: str, *, since: Position | None = None) -> Subscription:
        """Subscribe to a channel, from now on or recovering what came after `since`.

        Raises `SubscribeError` if the gateway refuses.
        """
        if channel in self._feeds:
            raise SubscribeError(
                f"{channel} is subscribed already", remedy="share its messages", status=105
            )
        feed = Feed(channel, since, self._consumed)
        self._feeds[channel] = feed
        try:
            await self._ask(feed)
        except BaseException:
            # Cancelled, perhaps between the answer's arrival and this task's next turn.
            alias = self._leave(feed)
            if alias is not None and self._wire is not None:
                self._wire.protocol.unsubscribe(alias)
                self._wire.flush()
            raise
        return Subscription(self, feed)

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        tags: dict[str, str] | None = None,
        idempotency_key: str = "",
    ) -> Position:
        """Publish bytes as they are, or any other value as JSON; returns its place in the channel.

        Raises `PublishError`. Without a key a publish whose answer is lost with the connection
        fails as unknown; with one it is sent again.
        """
        binary = isinstance(data, bytes)
        raw = data if binary else json.dumps(data, separators=(",", ":")).encode()
        tags_text = json.dumps(tags, separators=(",", ":")) if tags else ""
        while True:
            answer = await self._request(
                lambda protocol: protocol.publish(
                    channel, raw, binary=binary, tags=tags_text, idempotency_key=idempotency_key
                )
            )
            if isinstance(answer, Published):
                return answer.position
            if isinstance(answer, Failure):
                raise PublishError(f"{channel}: {answer.message}", status=answer.code)
            if not idempotency_key:
                raise PublishError(
                    f"{channel}: the connection was lost before the answer came",
                    remedy="it may have been published; with an idempotency key it is sent again",
                    code="publish.unknown",
                )

    async def close(self) -> None:
        """Say goodbye. Subscriptions end after what they have received."""
        self._finish(Disconnected("the client is closed", close_code=CloseCode.NORMAL), quiet=True)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._close_wires()

    # ---- keeping the connection

    async def _close_wires(self) -> None:
        await asyncio.gather(*(wire.close() for wire in self._wires))

    async def _open(self) -> Wire:
        loop = asyncio.get_running_loop()
        held_bytes = self._held_bytes
        protocol = Protocol(self._settings, loop.time(), held_bytes=held_bytes)
        wire = Wire(protocol, self._on_event, loop)
        self._wires.add(wire)
        wire.gone.add_done_callback(lambda _: self._wires.discard(wire))
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: wire, self._host, self._port)
                outcomes: list[asyncio.Future[Any]] = [wire.connected, wire.ended]
                await asyncio.wait(outcomes, return_when=asyncio.FIRST_COMPLETED)
        except OSError as error:  # TimeoutError is one
            wire.abort()
            raise Unreachable(
                f"no gateway answers at {self.address} ({str(error) or 'timed out'})",
                remedy="is it running, and is this its TCP port? `tidegate status` tells",
            ) from error
        except asyncio.CancelledError:
            wire.abort()
            raise
        if not wire.connected.done():
            raise _disconnected(wire.ended.result())
        self.server = wire.connected.result()
        self._wire = wire
        protocol.consumed(held_bytes - self._held_bytes)
        self._ready.set()
        return wire

    async def _keep(self, wire: Wire) -> None:
        """Follow one connection after the other until one ends for good."""
        try:
            while True:
                self._backoff.reset()
                self._resubscribe_all()
                goodbye = await wire.ended
                self._lose()
                if goodbye.code == CloseCode.STATE_INVALIDATED:
                    for feed in self._feeds.values():
                        feed.cursor.invalidate()
                if not reconnects(goodbye.code):
                    raise _disconnected(goodbye)
                wire = await self._reopen()
        except Disconnected as error:
            self._finish(error)

    async def _reopen(self) -> Wire:
        while True:
            await asyncio.sleep(self._backoff.next_delay_s())
            try:
                return await self._open()
            except Unreachable:
                continue
            except Disconnected as error:
                if not reconnects(error.close_code):
                    raise

    def _lose(self) -> None:
        """The connection is gone: nothing that was asked on it will be answered."""
        self._wire = None
        self._ready.clear()
        self._aliases.clear()
        lost = Goodbye(CloseCode.CONNECTION_CLOSED, "connection closed")
        requests, self._requests = self._requests, {}
        for request in requests.values():
            if not request.answer.done():
                request.answer.set_result(lost)

    def _finish(self, error: Disconnected, *, quiet: bool = False) -> None:
        if self._over is not None:
            return
        self._over = error
        self._lose()
        self._ready.set()
        for feed in self._feeds.values():
            feed.end(None if quiet else error)
        self._feeds.clear()
        for task in self._tasks:
            task.cancel()

    # ---- requests

    async def _request(self, send: Callable[[Protocol], int], feed: Feed | None = None) -> Event:
        """Send a request on the present or the next connection; its answer, or a `Goodbye` if the
        connection was lost first."""
        while self._wire is None or self._wire.ended.done():
            if self._over is not None:
                raise self._over
            if self._keeper is None:
                raise Unreachable("the client is not connected", remedy="call connect() first")
            self._ready.clear()
            await self._ready.wait()
        request = _Request(asyncio.get_running_loop().create_future(), feed)
        number = send(self._wire.protocol)
        self._requests[number] = request
        self._wire.flush()
        try:
            return await request.answer
        finally:
            if self._requests.get(number) is request:
                del self._requests[number]

    async def _ask(self, feed: Feed) -> None:
        """SUBSCRIBE until there is an answer, over as many connections as it takes."""
        cursor = feed.cursor
        while True:
            answer = await self._request(
                lambda protocol: protocol.subscribe(cursor.channel, cursor.position), feed
            )
            if isinstance(answer, Subscribed):
                return
            if isinstance(answer, Failure):
                if not answer.temporary:
                    raise SubscribeError(f"{cursor.channel}: {answer.message}", status=answer.code)
                await asyncio.sleep(self._backoff.next_delay_s())

    def _resubscribe_all(self) -> None:
        for feed in self._feeds.values():
            if feed.alias is not None:
                self._resubscribe(feed)

    def _resubscribe(self, feed: Feed) -> None:
        async def ask() -> None:
            try:
                await self._ask(feed)
            except TidegateError as error:
                self._forget(feed)
                feed.end(error)

        feed.alias = None
        task = asyncio.get_running_loop().create_task(ask())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _unsubscribe(self, feed: Feed) -> None:
        alias = self._leave(feed)
        if alias is not None:
            await self._request(lambda protocol: protocol.unsubscribe(alias))

    def _leave(self, feed: Feed) -> int | None:
        """Stop feeding; the alias that the server still has to be told of."""
        self._forget(feed)
        feed.end()
        feed.drop()
        alias = feed.alias
        if alias is None or self._aliases.get(alias) is not feed:
            return None
        del self._aliases[alias]
        return alias

    def _forget(self, feed: Feed) -> None:
        if self._feeds.get(feed.channel) is feed:
            del self._feeds[feed.channel]

    # ---- events of the present connection

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Delivery):
            self._deliver(event)
        elif isinstance(event, Unsubscribed) and event.request == 0:
            self._unsubscribed(event)
        elif isinstance(event, Subscribed | Unsubscribed | Published | Failure):
            request = self._requests.get(event.request)
            if isinstance(event, Subscribed):
                self._subscribed(event, request.feed if request else None)
            if request is not None and not request.answer.done():
                request.answer.set_result(event)

    def _subscribed(self, answer: Subscribed, feed: Feed | None) -> None:
        """Publications may follow in the same bytes, so this cannot wait for the asking task."""
        if feed is None or feed.over:
            if self._wire is not None:
                self._wire.protocol.unsubscribe(answer.alias)
            return
        feed.alias = answer.alias
        self._aliases[answer.alias] = feed
        gap = feed.cursor.subscribed(answer)
        if gap is not None:
            feed.push(gap, 0)
        if feed.shown is None:
            feed.shown = answer.top

    def _unsubscribed(self, event: Unsubscribed) -> None:
        feed = self._aliases.pop(event.alias, None)
        if feed is None:
            return
        if event.code >= _RESUBSCRIBE_FROM:
            if event.code == _STATE_INVALIDATED:
                feed.cursor.invalidate()
            self._resubscribe(feed)
            return
        self._forget(feed)
        message = f"{feed.channel}: the gateway ended the subscription: {event.reason}"
        feed.end(SubscribeError(message, status=event.code))

    def _deliver(self, delivery: Delivery) -> None:
        feed = self._aliases.get(delivery.alias)
        message = feed.cursor.advance(delivery) if feed is not None else None
        self._held_bytes += delivery.wire_bytes
        if feed is None or message is None:
            self._consumed(delivery.wire_bytes)
        else:
            feed.push(message, delivery.wire_bytes)

    def _consumed(self, wire_bytes: int) -> None:
        self._held_bytes -= wire_bytes
        if self._wire is not None and wire_bytes:
            self._wire.protocol.consumed(wire_bytes)
            self._wire.flush()


def _parse_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or int(port) > 65_535:
        raise Unreachable(f'"{address}" is no address', remedy='give "host:port"')
    return host.removeprefix("[").removesuffix("]"), int(port)


def _disconnected(goodbye: Goodbye) -> Disconnected:
    remedy = "" if reconnects(goodbye.code) else "correct the cause before connecting again"
    return Disconnected(
        f"the gateway closed the connection: {goodbye.code} {goodbye.reason}",
        remedy=remedy,
        close_code=goodbye.code,
    )
