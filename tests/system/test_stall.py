"""A worker that stood still for a while, as on a paused machine, does not blame its clients."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from ops.load.programs import Swarm
from tests.support.gateway import Gateway, running_gateway
from tests.support.waiting import wait_for

CLIENTS = 1500
"""More than a worker reads in one turn (1,024)."""
PING_INTERVAL_S = 12.0
PONG_TIMEOUT_S = 10.0


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def let_pass(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= until, f"{seconds} s to pass")


def pings(gateway: Gateway) -> int:
    return gateway.totals()["pings_total"]


@pytest.mark.timeout(180)
def test_pongs_that_lay_unread_while_the_worker_stood_still_count() -> None:
    sections = {
        "workers": {"count": 1, "stall_timeout_s": 120},
        "websocket": {"ping_interval_s": PING_INTERVAL_S, "pong_timeout_s": PONG_TIMEOUT_S},
    }
    with (
        running_gateway(sections) as gateway,
        Swarm(
            address=f"127.0.0.1:{gateway.http_port}", connections=CLIENTS, run_s_max=170.0
        ) as swarm,
    ):
        swarm.wait_ready()
        worker = gateway.worker_pids()[0]
        with standing_still(worker):
            let_pass(PING_INTERVAL_S)  # Now a ping is due to each.
            before = gateway.totals()["sends_total"]
            os.kill(swarm.pid, signal.SIGSTOP)
        # Pings are counted a turn before they leave; nothing else is sent.
        wait_for(lambda: gateway.totals()["sends_total"] >= before + CLIENTS, "a ping to each")
        with standing_still(worker):
            os.kill(swarm.pid, signal.SIGCONT)
            swarm.reset()
            let_pass(PONG_TIMEOUT_S)
        # Another round of pings shows who is still there.
        before = pings(gateway)
        wait_for(lambda: pings(gateway) >= before + CLIENTS, "another ping to each", 60)
        report = swarm.report()
        assert report["connected"] == CLIENTS, report["closes"]
        assert not report["closes"]
