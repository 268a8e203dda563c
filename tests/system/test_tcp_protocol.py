"""The binary protocol as clients meet it: its promises kept, and each rule broken on purpose."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Backoff, Client, Gap, Message, Position
from gateway.client.frames import HEADER, Frame, Kind
from gateway.client.payloads import (
    FIELDS_BYTES_MAX,
    Connect,
    Delivery,
    Failure,
    Goodbye,
    Publish,
    Published,
    Reassembly,
    Subscribe,
    Unsubscribe,
    Unsubscribed,
)
from gateway.errors import PublishError, SubscribeError
from tests.support.gateway import Gateway
from tests.support.waiting import wait_for
from tests.support.wire import TIMEOUT_S, RawWire, raw_wire

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).resolve().parents[1] / "vectors/tcp.json").read_text()
)
MESSAGE_BYTES_MAX = 65_536
REASONS = {
    4501: "bad_magic",
    4502: "bad_version",
    4503: "bad_type",
    4504: "bad_length",
    4505: "bad_checksum",
    4506: "bad_sequence",
    4507: "bad_acknowledgement",
    4508: "window_overrun",
    4509: "bad_fragment",
    4510: "bad_payload",
    4511: "unexpected_frame",
    4512: "bad_varint",
    4513: "bad_text",
}
# How long nothing must come to believe that nothing will. Too short hides a fault, never makes one.
QUIET_S = 0.3


@pytest.fixture
def raw(gateway: Gateway) -> Iterator[RawWire]:
    with raw_wire(gateway.tcp_port) as wire:
        yield wire


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with Client(f"127.0.0.1:{gateway.tcp_port}", name="tests") as connected:
        yield connected


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """A channel of the test's own."""
    return f"public:{request.node.name}"[:200]


def data_until_quiet(wire: RawWire, bytes_min: int = 0) -> list[Frame]:
    """The DATA frames that come until nothing comes any more; so much of them is waited for."""
    found: list[Frame] = []
    with contextlib.suppress(TimeoutError):
        while frame := wire.receive(QUIET_S if size_of(found) >= bytes_min else TIMEOUT_S):
            if frame.kind is Kind.DATA:
                found.append(frame)
    return found


def messages(found: list[Frame]) -> list[Delivery]:
    """The whole messages in a row of frames."""
    reassembly = Reassembly()
    bytes_max = MESSAGE_BYTES_MAX + FIELDS_BYTES_MAX
    whole = [reassembly.push(frame.payload, frame.wire_bytes, bytes_max) for frame in found]
    return [Delivery.parse(*one) for one in whole if one is not None]


def size_of(found: list[Frame]) -> int:
    return sum(frame.wire_bytes for frame in found)


def receive(subscription: Any, count: int) -> list[Message]:
    events = [subscription.receive(TIMEOUT_S) for _ in range(count)]
    assert all(isinstance(event, Message) for event in events), events
    return events


# ---- windows and acknowledgements


@pytest.mark.sending
def test_without_acknowledgements_a_client_gets_no_more_than_its_window(
    gateway: Gateway, raw: RawWire, channel: str
) -> None:
    raw.connect()
    raw.window_size = 600
    raw.subscribe(channel)
    for number in range(40):
        gateway.publish(channel, f"{number:-^50}")
    first = data_until_quiet(raw, 300)
    assert 300 <= size_of(first) <= 600, "and it makes use of it"
    found = list(first)
    while len(messages(found)) < 40:
        raw.send(Kind.ACK)
        more = data_until_quiet(raw, 1)
        assert 0 < size_of(more) <= 600
        found += more
    assert [json.loads(one.data).strip("-") for one in messages(found)] == [
        str(number) for number in range(40)
    ]
    assert [frame.seq for frame in found] == list(range(1, len(found) + 1))


@pytest.mark.sending
def test_a_closed_window_stops_data_but_not_answers(
    gateway: Gateway, raw: RawWire, channel: str
) -> None:
    raw.connect()
    raw.window_size = 0
    raw.subscribe(channel)
    raw.send(Kind.PUBLISH, b"\0" + Publish(7, channel, b'"mine"').encode())
    answer = Published.parse(raw.expect(Kind.PUBLISHED).payload)
    assert (answer.request, answer.position.offset) == (7, 1)
    assert data_until_quiet(raw) == []
    raw.window_size = 65_535
    raw.send(Kind.WINDOW_UPDATE)
    [delivery] = messages([raw.expect(Kind.DATA)])
    assert delivery.data == b'"mine"'


