"""Who is at the other end of a control connection, and what they may do (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import os
import pwd
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

from gateway.config import Config

# <asm-generic/socket.h>; since Linux 6.5. The kernel gives a pidfd of the process that connected,
# which can not be mistaken for a later process with its pid.
SO_PEERPIDFD = 77

_UCRED = struct.Struct("3i")


class Level(IntEnum):
    """What a peer may do: each level includes the ones below."""

    NONE = 0
    OBSERVER = 1
    """See: status, slots, config."""
    OPERATOR = 2
    """Operate: publish, uplink, reload, scale, drain."""
    ADMIN = 3
    """End it, or choose its code: stop, upgrade."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel knows it."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return cls(*_UCRED.unpack(data))

    def level(self, config: Config) -> Level:
        """The owner and root are admins; [control] names the others."""
        if self.uid in (0, os.geteuid()):
            return Level.ADMIN
        if self._is_among(config.control.operators):
            return Level.OPERATOR
        if self._is_among(config.control.observers):
            return Level.OBSERVER
        return Level.NONE

    def __str__(self) -> str:
        return f"{self._name() or self.uid}[{self.pid}]"

    def _is_among(self, users: Sequence[str]) -> bool:
        return bool({str(self.uid), self._name()} & set(users))

    def _name(self) -> str:
        with suppress(KeyError):  # a uid without an account, as in many containers
            return pwd.getpwuid(self.uid).pw_name
        return ""


def peer_pidfd(connection: socket.socket) -> int | None:
    """A pidfd of the peer, readable at its death; None if it is dead already or beyond our sight.

    In another pid namespace there is no pid to open; then the connection's end alone tells.
    """
    with suppress(OSError):
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    with suppress(OSError):
        return os.pidfd_open(Peer.of(connection).pid)
    return None
