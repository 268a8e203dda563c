"""One connection of a client without any I/O: bytes in, events out; calls in, bytes out.

Both clients drive this, and so can anything else that moves bytes: feed what was read to
`receive`, write what `take` gives, call `tick` no later than `deadline`. Times are seconds of any
monotonic clock. Nothing here raises for what the server does: a violation ends the connection with
a `Goodbye` that tells the code, as every other end does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gateway.client import frames, payloads
from gateway.client.flow import Flow
from gateway.client.frames import CloseCode, Frame, Kind, Violation
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
from gateway.errors import PublishError

# What the application may have waiting for the server's window before it is told to slow down.
PUBLISH_BACKLOG_BYTES_MAX = 8 << 20

Event = Connected | Subscribed | Unsubscribed | Published | Failure | Delivery | Goodbye

_ANSWERS: dict[Kind | None, Callable[[bytes], Event]] = {
    Kind.SUBSCRIBED: Subscribed.parse,
    Kind.UNSUBSCRIBED: Unsubscribed.parse,
    Kind.PUBLISHED: Published.parse,
    Kind.ERROR: Failure.parse,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client says of itself in CONNECT."""

    name: str = ""
    token: str = ""
    # Ask for a checksum on every frame.
    crc: bool = False
    # What may wait for the application in this process before the server has to hold back.
    window_bytes: int = 256 * 1024


