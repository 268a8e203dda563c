"""Who is woken by a message: workers that serve a subscriber of its channel, and no others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from gateway.producer import Producer
from tests.support.gateway import Gateway
from tests.support.raw_websocket import FIN, TEXT, RawWebSocket, frame
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_for

Start = Callable[..., Gateway]

WAKES = "log_reader_wakes_total"
LAG_WAKES = "log_reader_lag_wakes_total"
WORKERS = 4
MESSAGES = 200
ORDERS = 50


@pytest.fixture
def gateway(start_gateway: Start) -> Gateway:
    # Whoever is kept from reading for a while is waited for, not evicted.
    log = {"capacity_bytes": 1 << 20, "lag_budget_ms": 5000}
    return start_gateway({"workers": {"count": WORKERS}, "log": log})


def counted(gateway: Gateway, before: dict[str, int], name: str) -> int:
    return gateway.totals()[name] - before[name]


def assert_no_wake_up_was_missed(gateway: Gateway) -> None:
    missed = {k: v for k, v in gateway.totals().items() if k.startswith("missed_wakeups_total")}
    assert len(missed) == 2
    assert not any(missed.values())


def test_a_message_wakes_only_the_worker_that_serves_a_subscriber(gateway: Gateway) -> None:
    with (
        Subscriber(gateway.websocket_url, "public:one") as subscriber,
        Producer(gateway.control_path) as producer,
    ):
        before = gateway.totals()
        for number in range(1, MESSAGES + 1):
            assert producer.publish("public:one", number).offset == number
            subscriber.wait_for_offset("public:one", number)
        # Once each, unless it was awake; and that was not by its safety poll.
        assert 0 < counted(gateway, before, WAKES) <= MESSAGES
        assert counted(gateway, before, LAG_WAKES) == 0
    # The others read it all when they look for themselves, and find nothing of theirs.
    everybody = WORKERS * MESSAGES
    wait_for(
        lambda: counted(gateway, before, "publications_read_total") >= everybody,
        "all to have looked",
    )
    wait_for(lambda: gateway.totals()["log_lag_bytes"] == 0, "nothing to be left unread")
    assert_no_wake_up_was_missed(gateway)


def test_a_message_that_nobody_subscribed_to_wakes_nobody(gateway: Gateway) -> None:
    with Producer(gateway.control_path) as producer:
        before = gateway.totals()
        for number in range(MESSAGES):
            producer.publish("public:nobody", number)
        assert counted(gateway, before, WAKES) == 0


def test_who_subscribes_later_is_told_by_whatever_worker_it_came_to(gateway: Gateway) -> None:
    with Producer(gateway.control_path) as producer, ExitStack() as stack:
        for number in range(1, MESSAGES + 1):
            producer.publish("public:late", number)
        crowd = []
        for number in range(MESSAGES + 1, MESSAGES + 31):
            late = Subscriber(gateway.websocket_url, "public:late")
            crowd.append(stack.enter_context(late))
            assert producer.publish("public:late", number).offset == number
            for subscriber in crowd:
                subscriber.wait_for_offset("public:late", number)
        for subscriber in crowd:
            subscriber.assert_contiguous("public:late")
        # Half of them go; the last one in a worker ends its interest.
        for leaving in crowd[::2]:
            leaving.__exit__(None, None, None)
        staying = crowd[1::2]
        last = producer.publish("public:late", "last").offset
        for subscriber in staying:
            subscriber.wait_for_offset("public:late", last)
    assert_no_wake_up_was_missed(gateway)


def test_who_subscribes_later_does_not_get_what_was_only_for_those_who_were_there(
    start_gateway: Start,
) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    wish = frame(FIN | TEXT, b'{"subs": {"public:now": {}}}')
    with Producer(gateway.control_path) as producer:
        for number in range(30):
            with RawWebSocket(gateway.http_port) as client:
                client.open()
                # The worker sleeps on, as nobody is there for it; the wish ends its sleep.
                producer.publish("public:now", f"before {number}", skip_history=True)
                client.send(wish)
                assert "connect" in client.read_push()
                producer.publish("public:now", f"after {number}", skip_history=True)
                assert client.read_push()["pub"]["data"] == f"after {number}"
    assert_no_wake_up_was_missed(gateway)


def test_workers_that_nothing_concerns_do_not_fall_behind_a_log_that_comes_round(
    gateway: Gateway,
) -> None:
    text = "x" * 1000
    with (
        Subscriber(gateway.websocket_url, "public:much") as subscriber,
        Producer(gateway.control_path) as producer,
    ):
        before = gateway.totals()
        for _ in range(4 * 1024):
            last = producer.publish("public:much", text)
            # It reads in a thread of this process: faster publishing would make it slow.
            if last.offset % 500 == 0:
                subscriber.wait_for_offset("public:much", last.offset)
        subscriber.wait_for_offset("public:much", last.offset)
        subscriber.assert_contiguous("public:much")
        # They are woken a few times for each lap of the log.
        assert 0 < counted(gateway, before, LAG_WAKES) < 4 * 16 * WORKERS
        # On a busy machine the publisher may have had to wait for one; none lost anything.
        for trouble in ("log_reader_evictions_total", "laps_total"):
            assert counted(gateway, before, trouble) == 0, trouble
    assert_no_wake_up_was_missed(gateway)


def test_an_order_wakes_every_worker(gateway: Gateway) -> None:
    with Producer(gateway.control_path) as producer:
        before = gateway.totals()
        for number in range(1, ORDERS + 1):
            producer.order('{"op": "disconnect", "user": "nobody"}')
            wait_for(
                lambda number=number: (
                    counted(gateway, before, "records_read_total") >= number * WORKERS
                ),
                "everybody to have it",
            )
        # Some may be awake still when the next one comes.
        assert counted(gateway, before, WAKES) > 2 * ORDERS
