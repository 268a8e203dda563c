"""CRC-32C (Castagnoli), the checksum of the wire protocol.

The standard library has none, and a wheel would be one more dependency of everybody for an option
that is off by default and runs over loopback-sized frames: a table does 128 bytes in about 10 us.
"""

from __future__ import annotations

# 0x1EDC6F41 with its bits in reverse, as the reflected algorithm wants it (RFC 3720 section 12.1).
POLYNOMIAL = 0x82F63B78


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_entry(byte) for byte in range(256))


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """The checksum of `data`; `crc32c(b"123456789") == 0xE3069283`."""
    crc = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF
