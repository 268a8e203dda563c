"""Frames of the control socket: whole, in parts, with descriptors, and broken."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.control.wire import (
    FRAME_BYTES_MAX,
    FrameBuffer,
    decode_body,
    encode,
    recv_frame,
    send_frame,
)
from gateway.errors import ProtocolError, Unreachable

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.dictionaries(st.text(), VALUES, max_size=5)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (one, other):
        end.settimeout(60)
    yield one, other
    one.close()
    other.close()


@settings(max_examples=50, deadline=None)
@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: dict[str, object]) -> None:
    assert decode_body(encode(message)[4:]) == message


@settings(max_examples=50, deadline=None)
@given(st.lists(MESSAGES, max_size=5), st.data())
def test_frames_may_arrive_in_any_pieces(
    messages: list[dict[str, object]], data: st.DataObject
) -> None:
    stream = b"".join(encode(message) for message in messages)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    frames, received = FrameBuffer(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames.feed(stream[start:end])
        while (message := frames.next()) is not None:
            received.append(message)
    assert received == messages
    assert len(frames) == 0


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=64))
def test_no_bytes_are_more_than_a_protocol_error(data: bytes) -> None:
    frames = FrameBuffer()
    frames.feed(data)
    try:
        while frames.next() is not None:
            pass
    except ProtocolError as error:
        assert error.code == "protocol"


def test_a_length_above_the_limit_is_refused_before_the_bytes_come() -> None:
    frames = FrameBuffer(frame_bytes_max=1000)
    frames.feed(struct.pack(">I", 1001))
    with pytest.raises(ProtocolError, match="1001 bytes"):
        frames.next()


@pytest.mark.parametrize("value", [[1, 2], "text", 7, None])
def test_what_is_no_map_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError, match="not a map"):
        decode_body(msgspec.msgpack.encode(value))


def test_a_message_too_large_to_send_is_refused() -> None:
    with pytest.raises(ProtocolError, match="above the limit"):
        encode({"data": b"x" * FRAME_BYTES_MAX})


def test_descriptors_ride_beside_a_frame(ends: tuple[socket.socket, socket.socket]) -> None:
    reader, writer = os.pipe()
    send_frame(ends[0], {"id": 1}, [writer])
    send_frame(ends[0], {"id": 2})
    message, fds = recv_frame(ends[1])
    assert message == {"id": 1}
    assert len(fds) == 1
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"through it")
    assert os.read(reader, 64) == b"through it"
    assert recv_frame(ends[1]) == ({"id": 2}, [])
    for fd in (reader, writer, *fds):
        os.close(fd)


def test_a_large_frame_with_a_descriptor_arrives_whole(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    reader, writer = os.pipe()
    message = {"data": os.urandom(4 << 20)}
    sender = threading.Thread(target=send_frame, args=(ends[0], message, [writer]))
    sender.start()
    received, fds = recv_frame(ends[1])
    sender.join()
    assert received == message
    for fd in (reader, writer, *fds):
        os.close(fd)


def test_the_end_of_the_stream_is_unreachable_also_within_a_frame(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[0].sendall(encode({"id": 1})[:-1])
    ends[0].close()
    with pytest.raises(Unreachable, match="ended"):
        recv_frame(ends[1])


def test_silence_is_unreachable_after_the_timeout(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[1].settimeout(0.05)
    with pytest.raises(Unreachable) as caught:
        recv_frame(ends[1])
    assert caught.value.code == "timeout"


def test_sending_to_a_closed_peer_is_unreachable(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[1].close()
    with pytest.raises(Unreachable):
        send_frame(ends[0], {"id": 1})
