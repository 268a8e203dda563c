"""One connection on asyncio: moves the bytes of a `Protocol`, and keeps its time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable

from gateway.client.frames import CloseCode, Violation
from gateway.client.payloads import Connected, Goodbye
from gateway.client.protocol import Event, Protocol

# How long the peer's CLOSE or the end of its stream is waited for (WIRE_PROTOCOL.md section 11).
CLOSE_TIMEOUT_S = 5.0


class Wire(asyncio.Protocol):
    """A socket and its protocol. `on_event` gets every event but the last, which is `ended`.

    `on_event` may raise `Violation`: the connection ends with its code.
    """

    def __init__(
        self, protocol: Protocol, on_event: Callable[[Event], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.protocol = protocol
        self.connected: asyncio.Future[Connected] = loop.create_future()
        # Why it ended, as soon as that is known; the socket may linger a little longer.
        self.ended: asyncio.Future[Goodbye] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._on_event = on_event
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # ---- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        with contextlib.suppress(OSError):
            peer = transport.get_extra_info("socket")
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._handle(self.protocol.receive(data, self._loop.time()))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(self.protocol.lost())
        self._cancel_timer()
        if not self.gone.done():
            self.gone.set_result(None)

    # ---- called by the client

    def flush(self) -> None:
        """Write what the protocol has ready; call it after every call to the protocol."""
        if self._transport is None or self._transport.is_closing():
            return
        out = self.protocol.take(self._loop.time())
        if out:
            self._transport.write(out)
        self._schedule()

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "bye") -> None:
        """Say goodbye, if that has not been done, wait for the peer's, then drop the socket."""
        self._finish(self.protocol.close(code, reason))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.shield(self.gone)
        self.abort()
        await self.gone

    def abort(self) -> None:
        """Drop the connection without a word."""
        self._end(self.protocol.lost())
        self._cancel_timer()
        if self._transport is not None:
            self._transport.abort()
        elif not self.gone.done():
            self.gone.set_result(None)

    # ---- inside

    def _handle(self, events: list[Event]) -> None:
        goodbye: Goodbye | None = None
        for event in events:
            if isinstance(event, Goodbye):
                goodbye = event
            elif goodbye is None:
                goodbye = self._deliver(event)
        if goodbye is not None:
            self._finish(goodbye)
        else:
            self.flush()

    def _deliver(self, event: Event) -> Goodbye | None:
        if isinstance(event, Connected) and not self.connected.done():
            self.connected.set_result(event)
        try:
            self._on_event(event)
        except Violation as violation:
            return self.protocol.close(violation.code, violation.reason)
        return None

    def _finish(self, goodbye: Goodbye) -> None:
        """Our CLOSE is the last thing written; what still comes in is read and ignored, because
        closing a socket with unread input resets it, and the peer would lose our CLOSE."""
        self.flush()
        self._end(goodbye)
        if self._transport is None or self._transport.is_closing():
            self.abort()
            return
        with contextlib.suppress(OSError):
            self._transport.write_eof()
        self._cancel_timer()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self.abort)

    def _end(self, goodbye: Goodbye) -> None:
        if not self.ended.done():
            self.ended.set_result(goodbye)

    def _schedule(self) -> None:
        """One timer for both deadlines, moved only if it would be late."""
        deadline = self.protocol.deadline
        if deadline == math.inf or (self._timer is not None and self._timer_at <= deadline):
            return
        self._cancel_timer()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._tick)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        self._handle(self.protocol.tick(self._loop.time()))
        if not self.ended.done():
            self._schedule()
