"""A message on its way from a back end to every subscriber, whoever dies on that way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gateway.producer import Producer
from tests.support.gateway import Gateway
from tests.support.publishing import Publishing
from tests.support.subscriber import Seen, Subscriber
from tests.support.waiting import wait_for

# Run with each of the workers' engines.
pytestmark = pytest.mark.sending

Start = Callable[..., Gateway]

SUICIDAL_PRODUCER = """
import os, signal, sys
from gateway.producer import Producer
Producer(sys.argv[1]).publish("public:die", "last words")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def subscribers() -> Iterator[Callable[..., Subscriber]]:
    with ExitStack() as stack:

        def subscribe(gateway: Gateway, *channels: str, reconnect: bool = False) -> Subscriber:
            return stack.enter_context(
                Subscriber(gateway.websocket_url, *channels, reconnect=reconnect)
            )

        yield subscribe


def reached(crowd: list[Subscriber], channel: str) -> Callable[[], int]:
    """Tells the last offset that every one of them has."""
    return lambda: min(subscriber.seen[channel].position for subscriber in crowd)


def test_every_subscriber_of_every_worker_gets_every_message_once_and_in_order(
    gateway: Gateway, subscribers: Callable[..., Subscriber]
) -> None:
    crowd = [subscribers(gateway, "public:orders") for _ in range(20)]
    with Producer(gateway.control_path) as producer:
        for number in range(500):
            last = producer.publish("public:orders", {"n": number})
    for subscriber in crowd:
        subscriber.wait_for_offset("public:orders", last.offset)
        subscriber.assert_contiguous("public:orders")
        assert [item["n"] for item in subscriber.seen["public:orders"].data] == list(range(500))
    open_by_worker = [worker["connections"] for worker in gateway.status()["workers"]]
    assert sum(open_by_worker) >= 20


def test_a_message_reaches_only_the_subscribers_of_its_channel(
    gateway: Gateway, subscribers: Callable[..., Subscriber]
) -> None:
    left = subscribers(gateway, "public:left")
    right = subscribers(gateway, "public:right")
    gateway.publish("public:left", "l")
    gateway.publish("public:right", "r")
    left.wait_for_offset("public:left", 1)
    right.wait_for_offset("public:right", 1)
    assert left.seen["public:left"].data == ["l"]
    assert right.seen["public:right"].data == ["r"]


def test_a_client_that_was_away_is_caught_up_from_the_log(
    gateway: Gateway, subscribers: Callable[..., Subscriber]
) -> None:
    with Subscriber(gateway.websocket_url, "public:away") as first:
        gateway.publish("public:away", 1)
        first.wait_for_offset("public:away", 1)
    for number in range(2, 50):
        gateway.publish("public:away", number)
    with Subscriber(gateway.websocket_url, seen=first.seen) as again:
        again.wait_for_offset("public:away", 49)
        again.assert_contiguous("public:away")
        gateway.publish("public:away", 50)
        again.wait_for_offset("public:away", 50)
        again.assert_contiguous("public:away")


def test_a_client_whose_epoch_is_not_ours_is_told_that_it_cannot_be_recovered(
    gateway: Gateway,
) -> None:
    gateway.publish("public:other", 1)
    stranger = {"public:other": Seen(epoch="ffffffff")}
    with Subscriber(gateway.websocket_url, seen=stranger) as late:
        assert late.seen["public:other"].unrecovered == 1


def test_nothing_is_lost_or_repeated_over_a_reload_that_closes_connections(
    start_gateway: Start, subscribers: Callable[..., Subscriber]
) -> None:
    # On a busy machine a client may take longer to come back than 300 publishes do.
    limits = {"recovery_publications_max": 10_000}
    gateway = start_gateway({"reload": {"handoff": False}, "limits": limits})
    crowd = [subscribers(gateway, "public:reload", reconnect=True) for _ in range(10)]
    position = reached(crowd, "public:reload")
    with (
        Producer(gateway.control_path) as producer,
        Publishing(producer, "public:reload", position=position) as sent,
    ):
        before = set(gateway.worker_pids())
        gateway.control("reload")
        assert not before & set(gateway.worker_pids())
        wait_for(lambda: all(subscriber.close_codes for subscriber in crowd), "every close")
        assert {code for one in crowd for code in one.close_codes} == {3001}
    assert sent
    for subscriber in crowd:
        subscriber.wait_for_offset("public:reload", sent[-1])
        subscriber.assert_contiguous("public:reload")


