"""A load test against the bare server: its faults, and what an interrupt leaves of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ops.load import run
from ops.load.crowd import Crowd
from ops.load.programs import Bare
from ops.output import Meter
from tests.support.waiting import PATIENCE_S, wait_for

CHANNEL = "public:load"
CLIENTS = 2


@contextmanager
def connected(run_s_max: float = 60.0) -> Iterator[tuple[Bare, Crowd]]:
    with (
        Bare(processes=1, connections=CLIENTS) as bare,
        Crowd(address=bare.address, connections=CLIENTS, run_s_max=run_s_max) as crowd,
    ):
        crowd.wait_settled(PATIENCE_S, lambda _: None)
        bare.wait_ready()
        yield bare, crowd


def send(bare: Bare, offset: int, channel: str = CHANNEL) -> None:
    bare.send([f'{{"channel":"{channel}","pub":{{"data":{{}},"offset":{offset}}}}}'])


def silent(label: str, done: float, total: float, detail: str = "") -> None:
    """A meter."""


def wanted(*, duration_s: float = 0.0) -> run.Test:
    return run.Test(
        connections=CLIENTS,
        connects_per_s=0.0,
        duration_s=duration_s,
        publish_per_s=1e6,
        channels=[CHANNEL],
    )


def carry_out(
    crowd: Crowd,
    *,
    meter: Meter = silent,
    publish: Callable[[str], object] | None = None,
    duration_s: float = 0.0,
) -> run.Outcome:
    return run.run(crowd, wanted(duration_s=duration_s), publish, meter)


def test_a_fault_while_clients_connect_is_one_of_the_test() -> None:
    with connected() as (bare, crowd):
        send(bare, 1, "public:other")
        wait_for(lambda: crowd.seen().sums["foreign"] == CLIENTS, "the message")
        outcome = carry_out(crowd)
    assert outcome.faults == {"foreign": CLIENTS}
    assert outcome.as_map()["foreign"] == CLIENTS


def test_who_is_gone_in_the_end_is_absent() -> None:
    with connected() as (bare, crowd):
        bare.close()
        wait_for(lambda: not crowd.seen().sums["connected"], "the swarm notices")
        outcome = carry_out(crowd)
    assert outcome.faults == {"closes": {"unexpected end of file": CLIENTS}, "absent": CLIENTS}


def test_an_interrupt_leaves_what_was_seen_until_then() -> None:
    with connected() as (bare, crowd):
        unsent = ["public:other"]

        def meter(label: str, done: float, total: float, detail: str = "") -> None:
            if "foreign" in detail:
                signal.raise_signal(signal.SIGINT)
            elif label == "running" and unsent:
                send(bare, 1, unsent.pop())

        outcome = carry_out(crowd, meter=meter, duration_s=PATIENCE_S)
    assert outcome.faults == {"foreign": CLIENTS}


def test_a_second_interrupt_ends_the_wait_for_what_is_under_way() -> None:
    with connected() as (bare, crowd):
        send(bare, 1)  # From now on they know where they stand.
        wait_for(lambda: crowd.seen().sums["deliveries"] == CLIENTS, "the message")
        under_way = threading.Semaphore(0)
        unsent = [2]

        def meter(label: str, done: float, total: float, detail: str = "") -> None:
            if label == "running":
                assert all(under_way.acquire(timeout=PATIENCE_S) for _ in range(2))
                signal.raise_signal(signal.SIGINT)
            elif label == "receiving" and unsent:
                send(bare, unsent.pop())
            elif label == "receiving" and done == CLIENTS:
                signal.raise_signal(signal.SIGINT)

        def publish(_: str) -> None:
            under_way.release()

        outcome = carry_out(crowd, meter=meter, publish=publish, duration_s=PATIENCE_S)
    assert outcome.published >= 2
    assert outcome.seen.sums["deliveries"] == CLIENTS
    assert outcome.faults == {"lost": CLIENTS * (outcome.published - 1)}


def test_who_interrupts_a_third_time_is_not_kept_waiting() -> None:
    with connected() as (_, crowd):

        def meter(label: str, done: float, total: float, detail: str = "") -> None:
            if label == "running":
                for _ in range(3):
                    signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            carry_out(crowd, meter=meter, duration_s=PATIENCE_S)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_swarms_outlive_a_test_of_days() -> None:
    test = wanted(duration_s=3 * 86_400.0)
    assert test.run_s_max > test.connect_timeout_s + test.duration_s
    with connected(run_s_max=test.run_s_max) as (_, crowd):
        assert crowd.seen().sums["connected"] == CLIENTS
