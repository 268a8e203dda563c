"""The real clients of our users, each driven in a process of its own and by the same words.

A driver (`python.py`, `javascript/`) holds one SDK client. It reads commands and writes what
happens, one JSON object a line:

    {"id": 1, "do": "subscribe", "channel": "a", "options": {"recoverable": true}}
    {"id": 1, "result": null}  or  {"id": 1, "error": {"code": 103, "message": "…"}}
    {"event": "subscribed", "channel": "a", "recovered": false, …}
    {"event": "ready"}  or  {"event": "ready", "problem": "why this SDK cannot run here"}
    {"event": "token", "number": 3, "channel": ""}
    {"do": "token", "number": 3, "token": "…"}

So a scenario is written once and holds for every SDK, encoding and transport.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.sdk import javascript
from tests.support.waiting import wait_for

PATIENCE_S = 60.0
ROOT = Path(__file__).resolve().parents[3]

Event = dict[str, Any]
Tokens = Callable[[str], str | None]
"""Gives the token for a channel, or for the connection (""); None: the client is not allowed."""

PYTHON = ("python-json", "python-protobuf")
JAVASCRIPT = ("js-websocket-json", "js-websocket-protobuf", "js-sse", "js-http_stream")
BROWSER = ("browser-websocket", "browser-sse", "browser-http_stream")
KINDS = (*PYTHON, *JAVASCRIPT)


class SdkError(Exception):
    """What the SDK threw: the server's error, or one of its own below 100."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class SdkClient:
    """One client of one SDK. `port` is where it finds the gateway, `kind` one of `KINDS`.

    Skips the test where the machine lacks what the SDK runs in.
    """

    def __init__(
        self,
        kind: str,
        port: int,
        *,
        token: str = "",
        tokens: Tokens | None = None,
        data: Any = None,
    ) -> None:
        self.kind = kind
        self._tokens = tokens
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._results: dict[int, Event] = {}
        self._number = 0
        config = {"port": port, "token": token, "asks": tokens is not None, "data": data}
        self._process = subprocess.Popen(
            [*_driver(kind), json.dumps(config | _way(kind))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            problem = self.wait("ready").get("problem")
            if problem is not None:
                pytest.skip(problem)
        except BaseException:
            self.close()
            raise

    # ---- what it is told

    def call(self, do: str, **arguments: Any) -> Any:
        """One command and its result. Raises SdkError."""
        with self._lock:
            self._number += 1
            number = self._number
        self._write({"id": number, "do": do, **arguments})
        answered = wait_for(lambda: self._results.pop(number, None), f"{do}", PATIENCE_S)
        if "error" in answered:
            raise SdkError(answered["error"]["code"], answered["error"]["message"])
        return answered["result"]

    def connect(self) -> Event:
        self.call("connect")
        return self.wait("connected")

    def subscribe(self, channel: str, **options: Any) -> Event:
        """Subscribe and wait until it is; `options` are those of the SDKs, in snake_case."""
        self.call("subscribe", channel=channel, options=options)
        return self.wait("subscribed", channel=channel)

    # ---- what happened to it

    def wait(self, event: str, **fields: Any) -> Event:
        """The first such event that was not waited for before."""

        def found() -> Event | None:
            with self._lock:
                for each in self._events:
                    if each["event"] == event and fields.items() <= each.items():
                        self._events.remove(each)
                        return each
            if self._process.poll() is not None:
                raise AssertionError(f"the client's process ended with {self._process.returncode}")
            return None

        try:
            return wait_for(found, f"{event} {fields}", PATIENCE_S)
        except AssertionError as failure:
            raise AssertionError(f"{self.kind}: {failure}; there was {self._events}") from None

    def seen(self, event: str, **fields: Any) -> list[Event]:
        """Such events that nobody waited for."""
        with self._lock:
            return [
                each
                for each in self._events
                if each["event"] == event and fields.items() <= each.items()
            ]

    def data(self, channel: str, count: int) -> list[Any]:
        """The data of the next publications of a channel, in the order of their arrival."""
        return [self.wait("publication", channel=channel)["data"] for _ in range(count)]

    # ---- its process

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(PATIENCE_S)
        self._process.stdout.close()

    def _write(self, line: Event) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if message.get("event") == "token":
                assert self._tokens is not None
                token = self._tokens(message["channel"])
                self._write({"do": "token", "number": message["number"], "token": token})
            elif "event" in message:
                with self._lock:
                    self._events.append(message)
            else:
                self._results[message["id"]] = message


@contextlib.contextmanager
def sdk_clients(kind: str) -> Iterator[Callable[..., SdkClient]]:
    """Makes clients of one kind, which all end with the block. Skips where they cannot be had."""
    if kind in PYTHON:
        pytest.importorskip("centrifuge", reason="centrifuge-python is not installed")
    else:
        javascript.require("browser" if kind.startswith("browser-") else "node")
    with contextlib.ExitStack() as stack:

        def make(port: int, **options: Any) -> SdkClient:
            client = SdkClient(kind, port, **options)
            stack.callback(client.close)
            return client

        yield make


def _driver(kind: str) -> list[str]:
    if kind in PYTHON:
        return [sys.executable, "-m", "tests.support.sdk.python"]
    return javascript.command("browser" if kind.startswith("browser-") else "node")


def _way(kind: str) -> dict[str, str]:
    """The transport and the encoding that a kind's name tells."""
    _, *rest = kind.split("-")
    encoding = "protobuf" if "protobuf" in rest else "json"
    transport = rest[0] if rest[0] not in ("json", "protobuf") else "websocket"
    return {"transport": transport, "encoding": encoding}
