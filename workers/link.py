"""The link between the supervisor and one child: typed messages, with descriptors beside them.

One `SOCK_SEQPACKET` Unix socket pair (unix(7)): message boundaries are kept, and the end of either
process is seen by the other as the end of the stream. A message is a msgpack map with the key
`type`; descriptors ride along by SCM_RIGHTS, and the key `fds` names them in the same order.
"""

import array
import contextlib
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Self

import msgpack

# A message must fit the default socket buffer (net.core.wmem_default, 212,992 bytes); the largest
# one, a worker's `boot`, is a few KiB, and some 100 with as much configured as there may be.
MESSAGE_BYTES_MAX = 131_072

# SCM_MAX_FD of the kernel: more descriptors in one message are refused with EINVAL.
DESCRIPTORS_MAX = 253


class LinkClosed(Exception):
    """The other end is closed: its process has ended or let the link go."""


class LinkError(Exception):
    """The other end sent what is not a message; the link cannot be used any further."""


class Link:
    """One end of a link. Non-blocking sockets raise BlockingIOError where they would wait."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Self, socket.socket]:
        """Make a link: this process's end, and the socket whose descriptor the child inherits."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    @classmethod
    def inherited(cls, fd: int) -> Self:
        """Take the end that the parent passed as descriptor `fd`.

        Raises OSError where `fd` is not open or no socket, LinkError where it is no link.
        """
        end = socket.socket(fileno=fd)
        if (end.family, end.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            end.detach()
            raise LinkError(f"descriptor {fd} is not a SOCK_SEQPACKET Unix socket")
        end.set_inheritable(False)
        return cls(end)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one message with its descriptors, whole or not at all.

        Raises LinkClosed, and ValueError for a message or descriptors beyond the bounds above.
        """
        data = msgpack.packb(message)
        if len(data) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {len(data)} bytes exceeds {MESSAGE_BYTES_MAX}")
        if len(fds) > DESCRIPTORS_MAX:
            raise ValueError(f"{len(fds)} descriptors in one message exceed {DESCRIPTORS_MAX}")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise LinkClosed("the other end of the link is closed") from error

    def recv(self) -> tuple[dict[str, Any], list[int]]:
        """Receive one message and its descriptors (close-on-exec; the caller owns them).

        Raises LinkClosed at the end of the stream and LinkError for a malformed message.
        """
        try:
            data, ancillary, flags = self._recv()
        except ConnectionResetError:
            # It ended without reading all of ours. That is told once, and before what it sent.
            data, ancillary, flags = self._recv()
        fds = _descriptors(ancillary)
        try:
            # The kernel drops descriptors that do not fit and tells only by MSG_CTRUNC (recv(2)).
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                raise LinkError("a message or its descriptors were truncated")
            if not data:
                raise LinkClosed("the other end of the link is closed")
            return _decode(data), fds
        except Exception:
            close_all(fds)
            raise

    def _recv(self) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
        data, ancillary, flags, _ = self._socket.recvmsg(
            MESSAGE_BYTES_MAX,
            socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize),
            socket.MSG_CMSG_CLOEXEC,
        )
        return data, ancillary, flags

    def fileno(self) -> int:
        return self._socket.fileno()

    def setblocking(self, blocking: bool) -> None:
        self._socket.setblocking(blocking)

    def settimeout(self, timeout_s: float | None) -> None:
        """Bound every wait on the link; beyond it TimeoutError is raised."""
        self._socket.settimeout(timeout_s)

    def peer_pid(self) -> int:
        """The process that made the pair (SO_PEERCRED, unix(7))."""
        size = 3 * array.array("i").itemsize
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return array.array("i", credentials)[0]

    def close(self) -> None:
        self._socket.close()


def named_descriptors(message: dict[str, Any], fds: Sequence[int]) -> dict[str, int]:
    """Join the names in the message's key `fds` with the received descriptors.

    Raises LinkError where their numbers differ; the descriptors are closed then.
    """
    names = message.get("fds", [])
    if len(names) != len(fds):
        close_all(fds)
        raise LinkError(
            f"message {message['type']!r} names {len(names)} descriptors and brings {len(fds)}"
        )
    return dict(zip(names, fds, strict=True))


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            # A truncated message may end in half a descriptor number.
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def _decode(data: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(data)
    except ValueError as error:
        raise LinkError(f"a message is not msgpack: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise LinkError("a message is not a map with the key 'type'")
    return message
