"""The client's protocol without I/O: what goes out for what comes in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import frames, payloads
from gateway.client.backoff import Backoff, reconnects
from gateway.client.flow import scale_of
from gateway.client.frames import Frame, Kind, Violation
from gateway.client.payloads import Delivery, Goodbye, Position, Subscribed
from gateway.client.protocol import Event, Protocol, Settings
from gateway.client.subscription import Cursor, Gap
from gateway.errors import ProtocolError, PublishError
from tests.support.wire import CONNECTED, server_frame


def sent(protocol: Protocol, *, crc: bool = False, now: float = 0.0) -> list[Frame]:
    """The frames that the client wants written."""
    out, found, at = protocol.take(now), [], 0
    while frame := frames.decode(out, at, crc=crc):
        found.append(frame)
        at += frame.wire_bytes
    assert at == len(out)
    return found


def kinds(found: Iterable[Frame]) -> list[Kind | None]:
    return [frame.kind for frame in found]


def connected(window_bytes: int = 65_535, *, server_window: int = 65_535) -> Protocol:
    protocol = Protocol(Settings(window_bytes=window_bytes), 0.0)
    answer = server_frame(Kind.CONNECTED, CONNECTED.encode(), window_size=server_window)
    assert protocol.receive(answer, 0.0) == [CONNECTED]
    assert kinds(sent(protocol)) == [Kind.CONNECT]
    return protocol


def data(seq: int, size: int, *, more: bool = False, first: bool = True) -> bytes:
    """A DATA frame with `size` bytes of message, that begin with its fields if `first`."""
    head = payloads.varint(9) + payloads.varint(seq) + b"\0" if first else b""
    return server_frame(Kind.DATA, bytes([more]) + head + b"x" * (size - len(head)), seq=seq)


def test_connect_tells_name_token_scale_and_window() -> None:
    protocol = Protocol(Settings("me", "secret", crc=True, window_bytes=200_000), 0.0)
    [frame] = sent(protocol)
    assert payloads.Connect.parse(frame.payload) == payloads.Connect(True, 2, "me", "secret")
    assert frame.window_size == 200_000 >> 2
    assert frame.wire_bytes == frames.HEADER.size + len(frame.payload), "no checksum yet"


def test_checksums_begin_after_connect_and_after_connected() -> None:
    protocol = Protocol(Settings(crc=True), 0.0)
    protocol.take(0.0)
    protocol.subscribe("early")
    assert kinds(sent(protocol, crc=True)) == [Kind.SUBSCRIBE]
    answer = dataclasses.replace(CONNECTED, crc=True)
    assert protocol.receive(server_frame(Kind.CONNECTED, answer.encode()), 0.0) == [answer]
    top = Subscribed(1, 9, True, False, Position("e", 3))
    raw = server_frame(Kind.SUBSCRIBED, top.encode(), crc=True)
    assert protocol.receive(raw, 0.0) == [top]


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(0, 400), st.integers(0, 255))
def test_any_split_of_a_stream_gives_the_same(cuts: list[int], at: int, byte: int) -> None:
    top = Subscribed(1, 9, True, False, Position("e", 0))
    stream = bytearray(
        server_frame(Kind.CONNECTED, CONNECTED.encode())
        + server_frame(Kind.SUBSCRIBED, top.encode())
        + data(1, 20)
        + data(2, 30, more=True)
        + server_frame(Kind.HEARTBEAT, seq=2)
        + data(3, 10, first=False)
        + server_frame(Kind.CLOSE, Goodbye(3001, "shutdown").encode(), seq=3)
    )
    if at < len(stream):
        stream[at] = byte

    def outcome(chunks: list[bytes]) -> tuple[list[Event], bytes]:
        protocol, events = Protocol(Settings(), 0.0), []
        for chunk in chunks:
            events += protocol.receive(chunk, 0.0)
        return events, protocol.take(0.0)

    chunks, rest = [], bytes(stream)
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert outcome([*chunks, rest]) == outcome([bytes(stream)])


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_make_it_raise(junk: bytes, begun: bool) -> None:
    protocol = connected() if begun else Protocol(Settings(), 0.0)
    protocol.receive(b"\x4d\x42\x01" + junk if len(junk) % 2 else junk, 0.0)


def test_frames_after_the_goodbye_are_not_looked_at() -> None:
    protocol = connected()
    stream = server_frame(Kind.CLOSE, Goodbye(3001, "shutdown").encode()) + b"junk"
    assert protocol.receive(stream, 0.0) == [Goodbye(3001, "shutdown")]
    assert protocol.receive(b"more", 0.0) == []
    [frame] = sent(protocol)
    assert Goodbye.parse(frame.payload).code == 3001
    protocol.subscribe("late")
    assert sent(protocol) == []


def test_skippable_frames_are_skipped_and_unknown_ones_are_not() -> None:
    protocol = connected()
    later = frames.encode(200, 0, 0, 65_535, b"whatever")
    assert protocol.receive(later, 0.0) == []
    [goodbye] = protocol.receive(frames.encode(14, 0, 0, 65_535), 0.0)
    assert isinstance(goodbye, Goodbye) and goodbye.code == 4503


# ---- acknowledgements and windows


def test_an_acknowledgement_is_sent_at_half_of_the_window_and_not_before() -> None:
    protocol = connected(1000)
    assert protocol.receive(data(1, 300), 0.0)
    assert sent(protocol) == []
    protocol.receive(data(2, 200), 0.0)
    [ack] = sent(protocol)
    assert (ack.kind, ack.ack_seq) == (Kind.ACK, 2)
    assert ack.window_size == 1000 - (300 + 17) - (200 + 17), "what waits takes room"


def test_an_acknowledgement_is_due_after_so_many_frames_too() -> None:
    protocol = connected(1 << 20)
    for seq in range(1, 1024):
        protocol.receive(data(seq, 8), 0.0)
    assert sent(protocol) == []
    protocol.receive(data(1024, 8), 0.0)
    assert kinds(sent(protocol)) == [Kind.ACK]


def test_every_frame_acknowledges_in_passing() -> None:
    protocol = connected(1000)
    protocol.receive(data(1, 300), 0.0)
    protocol.subscribe("more")
    [frame] = sent(protocol)
    assert frame.ack_seq == 1
    protocol.receive(data(2, 100), 0.0)
    assert sent(protocol) == [], "the count began anew"


def test_the_window_closes_when_nothing_is_consumed_and_opens_when_something_is() -> None:
    protocol = connected(1000)
    held = []
    for seq in range(1, 5):
        held += protocol.receive(data(seq, 233), 0.0)
    assert sent(protocol)[-1].window_size == 0
    deliveries = [event for event in held if isinstance(event, Delivery)]
    protocol.consumed(deliveries[0].wire_bytes)
    [update] = sent(protocol)
    assert (update.kind, update.window_size) == (Kind.WINDOW_UPDATE, 250)
    for delivery in deliveries[1:]:
        protocol.consumed(delivery.wire_bytes)
    assert sent(protocol)[-1].window_size == 1000


def test_pieces_of_an_unfinished_message_leave_the_window_open() -> None:
    protocol = connected(1000)
    for seq in range(1, 6):
        protocol.receive(data(seq, 600, more=True, first=seq == 1), 0.0)
        [ack] = sent(protocol)
        assert ack.window_size == 1000
    [delivery] = protocol.receive(data(6, 600, first=False), 0.0)
    assert isinstance(delivery, Delivery) and delivery.wire_bytes == 6 * 617
    assert sent(protocol)[0].window_size == 0


def test_what_an_earlier_connection_left_takes_room() -> None:
    protocol = Protocol(Settings(window_bytes=1000), 0.0, held_bytes=400)
    assert sent(protocol)[0].window_size == 600


@pytest.mark.parametrize(
    ("capacity", "scale"), [(1, 0), (65_535, 0), (65_536, 1), (1 << 20, 5), (65_535 << 14, 14)]
)
def test_the_scale_is_the_smallest_that_fits(capacity: int, scale: int) -> None:
    assert scale_of(capacity) == scale
    assert capacity >> scale <= 65_535


def test_a_window_over_a_gibibyte_is_refused() -> None:
    with pytest.raises(ValueError, match="window_bytes = 1073741824"):
        scale_of(1 << 30)


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    st.integers(60, 4000),
)
def test_publishes_never_exceed_the_servers_window_and_never_starve(
    sizes: list[int], window: int
) -> None:
    protocol = connected(server_window=window)
    for size in sizes:
        protocol.publish("c", b"x" * size, binary=True)
    reassembly, whole, seq, unacked = payloads.Reassembly(), 0, 0, 0
    while whole < len(sizes):
        progress = sent(protocol)
        assert progress, "nothing is written though everything is acknowledged"
        for frame in progress:
            assert frame.kind is Kind.PUBLISH and frame.seq == seq + 1
            seq, unacked = frame.seq, unacked + frame.wire_bytes
            whole += reassembly.push(frame.payload, frame.wire_bytes, 1 << 20) is not None
        assert unacked <= window
        unacked = 0
        protocol.receive(server_frame(Kind.ACK, ack_seq=seq, window_size=window), 0.0)
    assert sent(protocol) == []


def test_publishes_wait_for_the_servers_first_window() -> None:
    protocol = Protocol(Settings(), 0.0)
    protocol.publish("c", b"1")
    assert kinds(sent(protocol)) == [Kind.CONNECT]
    protocol.receive(server_frame(Kind.CONNECTED, CONNECTED.encode()), 0.0)
    assert kinds(sent(protocol)) == [Kind.PUBLISH]


def test_a_channel_that_is_no_text_is_refused_here() -> None:
    with pytest.raises(ProtocolError, match="not Unicode text"):
        connected().subscribe("public:\udcff")


def test_a_publish_over_the_servers_limit_is_refused_here() -> None:
    with pytest.raises(PublishError, match="65537 bytes") as caught:
        connected().publish("c", b"x" * 65_537)
    assert caught.value.status == 106


def test_the_backlog_of_publishes_is_bounded() -> None:
    protocol = connected(server_window=0)
    with pytest.raises(PublishError) as caught:
        for _ in range(200):
            protocol.publish("c", b"x" * 65_536)
    assert caught.value.status == 111


def test_a_message_over_the_limit_closes() -> None:
    protocol = connected()
    events: list[Event] = []
    for seq in range(1, 5):
        events += protocol.receive(data(seq, 60_000, more=True, first=False), 0.0)
    [event] = events
    assert isinstance(event, Goodbye) and event.code == 1009


# ---- time


def test_a_heartbeat_is_sent_when_nothing_else_was_for_the_interval() -> None:
    protocol = connected()
    assert protocol.deadline == 30.0
    assert protocol.tick(29.9) == [] and sent(protocol) == []
    assert protocol.tick(30.0) == []
    assert kinds(sent(protocol, now=30.0)) == [Kind.HEARTBEAT]
    protocol.subscribe("c")
    sent(protocol, now=45.0)
    assert protocol.deadline == 75.0


def test_silence_closes_and_an_unfinished_frame_is_silence() -> None:
    protocol = connected()
    protocol.receive(server_frame(Kind.HEARTBEAT), 10.0)
    protocol.receive(server_frame(Kind.HEARTBEAT)[:-1], 50.0)
    assert protocol.tick(99.9) == []
    assert protocol.tick(100.0) == [Goodbye(3012, "no heartbeat")]


# ---- positions


def test_a_fresh_subscription_begins_after_the_top() -> None:
    cursor = Cursor("c", None)
    assert cursor.subscribed(Subscribed(1, 9, True, False, Position("e", 7))) is None
    message = cursor.advance(Delivery(9, 8, b"1", tags='{"k":"v"}'))
    assert message is not None
    assert (message.position, message.tags, message.value) == (Position("e", 8), {"k": "v"}, 1)


def test_a_recovered_subscription_goes_on_where_it_was() -> None:
    cursor = Cursor("c", Position("e", 5))
    assert cursor.subscribed(Subscribed(1, 9, True, True, Position("e", 7))) is None
    offsets = [cursor.advance(Delivery(9, offset, b"1")) for offset in (5, 6, 6, 7, 8)]
    assert [message and message.offset for message in offsets] == [None, 6, None, 7, 8]


@pytest.mark.parametrize("top", [Position("e", 900), Position("f", 2)])
def test_an_unrecoverable_gap_is_told(top: Position) -> None:
    cursor = Cursor("c", Position("e", 5))
    gap = cursor.subscribed(Subscribed(1, 9, True, False, top))
    assert gap == Gap("c", Position("e", 5), top)
    assert cursor.position == top


def test_there_is_no_gap_if_nothing_was_published_meanwhile() -> None:
    cursor = Cursor("c", Position("e", 5))
    assert cursor.subscribed(Subscribed(1, 9, False, False, Position("e", 5))) is None


@pytest.mark.parametrize(
    ("delivery", "code"), [(Delivery(9, 7, b"1"), 3010), (Delivery(9, 6, b"1", tags="["), 4510)]
)
def test_a_server_that_breaks_its_word_is_left(delivery: Delivery, code: int) -> None:
    with pytest.raises(Violation) as caught:
        Cursor("c", Position("e", 5)).advance(delivery)
    assert caught.value.code == code


# ---- coming back


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1000, True),
        (1009, False),
        (3000, True),
        (3499, True),
        (3500, False),
        (3999, False),
        (4000, True),
        (4499, True),
        (4500, False),
        (4999, False),
        (5000, True),
    ],
)
def test_the_code_says_whether_to_come_back(code: int, expected: bool) -> None:
    assert reconnects(code) is expected


def test_delays_are_jittered_and_grow_to_the_maximum() -> None:
    backoff = Backoff(0.5, 20.0)
    for attempt in range(100):
        delay_s = backoff.next_delay_s()
        assert 0.5 <= delay_s <= min(20.0, 0.5 + 0.5 * 2**attempt)
    backoff.reset()
    assert backoff.next_delay_s() <= 1.0
    assert len({Backoff().next_delay_s() for _ in range(20)}) > 10
