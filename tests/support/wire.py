"""The other end of a TCP client, and raw bytes for the other end of the gateway: frames by hand."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from gateway.client import frames, payloads
from gateway.client.frames import Frame, Kind

TIMEOUT_S = 60.0
CONNECTED = payloads.Connected(
    crc=False,
    window_scale=0,
    heartbeat_interval_ms=30_000,
    heartbeat_timeout_ms=90_000,
    message_bytes_max=65_536,
    client="6f1c",
    version="test",
)


def server_frame(
    kind: Kind,
    payload: bytes = b"",
    *,
    seq: int = 0,
    ack_seq: int = 0,
    window_size: int = 65_535,
    crc: bool = False,
) -> bytes:
    """A frame with all numbers given, right or wrong."""
    return frames.encode(kind, seq, ack_seq, window_size, payload, crc=crc)


class RawWire:
    """One end of a connection that sends exactly what it is told, and reads frame by frame."""

    def __init__(self, peer: socket.socket, *, crc: bool = False) -> None:
        self.peer = peer
        self.crc_in = self.crc_out = crc
        self.seq = 0
        # Number of the last sequenced frame received; told in what is sent unless overridden.
        self.received_seq = 0
        self.window_size = 65_535
        self._received = bytearray()
        peer.settimeout(TIMEOUT_S)

    def close(self) -> None:
        self.peer.close()

    # ---- out

    def send(self, kind: Kind, payload: bytes = b"", *, ack_seq: int | None = None) -> None:
        if kind in frames.SEQUENCED:
            self.seq = (self.seq + 1) & payloads.U32_MAX
        ack = self.received_seq if ack_seq is None else ack_seq
        numbers = self.seq, ack, self.window_size
        self.peer.sendall(frames.encode(kind, *numbers, payload, crc=self.crc_out))

    def send_raw(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.peer.sendall(data)

    # ---- in

    def receive(self, timeout_s: float = TIMEOUT_S) -> Frame | None:
        """The next frame, or None at the end of the stream. Raises `TimeoutError`."""
        self.peer.settimeout(timeout_s)
        while True:
            frame = frames.decode(self._received, 0, crc=self.crc_in)
            if frame is not None:
                del self._received[: frame.wire_bytes]
                if frame.kind in frames.SEQUENCED:
                    self.received_seq = frame.seq
                return frame
            try:
                data = self.peer.recv(65_536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._received += data

    def expect(self, kind: Kind) -> Frame:
        """The next frame of this type; acknowledgements, windows and heartbeats may precede it."""
        chatter = {Kind.ACK, Kind.WINDOW_UPDATE, Kind.HEARTBEAT} - {kind}
        while True:
            frame = self.receive()
            assert frame is not None, f"the stream ended before {kind.name}"
            if frame.kind is kind:
                return frame
            assert frame.kind in chatter, f"{frame} instead of {kind.name}"

    def goodbye(self) -> payloads.Goodbye:
        """Read up to the CLOSE frame, which must be followed by the end of the stream."""
        while True:
            frame = self.receive()
            assert frame is not None, "the stream ended without CLOSE"
            if frame.kind is Kind.CLOSE:
                return payloads.Goodbye.parse(frame.payload)

    # ---- a client's first steps

    def connect(
        self, *, crc: bool = False, scale: int = 0, name: str = "test"
    ) -> payloads.Connected:
        """CONNECT and its answer."""
        self.send(Kind.CONNECT, payloads.Connect(crc, scale, name).encode())
        self.crc_out = crc
        connected = payloads.Connected.parse(self.expect(Kind.CONNECTED).payload)
        self.crc_in = crc
        return connected

    def subscribe(
        self, channel: str, since: payloads.Position | None = None, request: int = 1
    ) -> payloads.Subscribed:
        self.send(Kind.SUBSCRIBE, payloads.Subscribe(request, channel, since).encode())
        return payloads.Subscribed.parse(self.expect(Kind.SUBSCRIBED).payload)


@contextlib.contextmanager
def raw_wire(port: int) -> Iterator[RawWire]:
    """A connection to a gateway's TCP port."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield RawWire(peer)
