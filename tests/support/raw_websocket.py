"""A WebSocket client without manners: it sends any bytes, and believes nothing it receives."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
from typing import Any

PATH = "/connection/uni_websocket"
KEY = base64.b64encode(b"sixteen bytes ok").decode()
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
TIMEOUT_S = 60.0

FIN = 0x80
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x37\xfa\x21\x3d"

HANDSHAKE = {
    "Host": "tide.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def head(request_line: str, headers: dict[str, str]) -> bytes:
    """An HTTP request head."""
    lines = [request_line, *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(first: int, payload: bytes = b"") -> bytes:
    """A masked frame with its first byte (FIN, reserved bits, opcode) as given."""
    length = len(payload)
    if length < 126:
        header = struct.pack("!BB", first, 0x80 | length)
    elif length < 1 << 16:
        header = struct.pack("!BBH", first, 0x80 | 126, length)
    else:
        header = struct.pack("!BBQ", first, 0x80 | 127, length)
    return header + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))


class RawWebSocket:
    """One TCP connection to the gateway's HTTP port."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> RawWebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def vanish(self) -> None:
        """End with a reset instead of a goodbye."""
        # Lingering for zero seconds makes close(2) send one (socket(7)).
        linger = struct.pack("ii", 1, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.__exit__()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read_response(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of an HTTP response."""
        status = int(self._stream.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := self._stream.readline().decode().rstrip("\r\n")) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = self._stream.read(int(headers.get("content-length", "0")))
        return status, headers, body

    def open(self, query: str = "", after: bytes = b"") -> None:
        """Become a WebSocket; `after` is sent in the same breath as the request."""
        self.send(head(f"GET {PATH}{query} HTTP/1.1", HANDSHAKE) + after)
        status, headers, _ = self.read_response()
        assert status == 101, status
        digest = hashlib.sha1((KEY + GUID).encode()).digest()
        assert headers["sec-websocket-accept"] == base64.b64encode(digest).decode()

    def connect(self, *channels: str) -> dict[str, Any]:
        """Open, subscribe and return the connect reply."""
        self.open()
        request: dict[str, Any] = {"subs": {channel: {} for channel in channels}}
        self.send(frame(FIN | TEXT, json.dumps(request).encode()))
        push = self.read_push()
        assert "connect" in push, push
        reply: dict[str, Any] = push["connect"]
        return reply

    def read_frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame, in which no extension may have a part."""
        first, payload = self.read_any_frame()
        assert first & 0x70 == 0, "reserved bits"
        return first & 0x0F, payload

    def read_any_frame(self) -> tuple[int, bytes]:
        """First byte and payload of the next frame, which must be whole, unmasked and minimal."""
        first, second = self._exactly(2)
        assert first & FIN, "the gateway does not fragment"
        assert second & 0x80 == 0, "a server must not mask"
        length = second
        if second == 126:
            (length,) = struct.unpack("!H", self._exactly(2))
            assert length >= 126
        elif second == 127:
            (length,) = struct.unpack("!Q", self._exactly(8))
            assert length >= 1 << 16
        return first, self._exactly(length)

    def read_push(self) -> dict[str, Any]:
        """The next push; pings in between are passed over."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == PING or (opcode == TEXT and payload == b"{}"):
                continue
            assert opcode == TEXT, (opcode, payload)
            push: dict[str, Any] = json.loads(payload)
            return push

    def read_ping(self) -> None:
        """Both forms of one, of which the frame comes last."""
        assert self.read_frame() == (TEXT, b"{}")
        assert self.read_frame() == (PING, b"")

    def read_close(self) -> tuple[int | None, str]:
        """Code and reason of the close frame, whatever comes before it."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == CLOSE:
                if not payload:
                    return None, ""
                return struct.unpack("!H", payload[:2])[0], payload[2:].decode()

    def read_end(self) -> None:
        """The gateway must end the connection now, with nothing more to say."""
        try:
            rest = self._stream.read(1)
        except ConnectionResetError:
            rest = b""
        assert rest == b"", rest

    def _exactly(self, length: int) -> bytes:
        data = self._stream.read(length)
        assert len(data) == length, "the connection ended within a frame"
        return data
