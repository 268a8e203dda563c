"""Hand-offs that fail: who serves whom then, and which losses there are, counted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psutil
import pytest

from gateway.client.frames import Kind
from gateway.client.payloads import Publish
from gateway.control.client import ControlClient
from gateway.errors import ControlError
from gateway.memory import FIRST_WORKER_ROW
from shm import _ring, segment, stats
from tests.support.crowd import Crowd
from tests.support.gateway import Gateway
from tests.support.raw_websocket import RawWebSocket
from tests.support.waiting import PATIENCE_S, wait_for
from tests.support.wire import raw_wire

Start = Callable[..., Gateway]

CHANNEL = "public:handoff"
MESSAGE_CONNECTIONS_MAX = 240
"""So many ride with one message of a hand-off (HANDOFF.md)."""
# Whoever is stopped stays so until the test has done what it wants to: that is no stall.
WORKERS = {"count": 1, "stall_timeout_s": 60}


@pytest.fixture
def one_worker(start_gateway: Start) -> Gateway:
    return start_gateway({"workers": WORKERS})


class Held:
    """A reload that stands at its hand-off: both workers are told, the predecessor is stopped."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pool = ThreadPoolExecutor(1)
        (self.predecessor,) = gateway.worker_pids()
        self.successor = 0
        self._answer: Future[dict[str, Any]] = Future()

    def __enter__(self) -> Held:
        os.kill(self.predecessor, signal.SIGSTOP)
        self._answer = self._pool.submit(self._gateway.control, "reload")
        wait_for(lambda: handoffs(self._gateway) == 1, "the hand-off")
        self.successor = children(self._gateway, "workers")[-1]
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (self.predecessor, self.successor):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._pool.shutdown()

    def send_all(self) -> None:
        """Lets the predecessor go on until all is on its way, with the successor stopped."""
        successor = psutil.Process(self.successor)
        wait_for(lambda: successor.status() == psutil.STATUS_SLEEPING, "the successor's greeting")
        successor.suspend()
        os.kill(self.predecessor, signal.SIGCONT)
        wait_for(lambda: self._gateway.connections() == [0], "nobody to be served")

    def failure(self) -> ControlError:
        """The reload's error."""
        error = self._answer.exception(120)
        assert isinstance(error, ControlError), error
        return error


def handoffs(gateway: Gateway) -> int:
    """How many have begun."""
    return gateway.log().count("hands connections over")


def children(gateway: Gateway, module: str) -> list[int]:
    """Pids of the supervisor's children that run a module, youngest last."""
    family = psutil.Process(gateway.pid).children()
    found = [child for child in family if module in child.cmdline()]
    return [child.pid for child in sorted(found, key=lambda child: child.create_time())]


def wait_for_refusal(gateway: Gateway) -> None:
    """Waits until the first worker has taken back what was refused, and has told of it."""
    memory = segment.attach(segment.segment_name(gateway.name, "stats"))
    try:
        reader = _ring.Stats(memory.fd)
        wait_for(lambda: stats.totals(reader)["handoff_taken_back_total"] > 0, "the refusal")
        # It tells before the end of the turn.
        turn = reader.heartbeat_ns(FIRST_WORKER_ROW)
        wait_for(lambda: reader.heartbeat_ns(FIRST_WORKER_ROW) > turn, "the end of the turn")
    finally:
        memory.close()


def assert_as_if_nothing_had_been(gateway: Gateway, crowd: Crowd, predecessor: int) -> None:
    assert gateway.worker_pids() == [predecessor]
    assert gateway.status()["state"] == "serving"
    assert gateway.ends() == {}
    with RawWebSocket(gateway.http_port) as newcomer:
        newcomer.connect(CHANNEL)
    crowd.assert_undisturbed(gateway.publish(CHANNEL, "still here")["offset"])