class Protocol:
    """State of one connection. `held_bytes` as `Flow` has it."""

    def __init__(self, settings: Settings, now: float, *, held_bytes: int = 0) -> None:
        self._flow = Flow(settings.window_bytes, held_bytes=held_bytes)
        self._received = bytearray()
        self._out = bytearray()
        self._message = payloads.Reassembly()
        # Encoded messages that wait for the server's window, and how much of the first has gone.
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._cut = 0
        self._request = 0
        self._last_sent = self._last_received = now
        self.server: Connected | None = None
        self.goodbye: Goodbye | None = None
        connect = payloads.Connect(settings.crc, self._flow.scale, settings.name, settings.token)
        self._send(Kind.CONNECT, connect.encode())
        self._flow.crc_out = settings.crc

    # ---- bytes

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the server. After a `Goodbye` nothing more is looked at."""
        events: list[Event] = []
        if self.goodbye is not None:
            return events
        self._received += data
        try:
            for frame in self._frames():
                self._last_received = now
                self._flow.receive(frame)
                event = self._frame(frame)
                if event is not None:
                    events.append(event)
                if self.goodbye is not None:
                    return events
                if self._flow.ack_due:
                    self._send(Kind.ACK)
            self._pump()
        except Violation as violation:
            events.append(self.close(violation.code, violation.reason))
        return events

    def _frames(self) -> Iterator[Frame]:
        start = 0
        try:
            while frame := frames.decode(self._received, start, crc=self._flow.crc_in):
                start += frame.wire_bytes
                yield frame
        finally:
            del self._received[:start]

    def take(self, now: float) -> bytes:
        """The bytes to write now, in order; call it after every other call."""
        if not self._out:
            return b""
        out = bytes(self._out)
        self._out.clear()
        self._last_sent = now
        return out

    def lost(self) -> Goodbye:
        """The stream has ended. Returns the reason that is in force."""
        if self.goodbye is None:
            self.goodbye = Goodbye(CloseCode.CONNECTION_CLOSED, "connection closed")
        return self.goodbye

    # ---- time

    @property
    def deadline(self) -> float:
        """When `tick` has something to do."""
        if self.server is None or self.goodbye is not None:
            return math.inf
        beat = self._last_sent + self.server.heartbeat_interval_ms / 1000
        return min(beat, self._last_received + self.server.heartbeat_timeout_ms / 1000)

    def tick(self, now: float) -> list[Event]:
        """Send the heartbeat that is due, or give up a server that is silent."""
        if self.server is None or self.goodbye is not None or now < self.deadline:
            return []
        if now >= self._last_received + self.server.heartbeat_timeout_ms / 1000:
            return [self.close(CloseCode.NO_PONG, "no heartbeat")]
        self._send(Kind.HEARTBEAT)
        return []

    # ---- requests

    def subscribe(self, channel: str, since: Position | None = None) -> int:
        """Ask for a channel; returns the request's number, which the answer carries."""
        request = self._next_request()
        self._send(Kind.SUBSCRIBE, payloads.Subscribe(request, channel, since).encode())
        return request

    def unsubscribe(self, alias: int) -> int:
        request = self._next_request()
        self._send(Kind.UNSUBSCRIBE, payloads.Unsubscribe(request, alias).encode())
        return request

    def publish(
        self,
        channel: str,
        data: bytes,
        *,
        binary: bool = False,
        tags: str = "",
        idempotency_key: str = "",
    ) -> int:
        """Send a message as soon as the server's window allows; returns the request's number.

        Raises `PublishError` for data over the server's limit, or if too much waits already.
        """
        if self.server is not None and len(data) > self.server.message_bytes_max:
            raise PublishError(
                f"data of {len(data)} bytes",
                remedy=f"the gateway takes at most {self.server.message_bytes_max}",
                status=106,
            )
        if self._backlog_bytes > PUBLISH_BACKLOG_BYTES_MAX:
            raise PublishError(
                f"{self._backlog_bytes} bytes wait for the gateway already",
                remedy="await the answers of earlier publishes first",
                status=111,
            )
        request = self._next_request()
        message = payloads.Publish(request, channel, data, binary, tags, idempotency_key).encode()
        self._backlog.append(message)
        self._backlog_bytes += len(message)
        self._pump()
        return request

    def consumed(self, wire_bytes: int) -> None:
        """The application has taken a delivery: its room is free again."""
        self._flow.release(wire_bytes)
        if self.server is not None and self.goodbye is None and self._flow.update_due:
            self._send(Kind.WINDOW_UPDATE)

    def close(self, code: int = CloseCode.NORMAL, reason: str = "bye") -> Goodbye:
        """End the connection: after what `take` gives then, nothing more is sent."""
        if self.goodbye is None:
            self._send(Kind.CLOSE, Goodbye(code, reason).encode())
            self.goodbye = Goodbye(code, reason)
        return self.goodbye

    # ---- inside

    def _next_request(self) -> int:
        self._request = self._request % payloads.U32_MAX + 1
        return self._request

    def _send(self, kind: Kind, payload: bytes = b"") -> None:
        if self.goodbye is None:
            self._out += self._flow.frame(kind, payload)

    def _frame(self, frame: Frame) -> Event | None:
        """Look inside a frame whose numbers are right."""
        kind, payload = frame.kind, frame.payload
        if kind is Kind.CLOSE:
            goodbye = Goodbye.parse(payload)
            return self.close(goodbye.code, goodbye.reason)
        if self.server is None:
            if kind is not Kind.CONNECTED:
                raise Violation(CloseCode.UNEXPECTED_FRAME, "frame not expected now")
            return self._connected(Connected.parse(payload))
        if kind is Kind.DATA:
            bytes_max = self.server.message_bytes_max + payloads.FIELDS_BYTES_MAX
            whole = self._message.push(payload, frame.wire_bytes, bytes_max)
            if whole is None:
                return None
            self._flow.hold(whole[1])
            return Delivery.parse(*whole)
        if kind in _ANSWERS:
            return _ANSWERS[kind](payload)
        if kind in (None, Kind.HEARTBEAT, Kind.ACK, Kind.WINDOW_UPDATE):
            return None
        raise Violation(CloseCode.UNEXPECTED_FRAME, "frame not expected now")

    def _connected(self, server: Connected) -> Connected:
        self.server = server
        self._flow.peer_scale = server.window_scale
        self._flow.crc_in = self._flow.crc_out and server.crc
        return server

    def _pump(self) -> None:
        """Write what the server's window allows of the messages that wait."""
        while self._backlog and self.goodbye is None:
            message = self._backlog[0]
            left = len(message) - self._cut
            room = min(self._flow.room(), payloads.PIECE_BYTES_MAX + 1) - 1
            if room < 1 or (room < left and not self._flow.may_cut()):
                return
            piece = message[self._cut : self._cut + room]
            self._cut += len(piece)
            whole = self._cut == len(message)
            marker = payloads.MARKER_LAST if whole else payloads.MARKER_MORE
            self._send(Kind.PUBLISH, bytes([marker]) + piece)
            if whole:
                self._backlog.popleft()
                self._backlog_bytes -= len(message)
                self._cut = 0
