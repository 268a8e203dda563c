"""The link: whole messages with their descriptors, and a clear end."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.link import (
    DESCRIPTORS_MAX,
    MESSAGE_BYTES_MAX,
    Link,
    LinkClosed,
    LinkError,
    close_all,
    named_descriptors,
)

Ends = tuple[Link, Link]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = Link.pair()
    other = Link.inherited(theirs.detach())
    yield ours, other
    ours.close()
    other.close()


def open_descriptors() -> int:
    gc.collect()  # or what tests before have left would go in between
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_message_brings_its_descriptors_and_their_names(ends: Ends) -> None:
    ours, theirs = ends
    read_end, write_end = os.pipe()
    ours.send({"type": "boot", "fds": ["in", "out"], "n": 7}, [read_end, write_end])
    message, fds = theirs.recv()
    named = named_descriptors(message, fds)
    assert (message["type"], message["n"], list(named)) == ("boot", 7, ["in", "out"])
    os.write(named["out"], b"x")
    assert os.read(read_end, 1) == b"x"
    assert not os.get_inheritable(named["in"])
    close_all([read_end, write_end, *fds])


def test_as_many_descriptors_as_the_kernel_takes_arrive_and_one_more_is_refused(ends: Ends) -> None:
    ours, theirs = ends
    null = os.open(os.devnull, os.O_RDONLY)
    ours.send({"type": "many"}, [null] * DESCRIPTORS_MAX)
    _, fds = theirs.recv()
    assert len(fds) == DESCRIPTORS_MAX
    close_all(fds)
    with pytest.raises(ValueError, match="descriptors"):
        ours.send({"type": "many"}, [null] * (DESCRIPTORS_MAX + 1))
    os.close(null)


def test_messages_stay_whole_and_in_order(ends: Ends) -> None:
    ours, theirs = ends
    for number in range(100):
        ours.send({"type": "count", "n": number})
    assert [theirs.recv()[0]["n"] for _ in range(100)] == list(range(100))
    with pytest.raises(ValueError, match="exceeds"):
        ours.send({"type": "big", "text": "x" * MESSAGE_BYTES_MAX})


def test_the_end_of_the_other_side_is_told_after_its_last_message(ends: Ends) -> None:
    ours, theirs = ends
    ours.send({"type": "last"})
    ours.close()
    assert theirs.recv()[0] == {"type": "last"}
    with pytest.raises(LinkClosed):
        theirs.recv()
    with pytest.raises(LinkClosed):
        theirs.send({"type": "late"})


def test_an_unread_message_does_not_hide_what_the_other_side_said_before_its_end(
    ends: Ends,
) -> None:
    ours, theirs = ends
    theirs.send({"type": "unread"})
    ours.send({"type": "last"})
    ours.close()
    assert theirs.recv()[0] == {"type": "last"}
    with pytest.raises(LinkClosed):
        theirs.recv()


def test_an_unread_message_does_not_hide_the_end(ends: Ends) -> None:
    ours, theirs = ends
    theirs.send({"type": "unread"})
    ours.close()
    with pytest.raises(LinkClosed):
        theirs.recv()


@pytest.mark.parametrize("data", [b"\xc1", b"\x00", b"\x80", b"\x81\xa4type\x07", b"x" * 70_000])
def test_what_is_no_message_is_an_error_and_leaks_no_descriptor(data: bytes) -> None:
    end, raw = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = Link(end)
    with Path(os.devnull).open() as null:
        before = open_descriptors()
        socket.send_fds(raw, [data], [null.fileno()])
        with pytest.raises(LinkError):
            link.recv()
        assert open_descriptors() == before
    raw.close()
    link.close()


def test_names_and_descriptors_that_do_not_match_are_an_error() -> None:
    duplicate = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(LinkError, match="names 2 descriptors and brings 1"):
        named_descriptors({"type": "boot", "fds": ["a", "b"]}, [duplicate])
    with pytest.raises(OSError):
        os.fstat(duplicate)


def test_a_link_that_would_wait_says_so(ends: Ends) -> None:
    ours, theirs = ends
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv()
    theirs.settimeout(0.01)
    with pytest.raises(TimeoutError):
        theirs.recv()
    assert ours.peer_pid() == os.getpid()


def test_only_a_seqpacket_socket_is_a_link() -> None:
    stream, other = socket.socketpair()
    with stream, other, pytest.raises(LinkError):
        Link.inherited(stream.fileno())
    with pytest.raises(OSError):
        Link.inherited(1 << 20)
