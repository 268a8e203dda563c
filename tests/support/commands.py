"""A client of the bidirectional WebSocket endpoint that says what a test says, in JSON."""

from __future__ import annotations

import itertools
import json
import time
from contextlib import ExitStack
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

TIMEOUT_S = 60.0


class CommandClient:
    """Sends commands; `reply_to` and `push` return what came, whatever else came before it."""

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        url = f"ws://127.0.0.1:{port}/connection/websocket"
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(url, additional_headers=headers))
        self._numbers = itertools.count(1)
        self._replies: dict[int, dict[str, Any]] = {}
        self._pushes: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def send(self, method: str, /, **request: Any) -> int:
        """Send a command without waiting; returns what `reply_to` takes."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, method: request}))
        return number

    def tell(self, data: Any) -> None:
        """A message of the client, to which there is no reply."""
        self._socket.send(json.dumps({"send": {"data": data}}))

    def reply_to(self, number: int) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while number not in self._replies:
            self._receive(deadline)
        return self._replies.pop(number)

    def push(self) -> dict[str, Any]:
        """The next push."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self._pushes:
            self._receive(deadline)
        return self._pushes.pop(0)

    def call(self, method: str, /, **request: Any) -> Any:
        """The result of a command. Fails if that is an error."""
        return self.reply_to(self.send(method, **request))[method]

    def error(self, method: str, /, **request: Any) -> dict[str, Any]:
        """The error that a command is answered with."""
        error: dict[str, Any] = self.reply_to(self.send(method, **request))["error"]
        return error

    def closed(self) -> tuple[int, str]:
        """Wait for the server to close; returns code and reason."""
        deadline = time.monotonic() + TIMEOUT_S
        try:
            while True:
                self._receive(deadline)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code, closed.rcvd.reason

    def _receive(self, deadline: float) -> None:
        frame = self._socket.recv(timeout=max(0.0, deadline - time.monotonic()))
        for line in frame.strip().split("\n"):
            message = json.loads(line)
            if "id" in message:
                self._replies[message["id"]] = message
            elif "push" in message:
                self._pushes.append(message["push"])
            else:
                self._socket.send("{}")
