"""The control socket's server: connections, frames, levels. What the verbs do is in `verbs.py`.

A client can not hold up the loop: nothing blocks, one request of a connection is under way at a
time (the next is not even read before it is answered), and every buffer has a bound.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.carrying import Keep, Take
from gateway.config import Config
from gateway.control.connection import RECEIVE_BYTES, Connection, Request
from gateway.control.peers import Level, Peer
from gateway.control.wire import FRAME_BYTES_MAX, PROTOCOL_VERSION
from gateway.errors import ControlError, ProtocolError
from gateway.instance import socket_mode
from gateway.listeners import listen_unix
from gateway.loop import Loop, Phase
from gateway.memory import Memory

BACKLOG = 128
ACCEPTS_PER_TURN_MAX = 16
CLIENTS_BESIDE_UPLINKS_MAX = 64
"""Connections of people and tools; each producer with an uplink keeps one more."""
FRAME_TIMEOUT_S = 30.0
"""A frame that is not whole by then is given up, with its connection."""
SWEEP_INTERVAL_S = 5.0

logger = logging.getLogger("tidegate.control")


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
