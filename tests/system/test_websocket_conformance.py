"""RFC 6455 as a client meets it: a library's view, and each rule broken on purpose."""

from __future__ import annotations

import json
import struct
import urllib.parse
from collections.abc import Callable, Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.gateway import Gateway
from tests.support.raw_websocket import (
    CLOSE,
    CONTINUATION,
    FIN,
    HANDSHAKE,
    PATH,
    PING,
    PONG,
    TEXT,
    RawWebSocket,
    frame,
    head,
)
from tests.support.violations import MESSAGE_BYTES_MAX, RESERVED, VIOLATIONS
from tests.support.waiting import wait_for

CHANNEL = "public:conformance"

GOOD_LINE = f"GET {PATH} HTTP/1.1"


@pytest.fixture
def raw(gateway: Gateway) -> Iterator[RawWebSocket]:
    with RawWebSocket(gateway.http_port) as client:
        yield client


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in HANDSHAKE.items() if key != name}


# ---- the library's view


def test_a_library_subscribes_receives_and_says_goodbye(gateway: Gateway) -> None:
    # It offers permessage-deflate by default, which is declined.
    with connect(gateway.websocket_url, proxy=None) as client:
        assert client.protocol.extensions == []
        assert client.subprotocol is None
        client.send(json.dumps({"subs": {CHANNEL: {}}}))
        reply = json.loads(client.recv(20))["connect"]
        assert reply["client"] and CHANNEL in reply["subs"]
        published = gateway.publish(CHANNEL, {"text": "κόσμε 🌊"})
        push = json.loads(client.recv(20))
        assert push["channel"] == CHANNEL
        assert push["pub"] == {"data": {"text": "κόσμε 🌊"}, "offset": published["offset"]}
        assert client.ping(b"there?").wait(20)
        client.close(4000, "enough")
    assert client.close_code == 4000


def test_a_library_may_send_its_request_in_fragments(gateway: Gateway) -> None:
    with connect(gateway.websocket_url, proxy=None, compression=None) as client:
        request = json.dumps({"name": "κόσμε", "subs": {CHANNEL: {}}}, ensure_ascii=False)
        client.send(request[start : start + 5] for start in range(0, len(request), 5))
        assert CHANNEL in json.loads(client.recv(20))["connect"]["subs"]


def test_a_library_is_told_why_it_is_closed(gateway: Gateway) -> None:
    with connect(gateway.websocket_url, proxy=None) as client:
        client.send("not json")
        assert json.loads(client.recv(20)) == {
            "disconnect": {"code": 3501, "reason": "bad request"}
        }
        with pytest.raises(ConnectionClosed):
            client.recv(20)
        assert (client.close_code, client.close_reason) == (3501, "bad request")


@pytest.mark.parametrize("size", [0, 60, 1000, 65400, 65500])
def test_every_length_of_a_publication_arrives(gateway: Gateway, size: int) -> None:
    # Frame lengths of 7, 16 and 64 bits; the push adds some 60 bytes to the data.
    with RawWebSocket(gateway.http_port) as client:
        client.connect(CHANNEL)
        gateway.publish(CHANNEL, "x" * size)
        assert client.read_push()["pub"]["data"] == "x" * size


# ---- the upgrade


