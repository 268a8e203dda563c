"""What is inside the frames (workers/WIRE_PROTOCOL.md sections 3 to 12).

Parsers raise `Violation`: 4510 for a payload that its layout does not explain, 4512 for a varint,
4513 for a text. They ignore what follows the last field that they know.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.client.frames import PAYLOAD_BYTES_MAX, CloseCode, Violation
from gateway.errors import ProtocolError

MARKER_LAST = 0
MARKER_MORE = 1
# One byte of a frame's payload is the marker.
PIECE_BYTES_MAX = PAYLOAD_BYTES_MAX - 1
# What a message may have around its data, on top of `message_bytes_max`.
FIELDS_BYTES_MAX = 65 * 1024
SCALE_MAX = 14
U16_MAX = 0xFFFF
U32_MAX = 0xFFFFFFFF
U64_MAX = 0xFFFFFFFFFFFFFFFF

_CRC = 1
_RECOVER = 1
_RECOVERABLE = 1
_RECOVERED = 2
_BINARY = 1
_TAGS = 2
_IDEMPOTENCY_KEY = 4
_TEMPORARY = 1


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a channel's stream: the publication with this offset is the last one known."""

    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class Connect:
    crc: bool
    window_scale: int
    name: str = ""
    token: str = ""

    def encode(self) -> bytes:
        head = varint(_CRC if self.crc else 0) + varint(self.window_scale)
        return head + text(self.name) + text(self.token)

    @classmethod
    def parse(cls, payload: bytes) -> Connect:
        fields = Fields(payload)
        crc = bool(fields.varint() & _CRC)
        return cls(crc, fields.number(SCALE_MAX), fields.text(), fields.text())


@dataclass(frozen=True, slots=True)
class Connected:
    crc: bool
    window_scale: int
    heartbeat_interval_ms: int
    heartbeat_timeout_ms: int
    message_bytes_max: int
    client: str
    version: str

    def encode(self) -> bytes:
        numbers = [_CRC if self.crc else 0, self.window_scale, self.heartbeat_interval_ms]
        numbers += [self.heartbeat_timeout_ms, self.message_bytes_max]
        return b"".join(map(varint, numbers)) + text(self.client) + text(self.version)

    @classmethod
    def parse(cls, payload: bytes) -> Connected:
        fields = Fields(payload)
        crc = bool(fields.varint() & _CRC)
        scale = fields.number(SCALE_MAX)
        interval, timeout, message_bytes_max = fields.varint(), fields.varint(), fields.varint()
        client, version = fields.text(), fields.text()
        return cls(crc, scale, interval, timeout, message_bytes_max, client, version)


@dataclass(frozen=True, slots=True)
class Subscribe:
    request: int
    channel: str
    since: Position | None = None

    def encode(self) -> bytes:
        flags = 0 if self.since is None else _RECOVER
        since = b"" if self.since is None else position(self.since)
        return varint(self.request) + varint(flags) + text(self.channel) + since

    @classmethod
    def parse(cls, payload: bytes) -> Subscribe:
        fields = Fields(payload)
        request, flags, channel = fields.request(), fields.varint(), fields.text()
        return cls(request, channel, fields.position() if flags & _RECOVER else None)


@dataclass(frozen=True, slots=True)
class Subscribed:
    request: int
    alias: int
    recoverable: bool
    recovered: bool
    top: Position

    def encode(self) -> bytes:
        flags = (_RECOVERABLE if self.recoverable else 0) | (_RECOVERED if self.recovered else 0)
        return varint(self.request) + varint(flags) + varint(self.alias) + position(self.top)

    @classmethod
    def parse(cls, payload: bytes) -> Subscribed:
        fields = Fields(payload)
        request, flags, alias = fields.request(), fields.varint(), fields.number(U32_MAX)
        recoverable, recovered = bool(flags & _RECOVERABLE), bool(flags & _RECOVERED)
        return cls(request, alias, recoverable, recovered, fields.position())


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    request: int
    alias: int

    def encode(self) -> bytes:
        return varint(self.request) + varint(self.alias)

    @classmethod
    def parse(cls, payload: bytes) -> Unsubscribe:
        fields = Fields(payload)
        return cls(fields.request(), fields.number(U32_MAX))


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    # 0: the server's own decision.
    request: int
    alias: int
    code: int
    reason: str

    def encode(self) -> bytes:
        numbers = varint(self.request) + varint(self.alias) + varint(self.code)
        return numbers + text(self.reason)

    @classmethod
    def parse(cls, payload: bytes) -> Unsubscribed:
        fields = Fields(payload)
        request, alias = fields.number(U32_MAX), fields.number(U32_MAX)
        return cls(request, alias, fields.number(U16_MAX), fields.text())


@dataclass(frozen=True, slots=True)
class Publish:
    """A whole message to publish; `cut` makes the payloads of its frames."""

    request: int
    channel: str
    data: bytes
    binary: bool = False
    # Text of a JSON object, or empty.
    tags: str = ""
    idempotency_key: str = ""

    def encode(self) -> bytes:
        flags = (_BINARY if self.binary else 0) | (_TAGS if self.tags else 0)
        flags |= _IDEMPOTENCY_KEY if self.idempotency_key else 0
        tags = text(self.tags) if self.tags else b""
        key = text(self.idempotency_key) if self.idempotency_key else b""
        return varint(self.request) + varint(flags) + text(self.channel) + tags + key + self.data

    @classmethod
    def parse(cls, message: bytes) -> Publish:
        fields = Fields(message)
        request, flags = fields.request(), fields.flags(_BINARY | _TAGS | _IDEMPOTENCY_KEY)
        channel = fields.text()
        tags = fields.text() if flags & _TAGS else ""
        key = fields.text() if flags & _IDEMPOTENCY_KEY else ""
        return cls(request, channel, fields.rest(), bool(flags & _BINARY), tags, key)


