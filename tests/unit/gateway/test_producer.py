"""The local producer: places, threads, refusals, and what it says when nobody listens."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from gateway.errors import PublishError, Unreachable
from gateway.producer import Producer, Published
from shm.segment import process_start
from tests.support.gateway import Gateway
from tests.support.waiting import wait_for


@pytest.fixture
def producer(gateway: Gateway) -> Iterator[Producer]:
    with Producer(gateway.control_path) as made:
        yield made


@contextmanager
def stopped_publisher(gateway: Gateway) -> Iterator[None]:
    pid = gateway.status()["publisher"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_each_thread_gets_the_place_of_its_own_message(producer: Producer) -> None:
    places: dict[str, list[Published]] = {f"public:threads-{n}": [] for n in range(8)}

    def publish(channel: str) -> None:
        for number in range(200):
            places[channel].append(producer.publish(channel, {"n": number}))

    threads = [threading.Thread(target=publish, args=[channel]) for channel in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for published in places.values():
        assert [place.offset for place in published] == list(range(1, 201))
    assert len({place.epoch for published in places.values() for place in published}) == 1


def test_messages_without_an_answer_come_before_the_next_one_with(producer: Producer) -> None:
    for number in range(5000):
        producer.publish_nowait("public:flood", number)
    assert producer.publish("public:flood", "last").offset == 5001


def test_a_repeated_key_is_answered_with_the_first_place(producer: Producer) -> None:
    first = producer.publish("public:keyed", 1, idempotency_key="order-7")
    assert producer.publish("public:keyed", 1, idempotency_key="order-7") == first
    assert producer.publish("public:keyed", 1, idempotency_key="order-8").offset == 2
    other = producer.publish("public:keyed-too", 1, idempotency_key="order-7")
    assert other.offset == 1


@pytest.mark.parametrize(
    ("publish", "code", "status"),
    [
        (lambda p: p.publish("public:x", b"{"), "bad_request", 107),
        (lambda p: p.publish("public:x", {"a": object()}), "bad_request", 107),
        (lambda p: p.publish("public:x", "text", binary=True), "bad_request", 107),
        (lambda p: p.publish("", 1), "bad_request", 107),
        (lambda p: p.publish("public:x", "x" * 4_000_000), "uplink_too_large", 106),
    ],
)
def test_what_cannot_be_published_is_refused_with_its_number(
    producer: Producer, publish: Callable[[Producer], object], code: str, status: int
) -> None:
    with pytest.raises(PublishError) as caught:
        publish(producer)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert caught.value.remedy


def test_a_silent_publisher_costs_the_timeout_and_loses_nothing(
    gateway: Gateway, producer: Producer
) -> None:
    with stopped_publisher(gateway):
        with pytest.raises(PublishError) as caught:
            producer.publish("public:silent", 1, timeout_s=0.2)
        assert caught.value.code == "timeout"
        sent = 1
        with pytest.raises(PublishError) as caught:
            while True:
                producer.publish_nowait("public:silent", "x" * 10_000, timeout_s=0.2)
                sent += 1
        assert caught.value.code == "uplink_full"
        assert "log.uplink_bytes" in caught.value.remedy
    assert producer.publish("public:silent", 2).offset == sent + 1


def test_all_who_wait_are_told_when_the_gateway_goes(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway()
    failures: list[BaseException] = []
    with Producer(gateway.control_path) as producer:
        producer.publish("public:gone", 1)

        def publish() -> None:
            try:
                producer.publish("public:gone", 1, timeout_s=60)
            except Unreachable as error:
                failures.append(error)

        with stopped_publisher(gateway):
            threads = [threading.Thread(target=publish) for _ in range(4)]
            for thread in threads:
                thread.start()
            pid = gateway.pid
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: process_start(pid) is None, "the supervisor's end")
        began = time.monotonic()
        for thread in threads:
            thread.join(30)
        assert time.monotonic() - began < 30
        assert len(failures) == 4
        with pytest.raises(Unreachable):
            producer.publish("public:gone", 1)


def test_who_waits_for_no_answers_is_told_too_when_the_gateway_goes(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    with Producer(gateway.control_path) as producer:
        producer.publish_nowait("public:gone", 1)
        os.kill(gateway.pid, signal.SIGKILL)
        with pytest.raises(Unreachable, match="is gone"):
            wait_for(lambda: producer.publish_nowait("public:gone", 1), "a word of it")


def test_a_closed_producer_says_so(gateway: Gateway) -> None:
    producer = Producer(gateway.control_path)
    producer.close()
    producer.close()
    with pytest.raises(PublishError, match="closed"):
        producer.publish("public:x", 1)


def test_no_gateway_is_an_error_that_says_what_to_do(tmp_path: object) -> None:
    with pytest.raises(Unreachable) as caught:
        Producer(f"{tmp_path}/control.sock")
    assert "tidegate run" in caught.value.remedy