def test_acknowledgements_are_cumulative_and_ride_on_any_frame(
    gateway: Gateway, raw: RawWire, channel: str
) -> None:
    raw.connect()
    raw.window_size = 500
    raw.subscribe(channel)
    for number in range(20):
        gateway.publish(channel, f"{number:-^50}")
    found = data_until_quiet(raw, 251)
    held = size_of(found)
    # Acknowledging the first but not the others frees the first one's bytes only.
    raw.send(Kind.HEARTBEAT, ack_seq=1)
    more = data_until_quiet(raw)
    assert size_of(more) <= 500 - held + found[0].wire_bytes
    raw.send(Kind.SUBSCRIBE, Subscribe(2, f"{channel}-other").encode())
    raw.expect(Kind.SUBSCRIBED)
    assert size_of(data_until_quiet(raw, 251)) > 250, "one number has acknowledged all before it"


@pytest.mark.parametrize("scale", [0, 5])
def test_the_scale_multiplies_the_window(
    gateway: Gateway, raw: RawWire, channel: str, scale: int
) -> None:
    raw.connect(scale=scale)
    raw.window_size = 100
    raw.subscribe(channel)
    for _ in range(40):
        gateway.publish(channel, "x" * 150)
    size = size_of(data_until_quiet(raw, (100 << scale) // 2))
    assert (100 << scale) // 2 <= size <= 100 << scale


def test_the_server_acknowledges_publishes(raw: RawWire, channel: str) -> None:
    raw.connect()
    for number in range(1, 4):
        raw.send(Kind.PUBLISH, b"\0" + Publish(number, channel, b"1").encode())
        assert raw.expect(Kind.PUBLISHED).ack_seq == number


# ---- long messages


@pytest.mark.sending
@pytest.mark.parametrize("window", [500, 20_000, 65_535])
def test_a_message_longer_than_a_frame_or_the_window_comes_in_fragments(
    gateway: Gateway, raw: RawWire, channel: str, window: int
) -> None:
    raw.connect()
    raw.window_size = window
    raw.subscribe(channel)
    text = "".join(chr(97 + number % 26) for number in range(MESSAGE_BYTES_MAX - 2))
    gateway.publish(channel, text)
    found: list[Frame] = []
    unacked = 0
    while not messages(found):
        frame = raw.expect(Kind.DATA)
        found.append(frame)
        unacked += frame.wire_bytes
        assert unacked <= window
        if unacked * 2 >= window:
            raw.send(Kind.ACK)
            unacked = 0
    assert json.loads(messages(found)[0].data) == text
    assert len(found) >= (MESSAGE_BYTES_MAX + window) // window
    assert [frame.payload[0] for frame in found] == [1] * (len(found) - 1) + [0]


@pytest.mark.sending
def test_the_longest_message_goes_and_comes_through_the_client(
    client: Client, channel: str
) -> None:
    subscription = client.subscribe(channel)
    data = bytes(range(256)) * 256
    position = client.publish(channel, data, tags={"k": "v"})
    [message] = receive(subscription, 1)
    assert (message.data, message.binary, message.tags) == (data, True, {"k": "v"})
    assert message.position == position
    with pytest.raises(PublishError, match="at most 65536"):
        client.publish(channel, data + b"x")


def test_a_message_over_the_limit_is_a_numbered_close(raw: RawWire, channel: str) -> None:
    raw.connect()
    head = Publish(1, channel, b"", binary=True).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for number in range(4):
            raw.send(Kind.PUBLISH, b"\1" + (head if number == 0 else b"") + b"x" * 50_000)
    assert raw.goodbye().code == 1009


# ---- checksums


@pytest.mark.sending
def test_checksums_protect_both_directions_when_agreed(
    gateway: Gateway, raw: RawWire, channel: str
) -> None:
    assert raw.connect(crc=True).crc
    raw.subscribe(channel)
    gateway.publish(channel, {"a": 1})
    [delivery] = messages([raw.expect(Kind.DATA)])
    assert delivery.data == b'{"a":1}'
    raw.crc_out = False
    raw.send(Kind.SUBSCRIBE, Subscribe(2, "public:x").encode())
    raw.send_raw(b"\0\0\0\0")
    assert raw.goodbye().code == 4505


def test_the_client_works_with_checksums(gateway: Gateway, channel: str) -> None:
    with Client(f"127.0.0.1:{gateway.tcp_port}", crc=True) as client:
        subscription = client.subscribe(channel)
        client.publish(channel, "x" * 60_000)
        assert receive(subscription, 1)[0].value == "x" * 60_000


# ---- hostile input


@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS["violations"] if vector["from"] != "server"],
    ids=lambda vector: str(vector["name"]),
)
@pytest.mark.sending
def test_each_violation_is_a_numbered_close_and_is_counted(
    gateway: Gateway, raw: RawWire, vector: dict[str, Any]
) -> None:
    before = closes(gateway)
    if vector["connected"]:
        raw.connect(crc=vector["crc"])
    raw.send_raw(bytes.fromhex(vector["hex"]))
    assert raw.goodbye().code == vector["close"]
    assert raw.receive() is None, "nothing follows CLOSE"
    name = REASONS[vector["close"]]
    wait_for(lambda: closes(gateway)[name] == before[name] + 1, f"{name} is counted")


