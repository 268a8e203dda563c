"""Whatever dies, in whatever order: no answered publish is lost, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gateway.errors import TidegateError
from gateway.producer import Producer
from tests.support.gateway import Gateway
from tests.support.waiting import wait_for

SEED = 7
SECTIONS = {
    "workers": {
        "count": 3,
        "restart_delay_min_s": 0.01,
        "restart_delay_max_s": 0.05,
        "crash_loop_deaths": 1000,
        "stall_timeout_s": 1,
    }
}


class Publishing(threading.Thread):
    """Publishes to one channel through shared memory, without a pause, and keeps the offsets."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self.offsets: list[int] = []
        self._gateway = gateway
        self._done = threading.Event()

    def run(self) -> None:
        with Producer(self._gateway.control_path) as producer:
            while not self._done.is_set():
                self.offsets.append(producer.publish("public:chaos", len(self.offsets)).offset)

    def stop(self) -> None:
        self._done.set()
        self.join()


def do_harm(gateway: Gateway, rng: random.Random) -> None:
    """One blow: a kill, a stop, or an operation in the midst of it all."""
    status = gateway.status()
    worker = rng.choice(status["workers"])
    blow = rng.choice(["worker", "publisher", "publisher", "api", "stuck", "scale", "reload"])
    if blow == "scale":
        gateway.control("scale", count=rng.choice([2, 3, 4]))
    elif blow == "reload":
        gateway.control("reload")
    else:
        victim = worker if blow in ("worker", "stuck") else status[blow]
        if victim["pid"] is not None:
            os.kill(victim["pid"], signal.SIGSTOP if blow == "stuck" else signal.SIGKILL)


def belongings(gateway: Gateway) -> tuple[int, int, int]:
    """Descriptors of the supervisor, segments, and uplinks: what a leak would be of."""
    segments = list(Path("/dev/shm").glob(f"tidegate-{gateway.name}-*"))
    return (
        psutil.Process(gateway.pid).num_fds(),
        len(segments),
        gateway.totals()["uplinks_open"],
    )


@pytest.mark.parametrize(
    "seconds", [pytest.param(8), pytest.param(120, marks=pytest.mark.soak)], ids=["short", "long"]
)
@pytest.mark.timeout(240)
def test_random_deaths_lose_no_answered_publish_and_leave_nothing(
    start_gateway: Callable[..., Gateway], seconds: int
) -> None:
    gateway = start_gateway(SECTIONS)
    gateway.publish("public:warm", "makes the supervisor's own uplink")
    before = belongings(gateway)
    rng = random.Random(SEED)
    publishing = Publishing(gateway)
    publishing.start()
    pause = threading.Event()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pause.wait(rng.random() * 0.3)
        # An operation may meet a process that just died; it says so, and that is right.
        with contextlib.suppress(TidegateError, ProcessLookupError):
            do_harm(gateway, rng)
    publishing.stop()
    wait_for(lambda: gateway.status()["state"] == "serving", "everything in its place", 30)
    gateway.control("scale", count=3)
    # A process under the brake comes back late, and its uplinks with it.
    wait_for(lambda: belongings(gateway) == before, f"{before} again", 90)
    assert len(publishing.offsets) > 100
    assert publishing.offsets == list(range(1, len(publishing.offsets) + 1))
    totals = gateway.totals()
    # Of workers it may be some: a publisher killed between its commit and its ring owes them one.
    assert totals['missed_wakeups_total{process="publisher"}'] == 0
