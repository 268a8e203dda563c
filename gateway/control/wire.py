"""Frames of the control socket: four bytes of length, big-endian, then one msgpack map.

    +----------------+---------------------------+
    | length  u32 BE | msgpack map, length bytes |   length <= FRAME_BYTES_MAX
    +----------------+---------------------------+

The server greets `{tidegate, instance, version, pid, level}`; a request is `{id, verb, args}`; its
answers are any number of `{id, progress}`, then one `{id, result}` or
`{id, error: {code, message, remedy}}`. Descriptors ride beside a frame by SCM_RIGHTS (unix(7)),
attached to the frame's first byte.
"""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import ProtocolError, Unreachable
from workers.link import close_all

PROTOCOL_VERSION = 1
FRAME_BYTES_MAX = 16 * 1024 * 1024
"""A frame above this is a mistake or an attack: a status of a thousand slots is below 1 MiB."""
DESCRIPTORS_MAX = 16
"""Descriptors that one frame may carry; `uplink` needs three."""

LENGTH = struct.Struct(">I")
_INT_BYTES = array.array("i").itemsize
ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_MAX * _INT_BYTES)


def encode(message: dict[str, Any]) -> bytes:
    """The frame of `message`. Raises ProtocolError for what msgpack or FRAME_BYTES_MAX exclude."""
    try:
        body = msgspec.msgpack.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(
            f"a control frame cannot hold that ({error})",
            remedy="text must be Unicode, an integer has at most 64 bits",
        ) from error
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(
            f"a control frame of {len(body)} bytes is above the limit of {FRAME_BYTES_MAX}",
            remedy="ask for less at once",
        )
    return LENGTH.pack(len(body)) + body


def decode_body(body: bytes | memoryview) -> dict[str, Any]:
    """The map in a frame's body. Raises ProtocolError if it is anything else."""
    try:
        message = msgspec.msgpack.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a control frame is not msgpack ({error})") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a control frame holds a {type(message).__name__}, not a map")
    return message


class FrameBuffer:
    """Collects received bytes and gives whole messages; holds at most one frame and one read."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._bytes = bytearray()
        self._frame_bytes_max = frame_bytes_max

    def __len__(self) -> int:
        return len(self._bytes)

    def rest(self) -> bytes:
        """What was fed and is no whole message yet, or not asked for."""
        return bytes(self._bytes)

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def next(self) -> dict[str, Any] | None:
        """The next whole message, or None until more bytes come. Raises ProtocolError."""
        if len(self._bytes) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._bytes)
        if length > self._frame_bytes_max:
            raise ProtocolError(
                f"a control frame announces {length} bytes, the limit is {self._frame_bytes_max}"
            )
        end = LENGTH.size + length
        if len(self._bytes) < end:
            return None
        body = bytes(self._bytes[LENGTH.size : end])
        del self._bytes[:end]
        return decode_body(body)


def descriptors_of(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in recvmsg's ancillary data; the caller owns them."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return list(fds)


def send_frame(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Sends one frame on a blocking stream socket. Raises Unreachable if the peer is gone."""
    frame = memoryview(encode(message))
    try:
        sent = socket.send_fds(sock, [frame], list(fds)) if fds else sock.send(frame)
        sock.sendall(frame[sent:])
    except TimeoutError as error:
        raise Unreachable("the control connection did not take a frame in time") from error
    except OSError as error:
        raise Unreachable(f"the control connection was lost ({error.strerror})") from error


def recv_frame(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receives one frame and its descriptors (the caller's to close) from a blocking stream socket.

    Raises Unreachable at the end of the stream or on a timeout, ProtocolError on what is no frame.
    """
    fds: list[int] = []
    try:
        header = _recv_exactly(sock, LENGTH.size, fds)
        (length,) = LENGTH.unpack(header)
        if length > FRAME_BYTES_MAX:
            raise ProtocolError(f"a control frame announces {length} bytes")
        return decode_body(_recv_exactly(sock, length, fds)), fds
    except TimeoutError as error:
        close_all(fds)
        raise Unreachable("no answer on the control connection in time", code="timeout") from error
    except OSError as error:
        close_all(fds)
        raise Unreachable(f"the control connection was lost ({error.strerror})") from error
    except BaseException:
        close_all(fds)
        raise


def _recv_exactly(sock: socket.socket, size: int, fds: list[int]) -> bytes:
    data = bytearray()
    while len(data) < size:
        part, ancillary, flags, _ = sock.recvmsg(
            size - len(data), ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        fds += descriptors_of(ancillary)
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError("the kernel cut off descriptors of a control frame")
        if not part:
            raise Unreachable("the control connection ended")
        data += part
    return bytes(data)
