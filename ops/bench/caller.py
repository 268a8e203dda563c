"""A back end that calls the server API as fast as it answers: some connections, kept open."""

from __future__ import annotations

import json
import select
import socket
from typing import Any, Self

from gateway.errors import TidegateError

ANSWER_TIMEOUT_S = 30.0
READ_BYTES = 1 << 16


class Caller:
    """Connections for the length of a `with` block, each with one request under way.

    Requests are ready-made bytes, so that little of what is measured is the caller's own.
    """

    def __init__(self, address: str, key: str, connections: int) -> None:
        self._address = address
        self._key = key
        host, _, port = address.rpartition(":")
        self._sockets = [socket.create_connection((host, int(port))) for _ in range(connections)]
        for each in self._sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self, method: str, body: bytes) -> bytes:
        """The request of an API method, to be sent as often as wanted."""
        head = (
            f"POST /api/{method} HTTP/1.1\r\nHost: {self._address}\r\nX-API-Key: {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def ask(self, request: bytes) -> Any:
        """The result of one request. Raises TidegateError as `call` does."""
        asked = self._sockets[0]
        asked.sendall(request)
        asked.settimeout(ANSWER_TIMEOUT_S)
        answer = b""
        while not _is_whole(answer):
            answer += _received(asked)
        return json.loads(answer.partition(b"\r\n\r\n")[2])["result"]

    def call(self, request: bytes, count: int) -> None:
        """Send the request so often over all connections, and return when all are answered.

        Raises TidegateError for an answer that is none, and for a connection closed before it.
        """
        begun = min(count, len(self._sockets))
        left, waiting = count - begun, {}
        poll = select.poll()
        for each in self._sockets[:begun]:
            each.sendall(request)
            waiting[each.fileno()] = (each, b"")
            poll.register(each, select.POLLIN)
        while waiting:
            ready = poll.poll(ANSWER_TIMEOUT_S * 1e3)
            if not ready:
                raise TidegateError("the server API does not answer", code="bench")
            for descriptor, _ in ready:
                each, answer = waiting[descriptor]
                answer += _received(each)
                if not _is_whole(answer):
                    waiting[descriptor] = each, answer
                elif left:
                    left -= 1
                    waiting[descriptor] = each, b""
                    each.sendall(request)
                else:
                    del waiting[descriptor]
                    poll.unregister(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            each.close()


def _received(connection: socket.socket) -> bytes:
    """More of an answer. Raises TidegateError where the connection is closed instead."""
    piece = connection.recv(READ_BYTES)
    if not piece:
        raise TidegateError("the server API closed the connection without an answer", code="bench")
    return piece


def _is_whole(answer: bytes) -> bool:
    """Whether that is all of an answer. Raises TidegateError for one that tells of an error."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    if not answer.startswith(b"HTTP/1.1 200 ") or b'"error"' in body:
        shown = answer.decode(errors="replace")
        raise TidegateError(f"the server API refuses: {shown[:200]!r}", code="bench")
    head = head.lower()
    if b"\r\ntransfer-encoding: chunked" in head:
        return body.endswith(b"\r\n0\r\n\r\n")
    _, _, length = head.partition(b"content-length: ")
    return len(body) >= int(length.partition(b"\r\n")[0])
