"""Frames that RFC 6455 forbids: bytes, the close code they are answered with, and the name that the
close is counted under."""

from __future__ import annotations

import struct

from tests.support.raw_websocket import BINARY, CLOSE, CONTINUATION, FIN, MASK, PING, TEXT, frame

# As `limits.message_bytes_max` is if nobody says otherwise.
MESSAGE_BYTES_MAX = 65536

Violation = tuple[str, bytes, int, str]

HALF = b"x" * (MESSAGE_BYTES_MAX // 2)

VIOLATIONS: list[Violation] = [
    ("unmasked text", b"\x81\x05Hello", 1002, "protocol_error"),
    ("unmasked ping", b"\x89\x00", 1002, "protocol_error"),
    ("second reserved bit", frame(FIN | 0x20 | TEXT, b"x"), 1002, "protocol_error"),
    ("third reserved bit", frame(FIN | 0x10 | PING), 1002, "protocol_error"),
    ("reserved data opcode", frame(FIN | 0x3, b"x"), 1002, "protocol_error"),
    ("reserved control opcode", frame(FIN | 0xB), 1002, "protocol_error"),
    ("fragmented ping", frame(PING), 1002, "protocol_error"),
    ("fragmented close", frame(CLOSE), 1002, "protocol_error"),
    ("long ping", frame(FIN | PING, b"x" * 126), 1002, "protocol_error"),
    ("continuation of nothing", frame(FIN | CONTINUATION, b"x"), 1002, "protocol_error"),
    ("text within text", frame(TEXT, b"a") + frame(FIN | TEXT, b"b"), 1002, "protocol_error"),
    ("16-bit length of 5", b"\x81\xfe\x00\x05" + MASK + b"Hello", 1002, "protocol_error"),
    ("64-bit length of 5", b"\x81\xff" + struct.pack("!Q", 5) + MASK, 1002, "protocol_error"),
    ("64-bit length, high bit", b"\x82\xff\x80" + bytes(7) + MASK, 1002, "protocol_error"),
    ("close with one byte", frame(FIN | CLOSE, b"\x03"), 1002, "protocol_error"),
    ("close with 1005", frame(FIN | CLOSE, struct.pack("!H", 1005)), 1002, "protocol_error"),
    ("close with 2999", frame(FIN | CLOSE, struct.pack("!H", 2999)), 1002, "protocol_error"),
    ("text not UTF-8", frame(FIN | TEXT, b"\xc3\x28"), 1007, "invalid_text"),
    ("text cut short", frame(FIN | TEXT, "€".encode()[:2]), 1007, "invalid_text"),
    (
        "text broken between fragments",
        frame(TEXT, b"\xf0\x9f") + frame(FIN | CONTINUATION, b"x"),
        1007,
        "invalid_text",
    ),
    (
        "close reason not UTF-8",
        frame(FIN | CLOSE, b"\x03\xe8\xce\xba\xe1"),
        1007,
        "invalid_text",
    ),
    (
        "over the limit by its header",
        b"\x82\xff" + struct.pack("!Q", MESSAGE_BYTES_MAX + 1) + MASK,
        1009,
        "message_too_big",
    ),
    ("absurd length", b"\x82\xff\x7f" + b"\xff" * 7 + MASK, 1009, "message_too_big"),
    (
        "over the limit together",
        frame(BINARY, HALF) + frame(CONTINUATION, HALF) + frame(FIN | CONTINUATION, b"x"),
        1009,
        "message_too_big",
    ),
]

# Forbidden unless an extension was agreed to.
RESERVED: Violation = (
    "first reserved bit",
    frame(FIN | 0x40 | TEXT, b"x"),
    1002,
    "protocol_error",
)
