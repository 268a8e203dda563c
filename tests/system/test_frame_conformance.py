"""RFC 6455 and RFC 7692 on the bidirectional endpoint, in both encodings, compressed and not: a
library judges each frame that comes, and sends frames; each rule is broken past it."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode

from tests.support.frame_peer import DEFLATE, FramePeer
from tests.support.gateway import Gateway, running_gateway
from tests.support.raw_websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    TEXT,
    RawWebSocket,
    frame,
    head,
)
from tests.support.violations import MESSAGE_BYTES_MAX, RESERVED, VIOLATIONS, Violation
from tests.support.waiting import wait_for

CHANNEL = "public:frames"
RSV1 = 0x40

SECTIONS = {
    "client": {"allow_anonymous": True},
    "websocket": {"compression": True, "compression_bytes_min": 100},
    "workers": {"count": 1},
}

ENCODINGS = ["json", "protobuf"]
EXTENSIONS = [pytest.param([], id="plain"), pytest.param(DEFLATE, id="deflate")]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(SECTIONS) as running:
        yield running


@pytest.fixture(params=EXTENSIONS)
def extensions(request: pytest.FixtureRequest) -> list[ClientPerMessageDeflateFactory]:
    found: list[ClientPerMessageDeflateFactory] = request.param
    return found


@pytest.fixture(params=ENCODINGS)
def peer(
    request: pytest.FixtureRequest,
    gateway: Gateway,
    extensions: list[ClientPerMessageDeflateFactory],
) -> Iterator[FramePeer]:
    """A connection of each encoding, with and without compression."""
    with FramePeer(gateway.http_port, request.param, extensions) as opened:
        assert bool(opened.protocol.extensions) == bool(extensions)
        yield opened


@pytest.fixture
def deflated(gateway: Gateway) -> Iterator[FramePeer]:
    with FramePeer(gateway.http_port, "json", DEFLATE) as opened:
        assert opened.protocol.extensions
        yield opened


def published_text(reply: dict[str, Any]) -> str:
    data = reply["push"]["pub"]["data"]
    if isinstance(data, str):
        # The classes of Protobuf show bytes in Base64.
        data = json.loads(base64.b64decode(data))
    text: str = data["text"]
    return text


def compressed(data: bytes) -> bytes:
    """As RFC 7692 section 7.2.1 has it."""
    deflate = zlib.compressobj(wbits=-15)
    return (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(
        b"\x00\x00\xff\xff"
    )


# ---- messages


@pytest.mark.parametrize("size", [0, 40, 99, 100, 1000, 40_000, 65_000])
def test_every_length_of_a_publication_arrives(
    gateway: Gateway, peer: FramePeer, size: int
) -> None:
    peer.connect(CHANNEL)
    # Twice: no message may lean on what the one before it has taught the client's decompressor.
    for text in ["κόσμε 🌊 " + "x" * size, "κόσμε 🌊 " + "x" * size]:
        gateway.publish(CHANNEL, {"text": text})
        assert published_text(peer.read_reply()) == text


@pytest.mark.parametrize("pieces", [1, 2, 1000])
def test_a_message_may_come_in_fragments(peer: FramePeer, pieces: int) -> None:
    peer.send({"id": 7, "connect": {"name": "κόσμε" * 10}}, pieces=pieces)
    assert int(peer.read_reply()["id"]) == 7


def test_a_ping_between_fragments_is_answered_before_the_message_ends(peer: FramePeer) -> None:
    message = peer.encoded({"id": 1, "connect": {}})
    first = FIN | peer.opcode
    peer.send_raw(frame(peer.opcode, message[:3]) + frame(FIN | PING, b"in between"))
    answer = peer.read_frame()
    assert (answer.opcode, bytes(answer.data)) == (Opcode.PONG, b"in between")
    peer.send_raw(frame(CONTINUATION) + frame(FIN | PONG) + frame(FIN | CONTINUATION, message[3:]))
    assert "connect" in peer.read_reply()
    # And one that is whole is taken after one that was not.
    peer.send_raw(frame(first, peer.encoded({"id": 2, "subscribe": {"channel": CHANNEL}})))
    assert "subscribe" in peer.read_reply()


def test_frames_that_come_byte_by_byte_are_understood(peer: FramePeer) -> None:
    for byte in frame(FIN | peer.opcode, peer.encoded({"id": 1, "connect": {}})):
        peer.send_raw(bytes([byte]))
    assert "connect" in peer.read_reply()


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(125))])
def test_a_ping_is_answered_with_its_payload(peer: FramePeer, payload: bytes) -> None:
    peer.send_raw(frame(FIN | PING, payload))
    answer = peer.read_frame()
    assert (answer.opcode, bytes(answer.data)) == (Opcode.PONG, payload)


def test_the_kind_of_a_message_is_not_held_against_a_client(gateway: Gateway) -> None:
    for encoding, opcode in [("json", BINARY), ("protobuf", TEXT)]:
        with FramePeer(gateway.http_port, encoding) as peer:
            peer.send_raw(frame(FIN | opcode, peer.encoded({"id": 1, "connect": {}})))
            assert "connect" in peer.read_reply()


def filled(peer: FramePeer, size: int) -> bytes:
    """A message of commands of exactly `size` bytes."""
    command = {"id": 1, "connect": {"name": ""}}
    around = len(peer.encoded(command))
    while True:
        command["connect"] = {"name": "x" * (size - around)}
        message = peer.encoded(command)
        if len(message) == size:
            return message
        around += len(message) - size


@pytest.mark.parametrize("cut", [0, 30_000])
def test_a_message_at_the_limit_is_taken_and_one_over_it_is_not(
    gateway: Gateway, peer: FramePeer, cut: int
) -> None:
    message = filled(peer, MESSAGE_BYTES_MAX)
    if cut:
        peer.send_raw(frame(peer.opcode, message[:cut]))
        peer.send_raw(frame(FIN | CONTINUATION, message[cut:]))
    else:
        peer.send_raw(frame(FIN | peer.opcode, message))
    assert "connect" in peer.read_reply()
    peer.send_raw(frame(FIN | peer.opcode, filled(peer, MESSAGE_BYTES_MAX + 1)))
    assert peer.read_close() == (1009, "message size limit exceeded")


# ---- closing


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        *(struct.pack("!H", code) for code in [1000, 1001, 1003, 1007, 1011, 3000, 3999, 4999]),
        struct.pack("!H", 1000) + b"x" * 123,
        struct.pack("!H", 1000) + "κόσμε".encode(),
    ],
)
def test_a_close_is_answered_with_its_own_code(peer: FramePeer, payload: bytes) -> None:
    peer.connect(CHANNEL)
    peer.send_raw(frame(FIN | CLOSE, payload) + frame(FIN | PING, b"too late"))
    code, reason = peer.read_close()
    assert code == (struct.unpack("!H", payload[:2])[0] if payload else 1005)
    assert reason == ""


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000])
def test_a_close_code_that_may_not_be_sent_is_a_protocol_error(peer: FramePeer, code: int) -> None:
    peer.send_raw(frame(FIN | CLOSE, struct.pack("!H", code)))
    assert peer.read_close()[0] == 1002


def test_a_refusal_of_the_dialect_is_told_by_the_close_frame_alone(peer: FramePeer) -> None:
    peer.connect()
    peer.send_raw(frame(FIN | peer.opcode))
    assert peer.read_close() == (3501, "bad request")


def test_nothing_is_sent_after_the_close(gateway: Gateway, peer: FramePeer) -> None:
    peer.connect(CHANNEL)
    peer.send_raw(frame(FIN | 0xF))
    gateway.publish(CHANNEL, {"text": "x"})
    assert peer.read_close()[0] == 1002
    # The library refuses frames after a close; those before it are pings and publications.
    assert peer.protocol.parser_exc is None or isinstance(peer.protocol.parser_exc, EOFError)


# ---- what RFC 6455 forbids


@pytest.mark.parametrize("violation", VIOLATIONS, ids=lambda violation: violation[0])
def test_a_broken_rule_closes_with_its_code_and_is_counted(
    gateway: Gateway, peer: FramePeer, violation: Violation
) -> None:
    _, data, code, name = violation
    metric = f'closes_total{{reason="{name}"}}'
    count_before = gateway.totals().get(metric, 0)
    peer.connect(CHANNEL)
    peer.send_raw(data)
    assert peer.read_close()[0] == code
    wait_for(lambda: gateway.totals()[metric] == count_before + 1, f"{metric} is counted")


# ---- compression


def offer(**parameters: Any) -> list[ClientPerMessageDeflateFactory]:
    return [ClientPerMessageDeflateFactory(**parameters)]


@pytest.mark.parametrize(
    ("offers", "agreed"),
    [
        (offer(), True),
        (offer(client_max_window_bits=True), True),
        (offer(client_max_window_bits=9), True),
        (offer(server_no_context_takeover=True, client_no_context_takeover=True), True),
        (offer(server_max_window_bits=15), True),
        (offer(server_max_window_bits=14), True),
        (offer(server_max_window_bits=9), True),
        (offer(server_max_window_bits=8), False),
        (offer(server_max_window_bits=8) + offer(), True),
    ],
)
def test_compression_is_agreed_to_where_an_offer_can_be_met(
    gateway: Gateway, offers: list[ClientPerMessageDeflateFactory], agreed: bool
) -> None:
    with FramePeer(gateway.http_port, "json", offers) as peer:
        assert bool(peer.protocol.extensions) == agreed
        peer.connect(CHANNEL)
        # What comes again does so beyond the smallest windows, too.
        text = "".join(f"tide {number:x} " for number in range(0, 70_000, 997)) * 3
        for _ in range(2):
            gateway.publish(CHANNEL, {"text": text})
            assert published_text(peer.read_reply()) == text


def test_a_message_is_compressed_once_however_many_get_it(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway(
        {
            "client": {"allow_anonymous": True},
            "websocket": {"compression": True},
            "workers": {"count": 1},
        }
    )

    def compressions() -> int:
        return gateway.totals()["compressions_total"]

    with ExitStack() as stack:
        peers = [
            stack.enter_context(FramePeer(gateway.http_port, "json", DEFLATE)) for _ in range(50)
        ]
        for peer in peers:
            peer.connect(CHANNEL)
        before = compressions()
        gateway.publish(CHANNEL, {"text": "tide " * 100})
        assert {published_text(peer.read_reply()) for peer in peers} == {"tide " * 100}
        wait_for(lambda: compressions() > before, "it is counted")
        assert compressions() == before + 1
        # Who has room for less needs another frame, and all of those share it.
        for offers in [offer(server_max_window_bits=bits) for bits in (9, 12)]:
            peer = stack.enter_context(FramePeer(gateway.http_port, "json", offers))
            peer.connect(CHANNEL)
            peers.append(peer)
        before = compressions()
        gateway.publish(CHANNEL, {"text": "ebb " * 100})
        assert {published_text(peer.read_reply()) for peer in peers} == {"ebb " * 100}
        wait_for(lambda: compressions() == before + 2, "both are counted")


def test_only_messages_of_the_configured_size_are_compressed(gateway: Gateway) -> None:
    key = base64.b64encode(b"sixteen bytes ok").decode()
    headers = {
        "Host": "tide.example",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Extensions": "permessage-deflate",
    }
    with RawWebSocket(gateway.http_port) as client:
        client.send(head("GET /connection/websocket HTTP/1.1", headers))
        assert client.read_response()[0] == 101
        commands = b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"%s"}}'
        texts: dict[bool, list[str]] = {False: [], True: []}

        def read_until(word: str) -> None:
            text = ""
            while word not in text:
                first, payload = client.read_any_frame()
                is_compressed = bool(first & RSV1)
                if is_compressed:
                    payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
                text = payload.decode()
                texts[is_compressed].append(text)

        client.send(frame(FIN | TEXT, commands % CHANNEL.encode()))
        read_until('"subscribe"')
        gateway.publish(CHANNEL, {"text": "short"})
        gateway.publish(CHANNEL, {"text": "long" * 50})
        read_until("long")
        assert any("short" in text for text in texts[False])
        assert not any("long" in text for text in texts[False])
        assert all(len(text) >= 100 for text in texts[True])


def test_a_compressed_message_may_come_in_fragments_with_pings_between(
    deflated: FramePeer,
) -> None:
    payload = compressed(deflated.encoded({"id": 1, "connect": {"name": "tide" * 100}}))
    deflated.send_raw(
        frame(RSV1 | TEXT, payload[:5])
        + frame(FIN | PING, b"in between")
        + frame(CONTINUATION, payload[5:10])
        + frame(FIN | CONTINUATION, payload[10:])
    )
    answer = deflated.read_frame()
    assert (answer.opcode, bytes(answer.data)) == (Opcode.PONG, b"in between")
    assert "connect" in deflated.read_reply()


BROKEN_COMPRESSION: list[tuple[str, bytes, int]] = [
    ("a compressed ping", frame(FIN | RSV1 | PING, b"x"), 1002),
    ("a compressed close", frame(FIN | RSV1 | CLOSE), 1002),
    (
        "the bit on a continuation",
        frame(RSV1 | TEXT, b"\x00") + frame(FIN | RSV1 | CONTINUATION),
        1002,
    ),
    ("another bit beside it", frame(FIN | RSV1 | 0x20 | TEXT, b"\x00"), 1002),
    ("what is not compressed data", frame(FIN | RSV1 | TEXT, b"\xff\xff\xff"), 1002),
    ("text that is not UTF-8 inside", frame(FIN | RSV1 | TEXT, compressed(b"\xc3\x28")), 1007),
    ("a bomb", frame(FIN | RSV1 | TEXT, compressed(b" " * 16_000_000)[:60_000]), 1009),
    (
        "one byte over the limit inside",
        frame(FIN | RSV1 | BINARY, compressed(bytes(MESSAGE_BYTES_MAX + 1))),
        1009,
    ),
    (
        "a bomb in fragments",
        frame(RSV1 | TEXT, compressed(b" " * 1_000_000)) + frame(FIN | CONTINUATION, b"\x00"),
        1009,
    ),
]


@pytest.mark.parametrize(
    ("data", "code"),
    [pytest.param(*broken[1:], id=broken[0]) for broken in BROKEN_COMPRESSION],
)
def test_a_broken_rule_of_compression_closes_with_its_code(
    deflated: FramePeer, data: bytes, code: int
) -> None:
    deflated.connect()
    deflated.send_raw(data)
    assert deflated.read_close()[0] == code


def test_the_bit_of_compression_is_forbidden_to_who_did_not_agree(gateway: Gateway) -> None:
    with FramePeer(gateway.http_port) as peer:
        peer.connect()
        peer.send_raw(RESERVED[1])
        assert peer.read_close()[0] == RESERVED[2]


def test_a_gateway_without_compression_agrees_to_none(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway({"client": {"allow_anonymous": True}, "workers": {"count": 1}})
    with FramePeer(gateway.http_port, "json", DEFLATE) as peer:
        assert peer.protocol.extensions == []
        peer.connect(CHANNEL)
        gateway.publish(CHANNEL, {"text": "tide " * 100})
        assert published_text(peer.read_reply()) == "tide " * 100


def is_ping(seen: Frame) -> bool:
    return seen.opcode is Opcode.PING


def test_native_pings_replace_those_of_the_dialect_where_a_client_asks(
    start_gateway: Callable[..., Gateway],
) -> None:
    sections: dict[str, dict[str, Any]] = {
        "client": {"allow_anonymous": True},
        "websocket": {"ping_interval_s": 3, "pong_timeout_s": 2.5},
        "workers": {"count": 1},
    }
    gateway = start_gateway(sections)
    query = "?cf_ws_frame_ping_pong=true"
    with FramePeer(gateway.http_port, query=query) as peer:
        connected = peer.connect()
        assert "ping" not in connected and "pong" not in connected
        # The library answers each; a second one shows that the first answer was taken.
        for _ in range(2):
            assert is_ping(peer.read_frame())
            peer.flush()
    with FramePeer(gateway.http_port) as peer:
        connected = peer.connect()
        assert (connected["ping"], connected["pong"]) == (3, True)
        assert bytes(peer.read_frame().data) == b"{}"
        assert peer.read_close() == (3012, "no pong")


def test_a_reload_between_the_fragments_of_a_compressed_message_changes_nothing(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway(SECTIONS)
    with FramePeer(gateway.http_port, "protobuf", DEFLATE) as peer:
        peer.connect(CHANNEL)
        payload = compressed(peer.encoded({"id": 9, "unsubscribe": {"channel": CHANNEL}}))
        peer.send_raw(frame(RSV1 | BINARY, payload[:5]) + frame(CONTINUATION, payload[5:7])[:4])
        moved = gateway.control("reload")
        assert sum(slot["closed"] for slot in moved["slots"]) == 0
        gateway.publish(CHANNEL, {"text": "tide " * 100})
        assert published_text(peer.read_reply()) == "tide " * 100
        rest = frame(CONTINUATION, payload[5:7])[4:] + frame(FIN | CONTINUATION, payload[7:])
        peer.send_raw(rest)
        assert int(peer.read_reply()["id"]) == 9