@pytest.mark.parametrize(
    ("status", "request_line", "headers"),
    [
        (400, GOOD_LINE, without("Upgrade")),
        (400, GOOD_LINE, without("Connection")),
        (400, GOOD_LINE, without("Sec-WebSocket-Key")),
        (400, GOOD_LINE, without("Host")),
        (400, GOOD_LINE, HANDSHAKE | {"Sec-WebSocket-Key": "c2hvcnQ="}),
        (400, "NONSENSE", {}),
        (403, GOOD_LINE, HANDSHAKE | {"Origin": "https://elsewhere.example"}),
        (404, "GET /nowhere HTTP/1.1", HANDSHAKE),
        (405, f"POST {PATH} HTTP/1.1", HANDSHAKE),
        (426, GOOD_LINE, HANDSHAKE | {"Sec-WebSocket-Version": "8"}),
        (431, GOOD_LINE, HANDSHAKE | {"Cookie": "x" * 9000}),
        (431, GOOD_LINE, HANDSHAKE | {f"X-{number}": "y" for number in range(100)}),
        (505, f"GET {PATH} HTTP/1.0", HANDSHAKE),
    ],
)
def test_a_handshake_that_is_refused_is_told_why(
    gateway: Gateway, raw: RawWebSocket, status: int, request_line: str, headers: dict[str, str]
) -> None:
    rejects_before = http_rejects(gateway)
    raw.send(head(request_line, headers))
    answer, fields, body = raw.read_response()
    assert answer == status and body
    assert fields["connection"] == "close"
    if status == 405:
        assert fields["allow"] == "GET"
    if status == 426:
        assert fields["sec-websocket-version"] == "13"
    raw.read_end()
    wait_for(lambda: http_rejects(gateway) == rejects_before + 1, "the refusal is counted")


def http_rejects(gateway: Gateway) -> int:
    totals = gateway.totals()
    return sum(count for name, count in totals.items() if name.startswith("http_rejects_total"))


def test_a_handshake_that_comes_byte_by_byte_is_accepted(raw: RawWebSocket) -> None:
    *bytes_before, last = head(GOOD_LINE, HANDSHAKE)
    for byte in bytes_before:
        raw.send(bytes([byte]))
    raw.send(bytes([last]))
    assert raw.read_response()[0] == 101


def test_the_connect_request_may_come_with_the_handshake(raw: RawWebSocket) -> None:
    raw.open(after=frame(FIN | TEXT, json.dumps({"subs": {CHANNEL: {}}}).encode()))
    assert CHANNEL in raw.read_push()["connect"]["subs"]


def test_the_connect_request_may_come_in_the_query(raw: RawWebSocket) -> None:
    raw.open("?" + urllib.parse.urlencode({"cf_connect": json.dumps({"subs": {CHANNEL: {}}})}))
    assert CHANNEL in raw.read_push()["connect"]["subs"]


def test_a_handshake_that_never_ends_is_ended(start_gateway: Callable[..., Gateway]) -> None:
    limits = {"handshake_timeout_s": 2, "close_timeout_s": 1}
    gateway = start_gateway({"limits": limits, "workers": {"count": 1}})
    with RawWebSocket(gateway.http_port) as silent, RawWebSocket(gateway.http_port) as half:
        half.send(head(GOOD_LINE, HANDSHAKE)[:-2])
        assert half.read_response()[0] == 408
        half.read_end()
        # Whoever has not said a word is not owed one; what counts is that it ends.
        wait_for(lambda: gateway.status()["workers"][0]["connections"] == 0, "both have ended")
        silent.send(b"")
    with RawWebSocket(gateway.http_port) as idle:
        idle.open()
        assert idle.read_close() == (3502, "stale")


# ---- frames


def test_frames_that_come_byte_by_byte_are_understood(raw: RawWebSocket) -> None:
    raw.open()
    for byte in frame(FIN | TEXT, json.dumps({"subs": {CHANNEL: {}}}).encode()):
        raw.send(bytes([byte]))
    assert CHANNEL in raw.read_push()["connect"]["subs"]


def test_a_ping_between_fragments_is_answered_before_the_message_ends(raw: RawWebSocket) -> None:
    raw.open()
    raw.send(frame(TEXT, b'{"subs":') + frame(FIN | PING, b"in between"))
    assert raw.read_frame() == (PONG, b"in between")
    raw.send(frame(CONTINUATION, b"") + frame(FIN | PONG) + frame(FIN | CONTINUATION, b"{}}"))
    assert "connect" in raw.read_push()


def test_a_message_at_the_limit_is_taken(raw: RawWebSocket) -> None:
    raw.open()
    around = len('{"data":""}')
    data = "x" * (MESSAGE_BYTES_MAX - around)
    raw.send(frame(FIN | TEXT, b'{"data":"' + data.encode() + b'"}'))
    assert "connect" in raw.read_push()