def test_a_successor_killed_before_it_took_anything_costs_nobody_anything(
    one_worker: Gateway,
) -> None:
    with Crowd(one_worker, CHANNEL) as crowd:
        with Held(one_worker) as held:
            os.kill(held.successor, signal.SIGKILL)
            os.kill(held.predecessor, signal.SIGCONT)
            error = held.failure()
        assert error.code == "handoff_failed"
        assert "slot 0, hand-off: worker 0.2 was killed by SIGKILL" in error.message
        assert "worker 0.1 serves on" in error.message
        assert_as_if_nothing_had_been(one_worker, crowd, held.predecessor)
        one_worker.control("reload")
        crowd.assert_undisturbed(one_worker.publish(CHANNEL, "again")["offset"])


def test_a_successor_killed_with_connections_on_their_way_costs_nobody_anything(
    one_worker: Gateway,
) -> None:
    with Crowd(one_worker, CHANNEL) as crowd:
        with Held(one_worker) as held:
            held.send_all()
            top = one_worker.publish(CHANNEL, "while nobody serves them")["offset"]
            os.kill(held.successor, signal.SIGKILL)
            error = held.failure()
        assert error.code == "handoff_failed"
        crowd.wait_for_offset(top)
        assert_as_if_nothing_had_been(one_worker, crowd, held.predecessor)


def test_a_successor_that_hangs_is_killed_and_costs_nobody_anything(start_gateway: Start) -> None:
    # Longer than it may take to stop the one and let the other go on.
    gateway = start_gateway({"workers": WORKERS, "reload": {"handoff_timeout_s": 4}})
    with Crowd(gateway, CHANNEL) as crowd:
        with Held(gateway) as held:
            os.kill(held.successor, signal.SIGSTOP)
            os.kill(held.predecessor, signal.SIGCONT)
            error = held.failure()
        assert "made no progress in a hand-off for 4 s and was killed" in error.message
        assert_as_if_nothing_had_been(gateway, crowd, held.predecessor)


def test_a_predecessor_that_hangs_is_killed_and_costs_nobody_anything(
    start_gateway: Start,
) -> None:
    gateway = start_gateway({"workers": WORKERS, "reload": {"handoff_timeout_s": 2}})
    with Crowd(gateway, CHANNEL) as crowd:
        with Held(gateway) as held:
            top = gateway.publish(CHANNEL, "while it hangs")["offset"]
            error = held.failure()
        assert "worker 0.1 made no progress" in error.message
        assert "worker 0.2 serves on, no connection is lost" in error.message
        crowd.wait_for_offset(top)
        assert gateway.totals()["connections_rescued_total"] == len(crowd.members)
        assert_as_if_nothing_had_been(gateway, crowd, held.successor)


def test_a_predecessor_that_hangs_takes_its_connections_along_where_nobody_keeps_them(
    start_gateway: Start,
) -> None:
    workers = WORKERS | {"survive_crashes": False}
    gateway = start_gateway({"workers": workers, "reload": {"handoff_timeout_s": 2}})
    with Crowd(gateway, CHANNEL, makers=("websockets", "aiohttp", "raw")) as crowd:
        with Held(gateway) as held:
            error = held.failure()
        assert "worker 0.2 serves on, 15 connections are lost" in error.message
        wait_for(lambda: crowd.ended() == 15, "the end of every connection")
        assert gateway.ends() == {'connections_lost_total{reason="no_keeper"}': 15}
        assert gateway.worker_pids() == [held.successor]
        assert gateway.status()["state"] == "serving"


def test_a_predecessor_killed_with_connections_on_their_way_takes_none_with_it(
    one_worker: Gateway,
) -> None:
    """What it has sent is the successor's, for there is nobody else to own it."""
    with Crowd(one_worker, CHANNEL) as crowd:
        with Held(one_worker) as held:
            held.send_all()
            top = one_worker.publish(CHANNEL, "while nobody serves them")["offset"]
            os.kill(held.predecessor, signal.SIGKILL)
            os.kill(held.successor, signal.SIGCONT)
            error = held.failure()
        assert "worker 0.1 was killed by SIGKILL" in error.message
        crowd.wait_for_offset(top)
        assert_as_if_nothing_had_been(one_worker, crowd, held.successor)


