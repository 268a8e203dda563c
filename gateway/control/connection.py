"""A client of the control socket: its frames, its one request under way, what waits to be sent."""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gateway.carrying import Keep, Take
from gateway.control.peers import Level, Peer, peer_pidfd
from gateway.control.wire import FrameBuffer, encode
from gateway.errors import ProtocolError, TidegateError
from gateway.loop import Phase
from workers.link import close_all

if TYPE_CHECKING:
    from gateway.control.server import ControlServer

RECEIVE_BYTES = 64 * 1024
PROGRESS_BACKLOG_BYTES_MAX = 64 * 1024
"""Progress for a client that does not read is dropped above this; results never are."""

Descriptors = Sequence[int]


class Request:
    """One request under way, to be answered once; the client may be gone by then."""

    def __init__(self, connection: Connection, message: dict[str, Any]) -> None:
        self.message = message
        """As it came: whatever a client may send."""
        self.verb = str(message.get("verb"))
        self.args: dict[str, Any] = message.get("args") or {}
        self.peer = connection.peer
        self.connection = connection
        self._number = message.get("id")
        self._answered = False

    def progress(self, values: dict[str, Any]) -> None:
        if not self._answered:
            self.connection.send_if_it_reads({"id": self._number, "progress": values})

    def reply(self, result: dict[str, Any], fds: Descriptors = ()) -> None:
        """Answers; the descriptors stay the caller's."""
        self._answer({"id": self._number, "result": result}, fds)

    def fail(self, error: TidegateError) -> None:
        self._answer({"id": self._number, "error": error.as_map()}, ())

    def _answer(self, message: dict[str, Any], fds: Descriptors) -> None:
        if not self._answered:
            self._answered = True
            self.connection.send(message, fds)
            self.connection.answered()


class Connection:
    """One client. `on_close` are called, in order, when it ends or its process dies."""

    def __init__(
        self, server: ControlServer, sock: socket.socket, peer: Peer, level: Level
    ) -> None:
        self.peer = peer
        self.level = level
        self.backlog_bytes = 0
        self.on_close: list[Callable[[], None]] = []
        self.waiting_since = 0.0
        """When the first byte of a frame came that is not whole yet; 0 if there is none."""
        self._server = server
        self._socket = sock
        self._frames = FrameBuffer(server.request_bytes_max)
        self._outbox: deque[tuple[memoryview, list[int]]] = deque()
        self._closing = False
        self._pidfd: int | None = None
        self._request: Request | None = None
        """The one under way."""
        server.loop.watch(sock.fileno(), Phase.CONTROL, self._ready, self._events())

    def carried(self, keep: Keep) -> dict[str, Any]:
        return {
            "socket": keep(self._socket.fileno()),
            "pidfd": None if self._pidfd is None else keep(self._pidfd),
            "received": self._frames.rest(),
            "outbox": [[bytes(frame), [keep(fd) for fd in fds]] for frame, fds in self._outbox],
            "closing": self._closing,
            "waiting_since": self.waiting_since,
            "request": self._request.message if self._request is not None else None,
        }

    def take_up(self, state: dict[str, Any], take: Take) -> None:
        """Goes on where `carried` left off; the request under way, if any, is in `request`."""
        self._frames.feed(state["received"])
        for frame, fds in state["outbox"]:
            self._outbox.append((memoryview(frame), [take(fd) for fd in fds]))
            self.backlog_bytes += len(frame)
        self._closing, self.waiting_since = state["closing"], state["waiting_since"]
        if state["request"] is not None:
            self._request = Request(self, state["request"])
        if state["pidfd"] is not None:
            self._watch_pidfd(take(state["pidfd"]))
        self.look_again()

    @property
    def request(self) -> Request | None:
        return self._request

    def fileno(self) -> int:
        return self._socket.fileno()

    def look_again(self) -> None:
        """Requests may be read that could not before."""
        # Not from here: a client with a thousand requests in its buffer takes a turn for each.
        self._server.loop.after(0.0, self._next_request)
        self.rewatch()

    def watch_process(self) -> None:
        """Ends the connection with the peer's process: a forked child may hold the socket open."""
        if self._pidfd is None and (pidfd := peer_pidfd(self._socket)) is not None:
            self._watch_pidfd(pidfd)

    def _watch_pidfd(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._server.loop.watch(pidfd, Phase.DEATHS, lambda events: self.close())

    def send(self, message: dict[str, Any], fds: Descriptors = ()) -> None:
        if self._socket.fileno() < 0:
            return
        frame = memoryview(encode(message))
        self._outbox.append((frame, [os.dup(fd) for fd in fds]))
        self.backlog_bytes += len(frame)
        self.flush()

    def send_if_it_reads(self, message: dict[str, Any]) -> None:
        """Sends what may be lost, unless much waits to be read already."""
        if self.backlog_bytes < PROGRESS_BACKLOG_BYTES_MAX:
            self.send(message)
        else:
            self._server.count_dropped_progress()

    def refuse(self, error: TidegateError) -> None:
        """Says why, and ends the connection once that is said."""
        self._closing = True
        self.send({"error": error.as_map()})

    def answered(self) -> None:
        """The request under way is over: the next may be read."""
        self._request = None
        self.look_again()

    def flush(self) -> None:
        """Sends what the socket takes now."""
        try:
            while self._outbox:
                frame, fds = self._outbox[0]
                sent = socket.send_fds(self._socket, [frame], fds, socket.MSG_NOSIGNAL)
                self.backlog_bytes -= sent
                close_all(fds)
                if sent == len(frame):
                    self._outbox.popleft()
                else:
                    self._outbox[0] = (frame[sent:], [])
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._closing and not self._outbox:
            self.close()
        else:
            self.rewatch()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._server.loop.unwatch(self._socket.fileno())
        self._socket.close()
        if self._pidfd is not None:
            self._server.loop.unwatch(self._pidfd)
            os.close(self._pidfd)
        for _, fds in self._outbox:
            close_all(fds)
        self._outbox.clear()
        self._server.forget(self)
        for callback in self.on_close:
            callback()

    # ---- what the loop calls

    def _events(self) -> int:
        # While a request is under way the rest waits in the kernel; the end is seen all the same.
        return (
            (select.EPOLLIN if self._may_read else 0)
            | select.EPOLLRDHUP
            | (select.EPOLLOUT if self._outbox else 0)
        )

    @property
    def _may_read(self) -> bool:
        return self._request is None and not self._closing and not self._server.paused

    def rewatch(self) -> None:
        """Follows what it waits for."""
        if self._socket.fileno() >= 0:
            self._server.loop.rewatch(self._socket.fileno(), self._events())

    def _ready(self, events: int) -> None:
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self.close()
            return
        if events & select.EPOLLOUT:
            self.flush()
        if events & select.EPOLLIN and self._socket.fileno() >= 0:
            self._receive()
        elif events & select.EPOLLRDHUP:
            # It will ask nothing more, and half-closed sockets are no part of the protocol.
            self.close()

    def _receive(self) -> None:
        try:
            # Descriptors that a client sends are not asked for; recv lets the kernel close them.
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._frames.feed(data)
        self._next_request()

    def _next_request(self) -> None:
        if not self._may_read or self._socket.fileno() < 0:
            return
        try:
            message = self._frames.next()
        except ProtocolError as error:
            self._server.reject("frame", self.peer)
            self.refuse(error)
            return
        if message is None:
            partial = len(self._frames) > 0
            self.waiting_since = (self.waiting_since or time.monotonic()) if partial else 0.0
            return
        self.waiting_since = 0.0
        self._request = Request(self, message)
        self.rewatch()
        self._server.request(self._request)