def test_a_killed_publisher_costs_clients_a_pause_and_nothing_else(
    start_gateway: Start, subscribers: Callable[..., Subscriber]
) -> None:
    # Five deaths on purpose are no crash loop.
    gateway = start_gateway({"workers": {"restart_delay_max_s": 0.2, "crash_loop_deaths": 100}})
    crowd = [subscribers(gateway, "public:crash") for _ in range(10)]
    position = reached(crowd, "public:crash")
    with (
        Producer(gateway.control_path) as producer,
        Publishing(producer, "public:crash", position=position) as sent,
    ):
        for _ in range(5):
            pid = gateway.status()["publisher"]["pid"]
            mark = len(sent) + 200
            wait_for(lambda mark=mark: len(sent) > mark, "two hundred more publishes")
            os.kill(pid, signal.SIGKILL)
            wait_for(
                lambda pid=pid: gateway.status()["publisher"]["pid"] not in (pid, None),
                "a new publisher",
            )
    assert sent == list(range(1, len(sent) + 1)), "answered offsets have no hole and no repeat"
    for subscriber in crowd:
        subscriber.wait_for_offset("public:crash", sent[-1])
        subscriber.assert_contiguous("public:crash")
        assert len(subscriber.connects) == 1, "no connection noticed"
    assert len({subscriber.seen["public:crash"].epoch for subscriber in crowd}) == 1


def test_a_killed_worker_costs_its_clients_a_reconnect_and_no_message(
    start_gateway: Start, subscribers: Callable[..., Subscriber]
) -> None:
    # On a busy machine a worker may take longer to come back than 300 publishes do.
    gateway = start_gateway({"limits": {"recovery_publications_max": 10_000}})
    crowd = [subscribers(gateway, "public:worker", reconnect=True) for _ in range(10)]
    position = reached(crowd, "public:worker")
    with (
        Producer(gateway.control_path) as producer,
        Publishing(producer, "public:worker", position=position) as sent,
    ):
        for pid in gateway.worker_pids():
            mark = len(sent) + 100
            wait_for(lambda mark=mark: len(sent) > mark, "a hundred more publishes")
            os.kill(pid, signal.SIGKILL)
            wait_for(
                lambda pid=pid: (
                    pid not in gateway.worker_pids()
                    and all(w["state"] == "serving" for w in gateway.status()["workers"])
                ),
                "a new worker",
            )
    for subscriber in crowd:
        subscriber.wait_for_offset("public:worker", sent[-1])
        subscriber.assert_contiguous("public:worker")


def test_a_stopped_worker_is_evicted_and_the_others_go_on(
    start_gateway: Start, subscribers: Callable[..., Subscriber]
) -> None:
    # A log of 1 MiB is lapped by a hundred and thirty messages of 8 kB. The worker that serves may
    # be kept from reading for a while, too.
    gateway = start_gateway(
        {
            "log": {"capacity_bytes": 1 << 20, "lag_budget_ms": 3000},
            "workers": {"stall_timeout_s": 60},
            # Who reads in a thread of the publisher's process is behind, and not slow.
            "limits": {"queue_hard_bytes": 16 << 20, "queue_soft_bytes": 16 << 20},
        }
    )
    crowd = [subscribers(gateway, "public:stop", reconnect=True) for _ in range(12)]
    while not all(gateway.connections()):
        # The kernel throws dice.
        crowd.append(subscribers(gateway, "public:stop", reconnect=True))
        assert len(crowd) < 100, "both workers have clients"
    wait_for(lambda: sum(gateway.connections()) == len(crowd), "everybody to be counted")
    workers = gateway.status()["workers"]
    os.kill(workers[0]["pid"], signal.SIGSTOP)
    try:
        with Producer(gateway.control_path) as producer:
            for _ in range(400):
                last = producer.publish("public:stop", "x" * 8000)
        wait_for(
            lambda: (
                sum(one.seen["public:stop"].position == last.offset for one in crowd)
                == workers[1]["connections"]
            ),
            "the other worker's clients to have everything",
        )
        assert totals_of(gateway, "evict") >= 1
    finally:
        os.kill(workers[0]["pid"], signal.SIGCONT)
    # Three laps behind: its clients cannot be caught up, are told so, and go on from the top.
    wait_for(
        lambda: (
            sum(one.seen["public:stop"].unrecovered for one in crowd) == workers[0]["connections"]
        ),
        "the stopped worker's clients to be told",
    )
    position = gateway.publish("public:stop", "after")["offset"]
    for subscriber in crowd:
        subscriber.wait_for_offset("public:stop", position)
    told = [one for one in crowd if one.seen["public:stop"].unrecovered]
    assert len(told) == workers[0]["connections"]
    assert all(3010 in one.close_codes for one in told)


def test_an_uplink_is_reclaimed_when_its_producer_is_killed(start_gateway: Start) -> None:
    gateway = start_gateway({"log": {"uplinks_max": 8}})
    for _ in range(12):
        died = subprocess.run(
            [sys.executable, "-c", SUICIDAL_PRODUCER, str(gateway.control_path)], check=False
        )
        assert died.returncode == -signal.SIGKILL, "each got an uplink and published"
    assert gateway.publish("public:die", "alive")["offset"] == 13


def totals_of(gateway: Gateway, word: str) -> int:
    return sum(value for name, value in gateway.totals().items() if word in name)
