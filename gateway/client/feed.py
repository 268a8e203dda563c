"""One channel's events between the client, which fills them in, and the application."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.client.payloads import Position
from gateway.client.subscription import Cursor, Gap, Message
from gateway.errors import TidegateError


class Feed:
    """Events of one channel that wait for the application, over any number of connections.

    `consumed` is told the bytes of the window that are free again. The window bounds what waits.
    """

    def __init__(
        self, channel: str, since: Position | None, consumed: Callable[[int], None]
    ) -> None:
        self.cursor = Cursor(channel, since)
        # Where the application is; None before the first answer.
        self.shown = since
        # On the present connection; None while the answer is out.
        self.alias: int | None = None
        self.over = False
        self._error: TidegateError | None = None
        self._consumed = consumed
        self._events: deque[tuple[Message | Gap, int]] = deque()
        self._news = asyncio.Event()

    @property
    def channel(self) -> str:
        return self.cursor.channel

    # ---- the client's side

    def push(self, event: Message | Gap, wire_bytes: int) -> None:
        self._events.append((event, wire_bytes))
        self._news.set()

    def end(self, error: TidegateError | None = None) -> None:
        """Nothing comes any more; `error` is raised after the last event."""
        if not self.over:
            self.over = True
            self._error = error
            self._news.set()

    # ---- the application's side

    async def wait(self) -> None:
        """Return when there is something to take, or never will be."""
        while not self._events and not self.over:
            self._news.clear()
            await self._news.wait()

    def take(self, events_max: int) -> list[Message | Gap]:
        """What is there, at most `events_max` events; nothing at the end."""
        if not self._events and self._error is not None:
            raise self._error
        taken = [self._events.popleft() for _ in range(min(events_max, len(self._events)))]
        if not taken:
            return []
        self._consumed(sum(wire_bytes for _, wire_bytes in taken))
        events = [event for event, _ in taken]
        self.shown = events[-1].position
        return events

    def drop(self) -> None:
        """Forget what waits."""
        self._consumed(sum(wire_bytes for _, wire_bytes in self._events))
        self._events.clear()