def closes(gateway: Gateway) -> Counter[str]:
    """Closes so far by their reason."""
    prefix = 'closes_total{reason="'
    totals = gateway.totals().items()
    found = {n.removeprefix(prefix)[:-2]: count for n, count in totals if n.startswith(prefix)}
    return Counter(found)


def test_a_frame_that_never_ends_does_not_keep_a_connection(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway({"limits": {"handshake_timeout_s": 1}})
    with raw_wire(gateway.tcp_port) as raw:
        raw.send_raw(bytes.fromhex("4d420104"))
        assert raw.goodbye().code == 3502


def test_heartbeats_go_both_ways_and_silence_closes(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway({"tcp": {"heartbeat_interval_s": 0.5, "heartbeat_timeout_s": 3}})
    with raw_wire(gateway.tcp_port) as raw:
        connected = raw.connect()
        assert connected.heartbeat_interval_ms == 500
        assert connected.heartbeat_timeout_ms == 3_000
        # Alive for longer than the timeout, on heartbeats alone.
        for _ in range(8):
            raw.expect(Kind.HEARTBEAT)
            raw.send(Kind.HEARTBEAT)
        # Bytes of a frame that does not end are silence.
        stop = threading.Event()

        def drip() -> None:
            for byte in bytes.fromhex("4d42010600000000000000000000ffff") + bytes(1_000):
                if stop.wait(0.2):
                    return
                raw.send_raw(bytes([byte]))

        with ThreadPoolExecutor(1) as executor:
            executor.submit(drip)
            try:
                assert raw.goodbye().code == 3012
            finally:
                stop.set()


def test_the_client_keeps_an_idle_connection_alive(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway({"tcp": {"heartbeat_interval_s": 0.5, "heartbeat_timeout_s": 3}})
    with Client(f"127.0.0.1:{gateway.tcp_port}") as client:
        subscription = client.subscribe("public:idle")
        # Connections that say nothing show when the timeout has passed.
        for _ in range(2):
            with raw_wire(gateway.tcp_port) as silent:
                silent.connect()
                assert silent.goodbye().code == 3012
        gateway.publish("public:idle", 1)
        assert receive(subscription, 1)[0].value == 1
        wait_for(lambda: closes(gateway)["no_pong"] == 2, "both closes are counted")


# ---- the conversation


def test_a_token_that_nobody_can_verify_is_refused(raw: RawWire) -> None:
    raw.send(Kind.CONNECT, Connect(crc=False, window_scale=0, token="t0ken").encode())
    assert raw.goodbye().code == 3500


def test_requests_may_follow_connect_at_once(gateway: Gateway, raw: RawWire, channel: str) -> None:
    connect = "4d420104" + "00000000" * 2 + "ffff" + "0004" + "00000000"
    subscribe = Subscribe(1, channel).encode()
    head = HEADER.pack(0x4D42, 1, Kind.SUBSCRIBE, 0, 0, 65_535, len(subscribe))
    raw.send_raw(bytes.fromhex(connect) + head + subscribe)
    raw.expect(Kind.CONNECTED)
    raw.expect(Kind.SUBSCRIBED)


def test_frames_of_a_later_version_are_skipped(raw: RawWire, channel: str) -> None:
    raw.connect()
    raw.send_raw(HEADER.pack(0x4D42, 1, 200, 0, 0, 65_535, 3) + b"new")
    raw.subscribe(channel)


def test_a_goodbye_is_answered_and_ends_the_stream(raw: RawWire) -> None:
    raw.connect()
    raw.send(Kind.CLOSE, Goodbye(1000, "bye").encode())
    assert raw.goodbye().code == 1000
    assert raw.receive() is None


def test_after_unsubscribing_nothing_of_the_channel_comes(
    gateway: Gateway, raw: RawWire, channel: str
) -> None:
    raw.connect()
    raw.window_size = 0
    alias = raw.subscribe(channel).alias
    for number in range(5):
        gateway.publish(channel, number)
    raw.send(Kind.UNSUBSCRIBE, Unsubscribe(2, alias).encode())
    answer = Unsubscribed.parse(raw.expect(Kind.UNSUBSCRIBED).payload)
    assert (answer.request, answer.alias, answer.code) == (2, alias, 0)
    raw.window_size = 65_535
    raw.send(Kind.WINDOW_UPDATE)
    again = raw.subscribe(channel, request=3)
    gateway.publish(channel, "after")
    [delivery] = messages([raw.expect(Kind.DATA)])
    assert delivery.offset == again.top.offset + 1 == 6
    raw.send(Kind.UNSUBSCRIBE, Unsubscribe(4, 0xFFFF_FFFF).encode())
    assert Failure.parse(raw.expect(Kind.ERROR).payload).code == 107


@pytest.mark.parametrize(
    ("name", "status"),
    [("private-without-namespace", 103), ("unknown:news", 102), ("", 107), ("x" * 256, 107)],
)
def test_a_channel_that_is_not_for_clients_is_refused(
    client: Client, name: str, status: int
) -> None:
    with pytest.raises(SubscribeError) as subscribing:
        client.subscribe(name)
    with pytest.raises(PublishError) as publishing:
        client.publish(name, 1)
    assert (subscribing.value.status, publishing.value.status) == (status, status)


def test_json_that_is_none_is_refused_and_binary_is_not(raw: RawWire, channel: str) -> None:
    raw.connect()
    raw.send(Kind.PUBLISH, b"\0" + Publish(1, channel, b"{oops").encode())
    assert Failure.parse(raw.expect(Kind.ERROR).payload).code == 107
    raw.send(Kind.PUBLISH, b"\0" + Publish(2, channel, b"{oops", binary=True).encode())
    raw.expect(Kind.PUBLISHED)


def test_publishes_are_answered_with_contiguous_offsets(client: Client, channel: str) -> None:
    subscription = client.subscribe(channel)
    positions = [client.publish(channel, {"n": number}) for number in range(30)]
    assert [position.offset for position in positions] == list(range(1, 31))
    assert len({position.epoch for position in positions}) == 1
    assert [message.position for message in receive(subscription, 30)] == positions


def test_a_key_makes_a_publish_count_once(client: Client, channel: str) -> None:
    first = client.publish(channel, 1, idempotency_key="k")
    assert client.publish(channel, 1, idempotency_key="k") == first
    assert client.publish(channel, 1).offset == first.offset + 1


# ---- recovery


def test_what_was_missed_comes_before_anything_live(
    gateway: Gateway, raw: RawWire, channel: str
) -> None:
    raw.connect()
    top = raw.subscribe(channel).top
    raw.close()
    for number in range(1, 11):
        gateway.publish(channel, number)
    with raw_wire(gateway.tcp_port) as again:
        again.connect()
        answer = again.subscribe(channel, Position(top.epoch, 3))
        assert answer.recovered and answer.top.offset == 10
        gateway.publish(channel, 11)
        offsets = [messages([again.expect(Kind.DATA)])[0].offset for _ in range(8)]
        assert offsets == list(range(4, 12))


def test_another_epoch_is_an_unrecoverable_gap(
    gateway: Gateway, client: Client, channel: str
) -> None:
    position = client.publish(channel, 1)
    subscription = client.subscribe(channel, since=Position("00000000", 1))
    gap = subscription.receive(TIMEOUT_S)
    assert gap == Gap(channel, Position("00000000", 1), position)
    client.publish(channel, 2)
    assert receive(subscription, 1)[0].offset == 2


def test_a_client_comes_back_after_a_reload_and_misses_nothing(
    start_gateway: Callable[..., Gateway],
) -> None:
    # On a busy machine it may take longer to come back than 300 publishes do.
    limits = {"recovery_publications_max": 10_000}
    gateway = start_gateway({"reload": {"handoff": False}, "limits": limits})
    address = f"127.0.0.1:{gateway.tcp_port}"
    stop = threading.Event()

    def publish() -> int:
        number = 0
        while not stop.wait(0.01):
            number += 1
            gateway.publish("public:reload", number)
        return number

    with (
        Client(address, backoff=Backoff(0.05, 0.5)) as client,
        ThreadPoolExecutor(1) as executor,
    ):
        subscription = client.subscribe("public:reload")
        publishing = executor.submit(publish)
        try:
            gateway.control("reload")
        finally:
            stop.set()
        last = publishing.result(TIMEOUT_S)
        assert last > 1
        assert [message.value for message in receive(subscription, last)] == list(
            range(1, last + 1)
        )


@pytest.mark.sending
def test_a_client_that_pauses_is_waited_for_and_gets_everything(
    gateway: Gateway, channel: str
) -> None:
    address = f"127.0.0.1:{gateway.tcp_port}"
    with Client(address, window_bytes=4_096) as client:
        subscription = client.subscribe(channel)
        for number in range(100):
            gateway.publish(channel, f"{number:-^100}")
        values = [message.value.strip("-") for message in receive(subscription, 100)]
        assert values == [str(number) for number in range(100)]
