"""A WebSocket subscriber on a library that we did not write, in a thread of its own.

It keeps every publication it was sent, in order, and what its connections were told at their
start and end, so that a test can ask for holes, repeats and reasons afterwards.
"""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from tests.support.waiting import PATIENCE_S, wait_for


@dataclass
class Seen:
    """What one channel's subscription has been sent."""

    epoch: str = ""
    offsets: list[int] = field(default_factory=list)
    data: list[Any] = field(default_factory=list)
    unrecovered: int = 0

    start: int = 0

    @property
    def position(self) -> int:
        return self.offsets[-1] if self.offsets else self.start

    def take(self, publication: dict[str, Any]) -> None:
        self.offsets.append(publication["offset"])
        self.data.append(publication["data"])


class Subscriber:
    """Subscribes to `channels`; with `reconnect`, comes back after a close and is caught up.

    With `seen` it goes on where another subscriber stopped.
    """

    def __init__(
        self,
        url: str,
        *channels: str,
        reconnect: bool = False,
        seen: dict[str, Seen] | None = None,
    ) -> None:
        self.url = url
        self.seen = seen or {channel: Seen() for channel in channels}
        self.connects: list[dict[str, Any]] = []
        self.disconnects: list[dict[str, Any]] = []
        self.close_codes: list[int] = []
        self._reconnect = reconnect
        self._stopping = threading.Event()
        self._socket: ClientConnection | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Subscriber:
        wait_for(lambda: self.connects, "the connect message")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._socket is not None:
            with contextlib.suppress(ConnectionClosed, OSError):
                self._socket.close()
        self._thread.join(20)

    def wait_for_offset(self, channel: str, offset: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the newest publication of `channel` is at least `offset`."""
        wait_for(
            lambda: self.seen[channel].position >= offset,
            f"offset {offset} of {channel}",
            timeout_s,
        )

    def assert_contiguous(self, channel: str) -> None:
        """Fail unless every publication since the subscription came once and in order."""
        # As they are at one moment: our thread appends to them meanwhile.
        offsets = self.seen[channel].offsets.copy()
        if offsets:
            assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
        assert self.seen[channel].unrecovered == 0

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                self._one_connection()
            if not self._reconnect:
                return
            self._stopping.wait(0.05)

    def _one_connection(self) -> None:
        with connect(self._connect_url(), compression=None, proxy=None) as socket:
            self._socket = socket
            try:
                # Whoever stops us closes the socket that there is: this one, or we see it here.
                if self._stopping.is_set():
                    return
                for message in socket:
                    self._handle(json.loads(message))
            finally:
                if socket.close_code is not None:
                    self.close_codes.append(socket.close_code)

    def _connect_url(self) -> str:
        subs = {
            channel: {"recover": True, "offset": seen.position, "epoch": seen.epoch}
            if seen.epoch
            else {}
            for channel, seen in self.seen.items()
        }
        query = urllib.parse.urlencode({"cf_connect": json.dumps({"subs": subs})})
        return f"{self.url}?{query}"

    def _handle(self, push: dict[str, Any]) -> None:
        if "connect" in push:
            self._handle_connect(push["connect"])
        elif "pub" in push:
            self.seen[push["channel"]].take(push["pub"])
        elif "disconnect" in push:
            self.disconnects.append(push["disconnect"])

    def _handle_connect(self, reply: dict[str, Any]) -> None:
        for channel, sub in reply.get("subs", {}).items():
            seen = self.seen[channel]
            if seen.epoch and not sub.get("recovered"):
                seen.unrecovered += 1
            elif not seen.epoch:
                seen.start = sub.get("offset", 0)
            seen.epoch = sub.get("epoch", "")
            for publication in sub.get("publications", []):
                seen.take(publication)
        self.connects.append(reply)
