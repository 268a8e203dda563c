"""History and presence as Python reads them, while a publisher writes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shm import _ring
from tests.support.ring import Memory, PublisherProcess, running_publisher
from tests.support.waiting import wait_for

FOR_LONG = ("kept", 3, 3600.0)
FOR_SHORT = ("brief", 100, 0.3)


@pytest.fixture
def publisher() -> Iterator[PublisherProcess]:
    with running_publisher(history=(FOR_LONG, FOR_SHORT)) as running:
        yield running


def history_of(memory: Memory) -> _ring.History:
    return _ring.History(memory.history, memory.channels)


def answered(producer: _ring.Producer, number: int) -> _ring.Reply:
    """The reply to one request, the only one that waits."""

    def reply() -> _ring.Reply | None:
        return next((each for each in producer.replies(0.2) if each[0] == number), None)

    return wait_for(reply, "a reply")


def test_a_history_is_read_in_either_direction(publisher: PublisherProcess) -> None:
    producer, history = publisher.producer(), history_of(publisher.memory)
    epoch, _ = history.top("kept:a")
    assert history.read("kept:a") == []
    for number in range(1, 6):
        answered(producer, producer.publish("kept:a", str(number), tags='{"n": "1"}', delta=True))
    assert history.top("kept:a") == (epoch, 5)
    assert [each["offset"] for each in history.read("kept:a")] == [3, 4, 5]
    assert [each["offset"] for each in history.read("kept:a", 3)] == [4, 5]
    assert [each["offset"] for each in history.read("kept:a", limit=2)] == [3, 4]
    assert [each["offset"] for each in history.read("kept:a", reverse=True, limit=2)] == [5, 4]
    assert [each["offset"] for each in history.read("kept:a", 5, reverse=True)] == [4, 3]
    assert history.read("kept:a", limit=0) == []
    newest = history.read("kept:a")[-1]
    assert (newest["channel"], newest["epoch"], newest["data"]) == ("kept:a", epoch, b"5")
    assert (newest["tags"], newest["delta"], newest["info"]) == (b'{"n":"1"}', True, None)
    assert history.read("none:a") == [] and history.top("none:a") == (epoch, 0)


def test_a_removed_history_is_gone_and_offsets_go_on(publisher: PublisherProcess) -> None:
    producer, history = publisher.producer(), history_of(publisher.memory)
    answered(producer, producer.publish("kept:a", "1"))
    assert answered(producer, producer.history_remove("kept:a"))[1] == 0
    assert history.read("kept:a") == []
    assert answered(producer, producer.publish("kept:a", "2"))[3] == 2
    assert [each["offset"] for each in history.read("kept:a")] == [2]
    with pytest.raises(_ring.BadRequest):
        producer.history_remove("")


def test_what_is_too_old_goes_although_nobody_publishes(publisher: PublisherProcess) -> None:
    producer, history = publisher.producer(), history_of(publisher.memory)
    answered(producer, producer.publish("brief:a", "1"))
    answered(producer, producer.publish("kept:a", "1"))
    wait_for(lambda: not history.read("brief:a"), "the end of a publication's time")
    assert history.top("brief:a")[1] == 1
    assert len(history.read("kept:a")) == 1
    totals = publisher.memory.totals()
    assert (totals["history_expired_total"], totals["history_publications"]) == (1, 1)


def test_a_history_outlives_the_publisher(publisher: PublisherProcess) -> None:
    producer, history = publisher.producer(), history_of(publisher.memory)
    for number in range(4):
        answered(producer, producer.publish("kept:a", str(number)))
    before = history.read("kept:a")
    publisher.kill()
    assert history.read("kept:a") == before, "nobody has to be asked"
    publisher.start()
    assert history.read("kept:a") == before
    assert answered(producer, producer.publish("kept:a", "4"))[3] == 5
    assert [each["offset"] for each in history.read("kept:a")] == [3, 4, 5]


def test_a_version_that_is_not_newer_is_answered_but_not_published(
    publisher: PublisherProcess,
) -> None:
    producer, history = publisher.producer(), history_of(publisher.memory)
    replies = [
        answered(producer, producer.publish("kept:a", "1", version=version))
        for version in (7, 6, 8)
    ]
    assert [(status, offset) for _, status, _, offset in replies] == [(0, 1), (0, 1), (0, 2)]
    assert len(history.read("kept:a")) == 2
    unplaced = answered(producer, producer.publish("kept:a", "1", skip_history=True))
    assert (unplaced[1], unplaced[3], history.top("kept:a")[1]) == (0, 0, 2)


def test_an_order_has_to_be_an_object(publisher: PublisherProcess) -> None:
    producer = publisher.producer()
    assert answered(producer, producer.order('{"op": "disconnect"}'))[1] == 0
    with pytest.raises(_ring.BadRequest, match="order"):
        producer.order("[]")
    assert publisher.memory.totals()["orders_total"] == 1


def test_nobody_is_in_a_channel_that_nobody_joined(publisher: PublisherProcess) -> None:
    memory = publisher.memory
    presence = _ring.Presence(memory.presence, memory.channels)
    assert (presence.stats("room"), presence.members("room")) == ((0, 0), [])


def test_stores_are_told_apart(publisher: PublisherProcess) -> None:
    memory = publisher.memory
    with pytest.raises(_ring.FormatError, match="a presence table, not a history"):
        _ring.History(memory.presence, memory.channels)
    with pytest.raises(_ring.FormatError, match="a history, not a presence table"):
        _ring.Presence(memory.history, memory.channels)
    header = _ring.inspect(memory.history)
    assert header is not None and (header["kind"], header["version"]) == ("history", 2)