def test_a_predecessor_killed_while_it_takes_connections_back_leaves_the_slot_to_its_successor(
    one_worker: Gateway,
) -> None:
    with Crowd(one_worker, CHANNEL, each=600, makers=("raw",)), Held(one_worker) as held:
        successor = psutil.Process(held.successor)
        limits = successor.rlimit(psutil.RLIMIT_NOFILE)
        room = successor.num_fds() + 300  # for the first batch, not for all
        successor.rlimit(psutil.RLIMIT_NOFILE, (room, limits[1]))
        # The supervisor hears of it when the predecessor is stopped again.
        os.kill(one_worker.pid, signal.SIGSTOP)
        try:
            os.kill(held.predecessor, signal.SIGCONT)
            wait_for_refusal(one_worker)
            os.kill(held.predecessor, signal.SIGSTOP)
        finally:
            os.kill(one_worker.pid, signal.SIGCONT)
        wait_for(lambda: handoffs(one_worker) == 2, "the way back")
        os.kill(held.predecessor, signal.SIGKILL)
        error = held.failure()
        assert "worker 0.2 refused connections" in error.message
        assert "worker 0.2 serves on, 360 connections are lost" in error.message
        assert one_worker.worker_pids() == [held.successor]
        successor.rlimit(psutil.RLIMIT_NOFILE, limits)
        with RawWebSocket(one_worker.http_port) as newcomer:
            newcomer.connect(CHANNEL)
        assert one_worker.control("reload")["slots"][0]["moved"] > 0


def test_a_predecessor_killed_before_it_sent_anything_costs_nobody_anything(
    one_worker: Gateway,
) -> None:
    with Crowd(one_worker, CHANNEL) as crowd:
        with Held(one_worker) as held:
            top = one_worker.publish(CHANNEL, "while nobody serves them")["offset"]
            os.kill(held.predecessor, signal.SIGKILL)
            error = held.failure()
        assert "worker 0.1 was killed by SIGKILL" in error.message
        assert "worker 0.2 serves on, no connection is lost" in error.message
        crowd.wait_for_offset(top)
        assert_as_if_nothing_had_been(one_worker, crowd, held.successor)


def test_both_killed_in_the_middle_cost_nobody_anything(one_worker: Gateway) -> None:
    """The next worker has them from the keepers of both."""
    with Crowd(one_worker, CHANNEL) as crowd:
        with Held(one_worker) as held:
            top = one_worker.publish(CHANNEL, "while nobody serves them")["offset"]
            # The supervisor is to see both deaths, not one before the other has happened.
            os.kill(one_worker.pid, signal.SIGSTOP)
            os.kill(held.predecessor, signal.SIGKILL)
            os.kill(held.successor, signal.SIGKILL)
            os.kill(one_worker.pid, signal.SIGCONT)
            error = held.failure()
        assert "both are dead; the slot starts anew, no connection is lost" in error.message
        crowd.assert_undisturbed(top)
        assert one_worker.ends() == {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["predecessor", "successor"])
def test_whoever_is_killed_at_whatever_moment_few_are_lost_and_each_is_counted(
    start_gateway: Start, victim: str
) -> None:
    gateway = start_gateway({"workers": {"count": 1, "crash_loop_deaths": 100}})
    for attempt in range(10):
        with Crowd(gateway, f"{CHANNEL}-{attempt}", each=600, makers=("raw",)) as crowd:
            # Those of the attempt before have gone, and are counted.
            wait_for(lambda: sum(gateway.connections()) == 600, "six hundred and no more")
            before = sum(gateway.ends().values())
            (predecessor,), begun = gateway.worker_pids(), handoffs(gateway)
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(gateway.control, "reload")
                wait_for(lambda begun=begun: handoffs(gateway) > begun, "the hand-off")
                pids = {
                    "predecessor": predecessor,
                    "successor": children(gateway, "workers")[-1],
                }
                threading.Event().wait(0.002 * attempt)
                with suppress(ProcessLookupError):
                    os.kill(pids[victim], signal.SIGKILL)
                answer.exception(120)
            wait_for(lambda: gateway.status()["state"] == "serving", "a worker")
            top = gateway.publish(f"{CHANNEL}-{attempt}", 1)["offset"]
            crowd.wait_for_offset(top)
            faults = [each for each in crowd.members if each.fault() and not each.end]
            assert faults == []
            wait_for(lambda: sum(gateway.connections()) == 600 - crowd.ended(), "the others")
            wait_for(
                lambda before=before, crowd=crowd: (
                    sum(gateway.ends().values()) - before == crowd.ended()
                ),
                "each end to be counted",
            )
            assert crowd.ended() <= MESSAGE_CONNECTIONS_MAX


