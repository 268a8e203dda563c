"""The client for programs without asyncio.

    with Client("127.0.0.1:8001") as client:
        for event in client.subscribe("public:news"):
            ...

It runs an `AsyncClient` in a thread of its own: heartbeats and reconnects go on while the
application computes, and there is one implementation of everything that is hard.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from gateway.client import aio
from gateway.client.backoff import Backoff
from gateway.client.payloads import Connected, Position
from gateway.client.subscription import Gap, Message
from gateway.errors import Unreachable

T = TypeVar("T")

# Events fetched from the other thread at a time: what may be held beyond the window.
_BATCH_EVENTS = 64
# Calls of other threads when the client is closed: a turn of the loop each.
_LAST_TASKS_TIMEOUT_S = 1.0


class Subscription(Iterator[Message | Gap]):
    """The stream of one channel: iterate over it, or `receive` one event at a time."""

    def __init__(self, client: Client, stream: aio.Subscription) -> None:
        self.channel = stream.channel
        self._client = client
        self._stream = stream
        self._events: deque[Message | Gap] = deque()
        self._shown = stream.position

    def __next__(self) -> Message | Gap:
        event = self.receive()
        if event is None:
            raise StopIteration
        return event

    def receive(self, timeout_s: float | None = None) -> Message | Gap | None:
        """The next event; None when the stream has ended. Raises `TimeoutError`."""
        if not self._events:
            self._events.extend(self._fetch(timeout_s))
        if not self._events:
            return None
        event = self._events.popleft()
        self._shown = event.position
        return event

    @property
    def position(self) -> Position:
        """Subscribe with it to go on after the last event that was shown."""
        return self._shown

    def unsubscribe(self) -> None:
        """End the stream. What it still held is dropped."""
        self._events.clear()
        self._client._run(self._stream.unsubscribe())

    def _fetch(self, timeout_s: float | None) -> list[Message | Gap]:
        if self._client._loop is None:
            return self._stream.take(_BATCH_EVENTS)

        async def fetch() -> list[Message | Gap]:
            async with asyncio.timeout(timeout_s):
                return await self._stream.receive_many(_BATCH_EVENTS)

        return self._client._run(fetch())


class Client:
    """A connection to the gateway's TCP port. Arguments and errors are `AsyncClient`'s.

    May be used by several threads, each subscription by one at a time.
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
        self._client = aio.AsyncClient(
            address, name=name, token=token, crc=crc, window_bytes=window_bytes, backoff=backoff
        )
        # Both from connect() to close().
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def server(self) -> Connected | None:
        """What the gateway said of itself at the last connect."""
        return self._client.server

    def connect(self) -> None:
        """Connect for the first time; later losses are mended in the background."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="tidegate-client", daemon=True
        )
        self._thread.start()
        try:
            self._run(self._client.connect())
        except BaseException:
            self._stop()
            raise

    def subscribe(self, channel: str, *, since: Position | None = None) -> Subscription:
        """Subscribe to a channel, from now on or recovering what came after `since`."""
        return Subscription(self, self._run(self._client.subscribe(channel, since=since)))

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        tags: dict[str, str] | None = None,
        idempotency_key: str = "",
    ) -> Position:
        """Publish bytes as they are, or any other value as JSON; returns its place."""
        return self._run(
            self._client.publish(channel, data, tags=tags, idempotency_key=idempotency_key)
        )

    def close(self) -> None:
        """Say goodbye. Subscriptions end after what they have received."""
        if self._loop is not None:
            self._run(self._close())
            self._stop()

    async def _close(self) -> None:
        await self._client.close()
        # What other threads wait for ends by itself now; the loop may stop only after that.
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        if waiting:
            await asyncio.wait(waiting, timeout=_LAST_TASKS_TIMEOUT_S)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise Unreachable("the client is not connected", remedy="call connect() first")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop(self) -> None:
        assert self._loop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None
