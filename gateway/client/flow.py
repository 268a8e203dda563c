"""Sequence numbers, acknowledgements and windows of one connection: the client's half.

See workers/WIRE_PROTOCOL.md sections 5 and 6. The window announced is the room that the
application leaves: the receive capacity less what was received and not yet consumed.
"""

from __future__ import annotations

from collections import deque

from gateway.client.frames import (
    HEADER,
    PAYLOAD_BYTES_MAX,
    SEQUENCED,
    CloseCode,
    Frame,
    Kind,
    Violation,
    encode,
)
from gateway.client.payloads import SCALE_MAX, U16_MAX, U32_MAX

# The server holds at most 8192 frames in flight, so an acknowledgement is due long before.
ACK_FRAMES_MAX = 1024


class Flow:
    """Counts what goes out and comes in, and writes the headers."""

    def __init__(self, capacity_bytes: int, *, held_bytes: int = 0, last_seq: int = 0) -> None:
        """`held_bytes`: received on an earlier connection and not yet consumed."""
        self.capacity_bytes = capacity_bytes
        self.scale = scale_of(capacity_bytes)
        self.crc_in = False
        self.crc_out = False
        self.peer_scale = 0
        self._held_bytes = held_bytes
        self._peer_size = 0
        self._sent_seq = last_seq
        self._received_seq = last_seq
        self._in_flight: deque[int] = deque()
        self._in_flight_bytes = 0
        self._unacked_bytes = 0
        self._unacked_frames = 0
        self._told_size = 0

    # ---- in

    def receive(self, frame: Frame) -> None:
        """Take the numbers of a header. Raises `Violation` 4506 or 4507."""
        sequenced = frame.kind is not None and frame.kind in SEQUENCED
        expected = (self._received_seq + sequenced) & U32_MAX
        if frame.seq != expected:
            raise Violation(CloseCode.BAD_SEQUENCE, "sequence number out of order")
        acked = (self._sent_seq - len(self._in_flight)) & U32_MAX
        newly = (frame.ack_seq - acked) & U32_MAX
        if newly > len(self._in_flight):
            raise Violation(CloseCode.BAD_ACKNOWLEDGEMENT, "bad acknowledgement")
        for _ in range(newly):
            self._in_flight_bytes -= self._in_flight.popleft()
        self._peer_size = frame.window_size
        if sequenced:
            self._received_seq = expected
            self._unacked_bytes += frame.wire_bytes
            self._unacked_frames += 1

    def hold(self, wire_bytes: int) -> None:
        """A whole message waits for the application. (Pieces of an unfinished one do not count,
        or a message larger than the window would never become whole.)"""
        self._held_bytes += wire_bytes

    def release(self, wire_bytes: int) -> None:
        """The application has consumed a message."""
        self._held_bytes -= wire_bytes

    @property
    def ack_due(self) -> bool:
        half = (self._told_size << self.scale) // 2
        received = self._unacked_bytes >= half and self._unacked_frames > 0
        return received or self._unacked_frames >= ACK_FRAMES_MAX

    @property
    def update_due(self) -> bool:
        """Whether the room has grown so much that the server should know."""
        grown = (self._window_size() - self._told_size) << self.scale
        return grown > 0 and grown >= self.capacity_bytes // 4

    def _window_size(self) -> int:
        return max(0, self.capacity_bytes - self._held_bytes) >> self.scale

    # ---- out

    def room(self) -> int:
        """Bytes of payload that the next sequenced frame may have; below 2 means wait.

        A message is cut to it only if half of the server's window is free: see `may_cut`.
        """
        return min(self._free() - HEADER.size - (4 if self.crc_out else 0), PAYLOAD_BYTES_MAX)

    def may_cut(self) -> bool:
        """No crumbs into a nearly full window."""
        return self.room() == PAYLOAD_BYTES_MAX or self._free() * 2 >= self._peer_window()

    def _peer_window(self) -> int:
        return self._peer_size << self.peer_scale

    def _free(self) -> int:
        return self._peer_window() - self._in_flight_bytes

    def frame(self, kind: Kind, payload: bytes = b"") -> bytes:
        """The next frame to write, with every number up to date."""
        if kind in SEQUENCED:
            self._sent_seq = (self._sent_seq + 1) & U32_MAX
        self._unacked_bytes = self._unacked_frames = 0
        self._told_size = self._window_size()
        sequence = self._sent_seq, self._received_seq, self._told_size
        frame = encode(kind, *sequence, payload, crc=self.crc_out)
        if kind in SEQUENCED:
            self._in_flight.append(len(frame))
            self._in_flight_bytes += len(frame)
        return frame


def scale_of(capacity_bytes: int) -> int:
    """The smallest scale with which the window of this capacity fits 16 bits."""
    scale = max(0, (capacity_bytes >> 16).bit_length())
    if scale > SCALE_MAX:
        largest = U16_MAX << SCALE_MAX
        raise ValueError(f"window_bytes = {capacity_bytes}: at most {largest} are possible")
    return scale
