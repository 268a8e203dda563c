"""A WebSocket client of the Centrifuge protocol whose framing is a library's, and whose manners
are the test's: `websockets` judges every byte that comes, and raw bytes may be sent past it."""

from __future__ import annotations

import socket
from collections import deque
from typing import Any

from centrifuge.codecs import _JsonCodec, _ProtobufCodec
from websockets.client import ClientProtocol
from websockets.extensions import ClientExtensionFactory
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

TIMEOUT_S = 60.0
DEFLATE = [ClientPerMessageDeflateFactory(client_max_window_bits=True)]


class FramePeer:
    """One connection to the bidirectional endpoint, in one encoding."""

    def __init__(
        self,
        port: int,
        encoding: str = "json",
        extensions: list[ClientPerMessageDeflateFactory] | None = None,
        query: str = "",
    ) -> None:
        self.codec = _JsonCodec if encoding == "json" else _ProtobufCodec
        self.opcode = Opcode.TEXT if encoding == "json" else Opcode.BINARY
        offers: list[ClientExtensionFactory] = list(extensions or [])
        self.protocol = ClientProtocol(
            parse_uri(f"ws://127.0.0.1:{port}/connection/websocket{query}"),
            extensions=offers,
            subprotocols=[f"centrifuge-{encoding}"],  # type: ignore[list-item]
            max_size=None,
        )
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._frames: deque[Frame] = deque()
        self._replies: deque[dict[str, Any]] = deque()
        self.protocol.send_request(self.protocol.connect())
        self.flush()
        while self.protocol.state is State.CONNECTING:
            assert self._receive(), "the connection ended within the handshake"
        assert self.protocol.handshake_exc is None, self.protocol.handshake_exc

    def __enter__(self) -> FramePeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    # ---- out

    def flush(self) -> None:
        """Send what the library wants to have sent: answers to pings and closes, too."""
        for data in self.protocol.data_to_send():
            if data:
                self._socket.sendall(data)

    def send_raw(self, data: bytes) -> None:
        """Send bytes that no library would."""
        self._socket.sendall(data)

    def encoded(self, *commands: dict[str, Any]) -> bytes:
        message = self.codec.encode_commands(commands)
        return message.encode() if isinstance(message, str) else message

    def send(self, *commands: dict[str, Any], pieces: int = 1) -> None:
        """Send one message of commands, in so many fragments."""
        message = self.encoded(*commands)
        step = max(1, -(-len(message) // pieces))
        parts = [message[at : at + step] for at in range(0, len(message), step)]
        send = self.protocol.send_text if self.opcode is Opcode.TEXT else self.protocol.send_binary
        send(parts[0], fin=len(parts) == 1)
        for number, part in enumerate(parts[1:], start=2):
            self.protocol.send_continuation(part, fin=number == len(parts))
        self.flush()

    def connect(self, *channels: str) -> dict[str, Any]:
        """Connect and subscribe; returns the connect reply."""
        subscribes = [
            {"id": number, "subscribe": {"channel": channel}}
            for number, channel in enumerate(channels, start=2)
        ]
        self.send({"id": 1, "connect": {}}, *subscribes)
        connected: dict[str, Any] = self.read_reply()["connect"]
        for _ in channels:
            assert "subscribe" in self.read_reply()
        return connected

    # ---- in

    def read_frame(self) -> Frame:
        """The next frame, as the library has checked and inflated it."""
        while not self._frames:
            assert self._receive(), "the connection ended"
        return self._frames.popleft()

    def read_reply(self) -> dict[str, Any]:
        """The next reply or push; pings are passed over."""
        while not self._replies:
            frame = self.read_frame()
            if frame.opcode in (Opcode.PING, Opcode.PONG):
                continue
            assert frame.opcode is self.opcode, frame
            data = bytes(frame.data)
            message = data.decode() if self.opcode is Opcode.TEXT else data
            self._replies += [reply for reply in self.codec.decode_replies(message) if reply]
        return self._replies.popleft()

    def read_close(self) -> tuple[int | None, str | None]:
        """Code and reason of the gateway's close, which the library answers; then it hangs up."""
        while self._receive():
            self.flush()
        self._socket.settimeout(TIMEOUT_S)
        received = self.protocol.close_rcvd
        assert received is not None, "the connection ended without a close frame"
        return received.code, received.reason

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if data:
            self.protocol.receive_data(data)
        else:
            self.protocol.receive_eof()
        for event in self.protocol.events_received():
            if isinstance(event, Frame):
                self._frames.append(event)
            else:
                assert isinstance(event, Response)
        if self.protocol.close_rcvd is None:
            assert self.protocol.parser_exc is None or not data, self.protocol.parser_exc
        return bool(data)