@dataclass(frozen=True, slots=True)
class Published:
    request: int
    position: Position

    def encode(self) -> bytes:
        return varint(self.request) + position(self.position)

    @classmethod
    def parse(cls, payload: bytes) -> Published:
        fields = Fields(payload)
        return cls(fields.request(), fields.position())


@dataclass(frozen=True, slots=True)
class Delivery:
    """A whole published message."""

    alias: int
    offset: int
    data: bytes
    binary: bool = False
    # Text of a JSON object, or empty.
    tags: str = ""
    # Bytes of its frames: what it takes of the window until it is consumed.
    wire_bytes: int = field(default=0, compare=False)

    def encode(self) -> bytes:
        flags = (_BINARY if self.binary else 0) | (_TAGS if self.tags else 0)
        tags = text(self.tags) if self.tags else b""
        return varint(self.alias) + varint(self.offset) + varint(flags) + tags + self.data

    @classmethod
    def parse(cls, message: bytes, wire_bytes: int = 0) -> Delivery:
        fields = Fields(message)
        alias, offset = fields.number(U32_MAX), fields.varint()
        flags = fields.flags(_BINARY | _TAGS)
        tags = fields.text() if flags & _TAGS else ""
        return cls(alias, offset, fields.rest(), bool(flags & _BINARY), tags, wire_bytes)


@dataclass(frozen=True, slots=True)
class Failure:
    """ERROR: a request was refused."""

    request: int
    code: int
    temporary: bool
    message: str

    def encode(self) -> bytes:
        numbers = varint(self.request) + varint(self.code)
        return numbers + varint(_TEMPORARY if self.temporary else 0) + text(self.message)

    @classmethod
    def parse(cls, payload: bytes) -> Failure:
        fields = Fields(payload)
        request, code = fields.request(), fields.number(U16_MAX)
        return cls(request, code, bool(fields.varint() & _TEMPORARY), fields.text())


@dataclass(frozen=True, slots=True)
class Goodbye:
    """CLOSE: the last frame of a side."""

    code: int
    reason: str

    def encode(self) -> bytes:
        return varint(self.code) + text(self.reason)

    @classmethod
    def parse(cls, payload: bytes) -> Goodbye:
        fields = Fields(payload)
        return cls(fields.number(U16_MAX), fields.text())


class Reassembly:
    """Puts messages together from the payloads of sequenced frames."""

    def __init__(self) -> None:
        self._pieces = bytearray()
        self._wire_bytes = 0

    def push(self, payload: bytes, wire_bytes: int, bytes_max: int) -> tuple[bytes, int] | None:
        """The whole message and the bytes of its frames, if this payload ends one."""
        if len(payload) < 2 or payload[0] > MARKER_MORE:
            raise Violation(CloseCode.BAD_FRAGMENT, "bad fragment")
        if len(self._pieces) + len(payload) - 1 > bytes_max:
            raise Violation(CloseCode.MESSAGE_TOO_BIG, "message size limit exceeded")
        if payload[0] == MARKER_LAST and not self._pieces:
            return payload[1:], wire_bytes
        self._pieces += payload[1:]
        self._wire_bytes += wire_bytes
        if payload[0] == MARKER_MORE:
            return None
        whole = bytes(self._pieces), self._wire_bytes
        self._pieces = bytearray()
        self._wire_bytes = 0
        return whole


class Fields:
    """Reads the fields of a payload one after the other."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def varint(self) -> int:
        value = shift = 0
        for byte in self._payload[self._at : self._at + 10]:
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > U64_MAX or (shift and not byte):
                    break
                return value
            shift += 7
        raise Violation(CloseCode.BAD_VARINT, "bad varint")

    def number(self, maximum: int) -> int:
        value = self.varint()
        if value > maximum:
            raise Violation(CloseCode.BAD_PAYLOAD, "bad payload")
        return value

    def request(self) -> int:
        request = self.number(U32_MAX)
        if request == 0:
            raise Violation(CloseCode.BAD_PAYLOAD, "bad payload")
        return request

    def flags(self, known: int) -> int:
        flags = self.varint()
        if flags & ~known:
            raise Violation(CloseCode.BAD_PAYLOAD, "bad payload")
        return flags

    def text(self) -> str:
        end = self.varint() + self._at
        if end > len(self._payload):
            raise Violation(CloseCode.BAD_PAYLOAD, "bad payload")
        raw = self._payload[self._at : end]
        self._at = end
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise Violation(CloseCode.BAD_TEXT, "text is not utf-8") from None

    def position(self) -> Position:
        return Position(self.text(), self.varint())

    def rest(self) -> bytes:
        return self._payload[self._at :]


def varint(value: int) -> bytes:
    """Shortest LEB128 of `value`, 0 to 2^64 - 1."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def text(value: str) -> bytes:
    """Raises `ProtocolError` for a string that is not Unicode text (a lone surrogate)."""
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise ProtocolError(f"{value!a} is not Unicode text", remedy="check its source") from None
    return varint(len(raw)) + raw


def position(value: Position) -> bytes:
    return text(value.epoch) + varint(value.offset)