def test_an_answer_that_does_not_come_holds_up_nobody_but_who_waits_for_it(
    start_gateway: Start,
) -> None:
    gateway = start_gateway({"workers": WORKERS, "reload": {"handoff_timeout_s": 3}})
    publisher = gateway.status()["publisher"]["pid"]

    def resume_when_through(progress: dict[str, Any]) -> None:
        if progress["phase"] == "publisher":
            os.kill(publisher, signal.SIGCONT)

    with Crowd(gateway, CHANNEL) as crowd, raw_wire(gateway.tcp_port) as asker:
        asker.connect()
        received = gateway.totals()['received_total{kind="frame"}']
        os.kill(publisher, signal.SIGSTOP)
        try:
            publish = Publish(1, "public:asked", b"1").encode()
            asker.send(Kind.PUBLISH, b"\0" + publish)
            wait_for(
                lambda: gateway.totals()['received_total{kind="frame"}'] > received,
                "the publish to be read",
            )
            with ControlClient(gateway.control_path, timeout_s=PATIENCE_S) as control:
                slot = control.call("reload", on_progress=resume_when_through)["slots"][0]
        finally:
            with suppress(ProcessLookupError):
                os.kill(publisher, signal.SIGCONT)
        assert (slot["moved"], slot["kept"], slot["lost"]) == (len(crowd.members), 1, 0)
        assert crowd.ended() == 0


@pytest.mark.parametrize("survives", [True, False])
def test_scaling_down_tells_of_those_who_died_with_the_worker_that_was_to_take_them(
    start_gateway: Start, survives: bool
) -> None:
    workers = WORKERS | {"count": 2, "survive_crashes": survives}
    gateway = start_gateway({"workers": workers, "reload": {"handoff_timeout_s": 2}})
    with Crowd(gateway, CHANNEL):
        receiver = gateway.status()["workers"][0]
        assert receiver["connections"] > 0
        os.kill(receiver["pid"], signal.SIGSTOP)
        slot = gateway.control("scale", count=1)["slots"][0]
        assert slot["lost"] == (0 if survives else receiver["connections"])


@pytest.mark.parametrize("survives", [True, False])
def test_a_worker_that_dies_while_it_leaves_takes_at_most_its_own_clients_with_it(
    start_gateway: Start, survives: bool
) -> None:
    gateway = start_gateway({"workers": WORKERS | {"count": 2, "survive_crashes": survives}})
    makers = ("websockets", "aiohttp", "raw")
    with Crowd(gateway, CHANNEL, makers=makers) as crowd, ThreadPoolExecutor(1) as pool:
        leaving = gateway.status()["workers"][1]
        assert leaving["connections"] > 0
        os.kill(leaving["pid"], signal.SIGSTOP)
        answer = pool.submit(gateway.control, "scale", count=1)
        wait_for(lambda: handoffs(gateway) == 1, "the hand-off")
        os.kill(leaving["pid"], signal.SIGKILL)
        (slot,) = answer.result(120)["slots"]
        lost = 0 if survives else leaving["connections"]
        assert slot["lost"] == lost
        wait_for(lambda: crowd.ended() == lost, "the end of its clients")
        assert gateway.status()["state"] == "serving"
        top = gateway.publish(CHANNEL, "still here")["offset"]
        crowd.wait_for_offset(top)
