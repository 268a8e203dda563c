"""The control socket's server: connections, frames, levels. What the verbs do is in `verbs.py`.

A client can not hold up the loop: nothing blocks, one request of a connection is under way at a
time (the next is not even read before it is answered), and every buffer has a bound.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gateway.carrying import Keep, Take
from gateway.config import Config
from gateway.control.peers import Level, Peer, peer_pidfd
from gateway.control.wire import FRAME_BYTES_MAX, PROTOCOL_VERSION, FrameBuffer, encode
from gateway.errors import ControlError, ProtocolError, TidegateError
from gateway.instance import socket_mode
from gateway.listeners import listen_unix
from gateway.loop import Loop, Phase
from gateway.memory import Memory
from workers.link import close_all

BACKLOG = 128
ACCEPTS_PER_TURN_MAX = 16
CLIENTS_BESIDE_UPLINKS_MAX = 64
"""Connections of people and tools; each producer with an uplink keeps one more."""
RECEIVE_BYTES = 64 * 1024
FRAME_TIMEOUT_S = 30.0
"""A frame that is not whole by then is given up, with its connection."""
SWEEP_INTERVAL_S = 5.0
PROGRESS_BACKLOG_BYTES_MAX = 64 * 1024
"""Progress for a client that does not read is dropped above this; results never are."""

logger = logging.getLogger("tidegate.control")

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


class ControlServer:
    """Accepts clients and hands their requests, level checked, to `on_request`."""

    def __init__(
        self,
        loop: Loop,
        memory: Memory,
        config: Callable[[], Config],
        greeting: dict[str, Any],
        levels: dict[str, Level],
        on_request: Callable[[Request], None],
    ) -> None:
        """`levels` has every verb with the level that it asks for."""
        self.loop = loop
        self._memory = memory
        self._config = config
        self._greeting = greeting
        self._levels = levels
        self._on_request = on_request
        self._clients: set[Connection] = set()
        self.paused = False
        """Whether requests wait: `pause`."""
        self._listener: socket.socket | None = None

    @property
    def request_bytes_max(self) -> int:
        """The largest request is a publish; a short number grows from 4 bytes of JSON to 9 here."""
        return min(FRAME_BYTES_MAX, 3 * self._config().limits.message_bytes_max + RECEIVE_BYTES)

    def listen(self, path: Path) -> None:
        """Opens the socket, for this user alone unless [control] names others. InstanceError."""
        self._serve(listen_unix(path, socket_mode(self._config()), BACKLOG))

    def _serve(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self.loop.watch(listener.fileno(), Phase.CONTROL, self._accept)
        self.loop.after(SWEEP_INTERVAL_S, self._sweep)

    def pause(self) -> None:
        """No request is begun any more: they wait in the kernel, unread."""
        self.paused = True
        for connection in self._clients:
            connection.rewatch()

    def resume(self) -> None:
        self.paused = False
        for connection in self._clients:
            connection.look_again()

    @property
    def requests(self) -> list[Request]:
        """Those under way."""
        return [each.request for each in self._clients if each.request is not None]

    def carried(self, keep: Keep) -> dict[str, Any]:
        """What `take_up` needs."""
        assert self._listener is not None
        return {
            "listener": keep(self._listener.fileno()),
            "clients": [each.carried(keep) for each in self._clients],
        }

    def take_up(self, state: dict[str, Any], take: Take) -> dict[int, Connection]:
        """Goes on where `carried` left off, instead of `listen`.

        Returns the connections by the descriptors that they had.
        """
        self._serve(socket.socket(fileno=take(state["listener"])))
        connections = {}
        for each in state["clients"]:
            sock = socket.socket(fileno=take(each["socket"]))
            sock.setblocking(False)
            peer = Peer.of(sock)
            connection = Connection(self, sock, peer, peer.level(self._config()))
            self._clients.add(connection)
            connection.take_up(each, take)
            connections[each["socket"]] = connection
        return connections

    def request(self, request: Request) -> None:
        """Checks one request and passes it on; what is wrong is answered, the connection stays."""
        self._memory.row.add("control_requests_total")
        connection, verb, args = request.connection, request.message.get("verb"), request.args
        needed = self._levels.get(request.verb)
        if needed is None or not isinstance(verb, str) or not isinstance(args, dict):
            self.reject("verb", connection.peer)
            request.fail(
                ControlError(
                    f"unknown verb {verb!r}" if needed is None else "args is not a map",
                    remedy=f"known: {', '.join(sorted(self._levels))}",
                    code="unknown_verb" if needed is None else "bad_arguments",
                )
            )
        elif connection.level < needed:
            self.reject("level", connection.peer)
            request.fail(
                ControlError(
                    f"{verb} needs the level {needed.name.lower()}, {connection.peer} is "
                    f"{connection.level.name.lower()}",
                    remedy="become the user that runs the gateway, or be named in [control]",
                    code="level",
                )
            )
        else:
            self._on_request(request)

    def reject(self, reason: str, peer: Peer) -> None:
        self._memory.row.add(f'control_rejections_total{{reason="{reason}"}}')
        logger.warning("control client turned away", extra={"reason": reason, "peer": str(peer)})

    def count_dropped_progress(self) -> None:
        self._memory.row.add("control_progress_dropped_total")

    def forget(self, connection: Connection) -> None:
        self._clients.discard(connection)

    def close(self) -> None:
        """Stops listening and ends every connection; what is still to be said is tried once."""
        if self._listener is not None:
            self.loop.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for connection in list(self._clients):
            connection.flush()
            connection.close()

    def _accept(self, events: int) -> None:
        assert self._listener is not None
        for _ in range(ACCEPTS_PER_TURN_MAX):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # nobody waits, or out of descriptors: they wait in the backlog
            sock.setblocking(False)
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        peer = Peer.of(sock)
        level = peer.level(self._config())
        connection = Connection(self, sock, peer, level)
        self._clients.add(connection)
        clients_max = self._config().log.uplinks_max + CLIENTS_BESIDE_UPLINKS_MAX
        if level is Level.NONE:
            self.reject("level", peer)
            connection.refuse(
                ControlError(
                    f"{peer} may not use this control socket",
                    remedy="become the user that runs the gateway, or be named in [control]",
                    code="not_permitted",
                )
            )
        elif len(self._clients) > clients_max:
            self.reject("clients", peer)
            connection.refuse(
                ControlError(
                    f"{clients_max} control connections are open already",
                    remedy="close some, or raise log.uplinks_max if they are producers",
                    code="too_many_clients",
                )
            )
        else:
            connection.send(
                {"tidegate": PROTOCOL_VERSION, **self._greeting, "level": level.name.lower()}
            )

    def _sweep(self) -> None:
        """Ends connections whose frame never becomes whole."""
        if self._listener is None:
            return
        now = time.monotonic()
        for connection in list(self._clients):
            since = connection.waiting_since
            if since and now - since > FRAME_TIMEOUT_S:
                self.reject("frame", connection.peer)
                connection.refuse(
                    ProtocolError(f"a frame was not whole after {FRAME_TIMEOUT_S:g} s")
                )
        self.loop.after(SWEEP_INTERVAL_S, self._sweep)
