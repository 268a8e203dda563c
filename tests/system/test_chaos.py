"""Whatever dies, in whatever order: no answered publish is lost, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gateway.control.client import ControlClient
from gateway.errors import ControlError, TidegateError
from gateway.producer import Producer
from tests.support.gateway import Gateway
from tests.support.publishing import Publishing
from tests.support.waiting import PATIENCE_S, wait_until_equal

SEED = 7
SECTIONS = {
    "workers": {
        "count": 3,
        "restart_delay_min_s": 0.01,
        "restart_delay_max_s": 0.05,
        "crash_loop_deaths": 1000,
        "stall_timeout_s": 1,
    },
    # After so long a process is replaced that was stopped before it was ready.
    "reload": {"start_timeout_s": 20},
}
RECOVERY_TIMEOUT_S = 150.0
"""Some starts may have to time out, one after the other."""


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


def at_rest(gateway: Gateway) -> tuple[str, object]:
    """The state, and the operation under way."""
    status = gateway.status()
    return status["state"], status["operation"]


def belongings(gateway: Gateway) -> tuple[int, int, int]:
    """Descriptors of the supervisor, segments, and uplinks: what a leak would be of."""
    # All on one connection: once it is answered, those that ended before it are closed, and it is
    # open itself until the descriptors are counted.
    with ControlClient(gateway.control_path, timeout_s=PATIENCE_S) as control:
        uplinks = control.call("status")["totals"]["uplinks_open"]
        descriptors = psutil.Process(gateway.pid).num_fds()
    segments = list(Path("/dev/shm").glob(f"tidegate-{gateway.name}-*"))
    return descriptors, len(segments), uplinks


@contextlib.contextmanager
def accounting_for(gateway: Gateway) -> Iterator[None]:
    """Adds to a failure what the gateway knows of itself."""
    try:
        yield
    except (AssertionError, TidegateError) as failure:
        status = ""
        with contextlib.suppress(TidegateError):
            status = json.dumps(gateway.status(), indent=1)
        raise AssertionError(f"{failure}\n{status}\n{gateway.log()}") from failure


@pytest.mark.parametrize(
    "seconds", [pytest.param(8), pytest.param(120, marks=pytest.mark.soak)], ids=["short", "long"]
)
@pytest.mark.timeout(600)
def test_random_deaths_lose_no_answered_publish_and_leave_nothing(
    start_gateway: Callable[..., Gateway], seconds: int
) -> None:
    gateway = start_gateway(SECTIONS)
    gateway.publish("public:warm", "makes the supervisor's own uplink")
    before = belongings(gateway)
    rng = random.Random(SEED)
    pause = threading.Event()
    end = time.monotonic() + seconds
    with accounting_for(gateway):
        with (
            Producer(gateway.control_path) as producer,
            Publishing(producer, "public:chaos", pause_s=0) as offsets,
        ):
            while time.monotonic() < end:
                pause.wait(rng.random() * 0.3)
                # An operation may meet a process that just died; it says so, and that is right.
                with contextlib.suppress(ControlError, ProcessLookupError):
                    do_harm(gateway, rng)
        quiet = ("serving", None)
        wait_until_equal(lambda: at_rest(gateway), quiet, "recovery", RECOVERY_TIMEOUT_S)
        gateway.control("scale", count=3)
        # Not all at once: a worker that was stopped at the end is yet to be found out.
        wait_until_equal(lambda: belongings(gateway), before, "what was", RECOVERY_TIMEOUT_S)
    assert len(offsets) > 100
    assert offsets == list(range(1, len(offsets) + 1))
    totals = gateway.totals()
    # Of workers it may be some: a publisher killed between its commit and its ring owes them one.
    assert totals['missed_wakeups_total{process="publisher"}'] == 0