def test_half_a_frame_does_not_keep_a_connection_alive(
    start_gateway: Callable[..., Gateway],
) -> None:
    sections = {"websocket": {"ping_interval_s": 2, "pong_timeout_s": 1}, "workers": {"count": 1}}
    with RawWebSocket(start_gateway(sections).http_port) as client:
        assert client.connect(CHANNEL)["ping"] == 2
        client.send(frame(FIN | PONG, b"a pong that never ends")[:-1])
        assert client.read_close() == (3012, "no pong")


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"", (None, "")),
        (struct.pack("!H", 1000) + b"bye", (1000, "")),
        (struct.pack("!H", 4999), (4999, "")),
    ],
)
def test_a_close_is_answered_with_its_own_code(
    raw: RawWebSocket, payload: bytes, answer: tuple[int | None, str]
) -> None:
    raw.connect(CHANNEL)
    raw.send(frame(FIN | CLOSE, payload))
    assert raw.read_close() == answer
    raw.read_end()


@pytest.mark.parametrize(
    ("data", "code", "name"),
    [pytest.param(*violation[1:], id=violation[0]) for violation in [*VIOLATIONS, RESERVED]],
)
def test_a_broken_rule_closes_with_its_code_and_is_counted(
    gateway: Gateway, raw: RawWebSocket, data: bytes, code: int, name: str
) -> None:
    metric = f'closes_total{{reason="{name}"}}'
    count_before = gateway.totals().get(metric, 0)
    raw.connect(CHANNEL)
    raw.send(data)
    assert raw.read_close()[0] == code
    raw.send(frame(FIN | CLOSE, struct.pack("!H", code)))
    raw.read_end()
    wait_for(lambda: gateway.totals()[metric] == count_before + 1, f"{metric} is counted")


@pytest.mark.parametrize("way", ["query", "same packet"])
def test_a_refused_connect_request_never_costs_the_answer_to_the_upgrade(
    raw: RawWebSocket, way: str
) -> None:
    text = json.dumps({"subs": {"nowhere:a": {}}})
    if way == "query":
        raw.open("?" + urllib.parse.urlencode({"cf_connect": text}))
    else:
        raw.open(after=frame(FIN | TEXT, text.encode()))
    assert raw.read_push() == {"disconnect": {"code": 3501, "reason": "bad request"}}
    assert raw.read_close() == (3501, "bad request")


def test_a_goodbye_with_the_handshake_is_answered_after_the_upgrade(raw: RawWebSocket) -> None:
    raw.open(after=frame(FIN | CLOSE, struct.pack("!H", 1000)))
    assert raw.read_close()[0] == 1000


def test_a_token_that_nobody_can_verify_is_refused(raw: RawWebSocket) -> None:
    raw.open()
    raw.send(frame(FIN | TEXT, json.dumps({"token": "t0ken", "subs": {CHANNEL: {}}}).encode()))
    assert raw.read_push() == {"disconnect": {"code": 3500, "reason": "invalid token"}}
    assert raw.read_close() == (3500, "invalid token")


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", '{"subs":[]}', '{"subs":{"a":{"offset":-1}}}']
)
def test_a_bad_connect_request_is_told_so(raw: RawWebSocket, text: str) -> None:
    raw.open()
    raw.send(frame(FIN | TEXT, text.encode()))
    assert raw.read_push() == {"disconnect": {"code": 3501, "reason": "bad request"}}
    assert raw.read_close() == (3501, "bad request")


def test_a_client_that_never_answers_the_close_is_hung_up_on(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway({"limits": {"close_timeout_s": 1}, "workers": {"count": 1}})
    with RawWebSocket(gateway.http_port) as client:
        client.connect(CHANNEL)
        client.send(frame(FIN | 0xF))
        assert client.read_close()[0] == 1002
        client.read_end()


def test_a_vanished_client_is_counted_as_gone(gateway: Gateway) -> None:
    metric = 'closes_total{reason="connection_closed"}'
    count_before = gateway.totals().get(metric, 0)
    client = RawWebSocket(gateway.http_port)
    client.connect(CHANNEL)
    client.vanish()
    wait_for(lambda: gateway.totals()[metric] == count_before + 1, f"{metric} is counted")
