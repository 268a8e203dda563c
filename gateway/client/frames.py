"""One frame (workers/WIRE_PROTOCOL.md sections 1 and 2): bytes in, frame out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from gateway.client.crc32c import crc32c

MAGIC = 0x4D42
VERSION = 1
HEADER = struct.Struct(">HBBIIHH")
CHECKSUM = struct.Struct(">I")
PAYLOAD_BYTES_MAX = 0xFFFF
# Who does not know a type from here on skips it.
SKIPPABLE_FROM = 128


class Kind(IntEnum):
    """Type of a frame."""

    DATA = 0
    HEARTBEAT = 1
    ACK = 2
    WINDOW_UPDATE = 3
    CONNECT = 4
    CONNECTED = 5
    SUBSCRIBE = 6
    SUBSCRIBED = 7
    UNSUBSCRIBE = 8
    UNSUBSCRIBED = 9
    PUBLISH = 10
    PUBLISHED = 11
    ERROR = 12
    CLOSE = 13


SEQUENCED = frozenset({Kind.DATA, Kind.PUBLISH})
_BARE = frozenset({Kind.HEARTBEAT, Kind.ACK, Kind.WINDOW_UPDATE})


class CloseCode(IntEnum):
    """Codes that a client gives or looks at; the whole table is in section 12."""

    NORMAL = 1000
    MESSAGE_TOO_BIG = 1009
    CONNECTION_CLOSED = 3000
    INSUFFICIENT_STATE = 3010
    NO_PONG = 3012
    STATE_INVALIDATED = 3014
    BAD_MAGIC = 4501
    BAD_VERSION = 4502
    BAD_TYPE = 4503
    BAD_LENGTH = 4504
    BAD_CHECKSUM = 4505
    BAD_SEQUENCE = 4506
    BAD_ACKNOWLEDGEMENT = 4507
    BAD_FRAGMENT = 4509
    BAD_PAYLOAD = 4510
    UNEXPECTED_FRAME = 4511
    BAD_VARINT = 4512
    BAD_TEXT = 4513


class Violation(Exception):
    """The peer broke the protocol: the connection ends with this code."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame. `kind` is None for a type that may be skipped."""

    kind: Kind | None
    seq: int
    ack_seq: int
    window_size: int
    payload: bytes
    # Bytes that it took on the wire: what counts against the window.
    wire_bytes: int


def encode(
    kind: int, seq: int, ack_seq: int, window_size: int, payload: bytes = b"", *, crc: bool = False
) -> bytes:
    """The bytes of a frame, with its checksum if `crc`."""
    head = HEADER.pack(MAGIC, VERSION, kind, seq, ack_seq, window_size, len(payload))
    frame = head + payload
    return frame + CHECKSUM.pack(crc32c(frame)) if crc else frame


def decode(buffer: bytes | bytearray, start: int, *, crc: bool) -> Frame | None:
    """The frame at `start`, or None if it is not whole yet.

    Raises `Violation` (4501 to 4505) as soon as the bytes that show it are there.
    """
    if len(buffer) - start < HEADER.size:
        _check_begin(buffer, start)
        return None
    magic, version, number, seq, ack_seq, window_size, length = HEADER.unpack_from(buffer, start)
    if magic != MAGIC or version != VERSION:
        _check_begin(buffer, start)
    kind = _kind(number)
    if length and kind in _BARE:
        raise Violation(CloseCode.BAD_LENGTH, "bad length")
    end = start + HEADER.size + length
    wire_end = end + CHECKSUM.size if crc else end
    if len(buffer) < wire_end:
        return None
    if crc and CHECKSUM.unpack_from(buffer, end)[0] != crc32c(buffer[start:end]):
        raise Violation(CloseCode.BAD_CHECKSUM, "bad checksum")
    payload = bytes(buffer[start + HEADER.size : end])
    return Frame(kind, seq, ack_seq, window_size, payload, wire_end - start)


def _check_begin(buffer: bytes | bytearray, start: int) -> None:
    """Judge the first bytes of a header, however few they are."""
    begin = bytes(buffer[start : start + 4])
    if begin[:2] != MAGIC.to_bytes(2, "big")[: len(begin)]:
        raise Violation(CloseCode.BAD_MAGIC, "bad magic")
    if len(begin) > 2 and begin[2] != VERSION:
        raise Violation(CloseCode.BAD_VERSION, "protocol version not supported")
    if len(begin) > 3:
        _kind(begin[3])


def _kind(number: int) -> Kind | None:
    if number <= Kind.CLOSE:
        return Kind(number)
    if number >= SKIPPABLE_FROM:
        return None
    raise Violation(CloseCode.BAD_TYPE, "unknown frame type")
