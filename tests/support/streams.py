"""Clients of the HTTP streams, as bare as curl, and an `EventSource` by its standard's letter."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
from typing import Any, NamedTuple

import pytest

TIMEOUT_S = 60.0


class Event(NamedTuple):
    """A server-sent event: its data, and the id that a browser would say when it comes back."""

    data: dict[str, Any]
    last_event_id: str


def request(
    port: int,
    target: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    version: str = "1.1",
) -> Stream:
    """Send one request and read the head of its response."""
    fields = {"Host": "tide.example"} | (headers or {})
    if body or method == "POST":
        fields.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {target} HTTP/{version}", *(f"{key}: {fields[key]}" for key in fields)]
    return Stream(port, ("\r\n".join(lines) + "\r\n\r\n").encode() + body)


class Curl:
    """`curl -N`, which shows each message as soon as it is there. Skips the test without curl."""

    def __init__(self, url: str, *options: str) -> None:
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed here")
        self._process = subprocess.Popen(
            ["curl", "-sSN", "--noproxy", "*", "--max-time", str(TIMEOUT_S), *options, url],
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Curl:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def read(self) -> dict[str, Any]:
        """The message of the next line that has one; pings and ids of events are passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.strip().removeprefix(b"data: ")
            if text.startswith(b"{") and text != b"{}":
                message: dict[str, Any] = json.loads(text)
                return message
        raise AssertionError(f"curl ended with {self._process.wait()}")

    def end(self) -> int:
        """Wait until the gateway ends the stream; returns curl's status."""
        return self._process.wait(TIMEOUT_S)


class Stream:
    """The answer to one request, read as far as the test wants."""

    def __init__(self, port: int, sent: bytes) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.sendall(sent)
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while line := self._file.readline().decode().rstrip("\r\n"):
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def read(self) -> bytes:
        """All that is left."""
        return self._file.read()

    def read_line(self) -> dict[str, Any]:
        """The next message of a JSON stream; pings are passed over."""
        while True:
            line = self._file.readline()
            assert line.endswith(b"\n"), f"the stream ended: {line!r}"
            if line.strip() not in (b"", b"{}"):
                message: dict[str, Any] = json.loads(line)
                return message

    def read_delimited(self) -> bytes:
        """The next message of a Protobuf stream; pings are passed over."""
        while True:
            length = shift = 0
            while (byte := self._file.read(1)[0]) & 0x80:
                length |= (byte & 0x7F) << shift
                shift += 7
            length |= byte << shift
            if length:
                return self._file.read(length)


class EventSource:
    """WHATWG HTML section 9.2: what is not followed by an empty line was never there, and an id
    counts from the event on that it came with."""

    def __init__(self, port: int, target: str, last_event_id: str = "") -> None:
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        self.stream = request(port, target, headers=headers)
        self.last_event_id = last_event_id
        self._lines = self.stream._file

    def __enter__(self) -> EventSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.__exit__()

    def read(self) -> Event:
        """The next event; pings are passed over."""
        while True:
            data = self._read_data()
            if data not in ("", "{}"):
                return Event(json.loads(data), self.last_event_id)

    def _read_data(self) -> str:
        data: list[str] = []
        last_event_id = self.last_event_id
        while True:
            line = self._lines.readline().decode()
            assert line.endswith("\n"), "the stream ended"
            line = line.rstrip("\r\n")
            if not line:
                self.last_event_id = last_event_id
                return "\n".join(data)
            field, _, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
            elif field == "id":
                last_event_id = value.removeprefix(" ")


def with_query(path: str, connect: object) -> str:
    """A target that carries a connect request, or commands."""
    text = connect if isinstance(connect, str) else json.dumps(connect)
    return f"{path}?{urllib.parse.urlencode({'cf_connect': text})}"
