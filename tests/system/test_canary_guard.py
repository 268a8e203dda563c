"""A guarded canary ends by itself where it fares worse, and only there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from gateway.producer import Producer
from tests.support.crowd import Crowd
from tests.support.gateway import Gateway
from tests.support.installed import copy_packages, edit
from tests.support.publishing import Publishing
from tests.support.raw_websocket import FIN, TEXT, RawWebSocket, frame
from tests.support.waiting import wait_for, wait_until_equal

Start = Callable[..., Gateway]

CHANNEL = "public:guard"
GUARD = {"guard_window_s": 5.0, "guard_events_min": 10, "guard_factor": 3.0}
EVENTS = 40
"""Clearly more than the minimum, also on one of two workers between which the kernel chooses."""
LONG_REQUEST = frame(FIN | TEXT, json.dumps({"subs": {}, "data": "x" * 500}).encode())
FORBIDDEN = frame(FIN | 0x3)  # an opcode that RFC 6455 section 5.2 reserves


@pytest.fixture
def installed_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_packages(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@contextmanager
def crowd_of(gateway: Gateway) -> Iterator[None]:
    """Subscribers who are sent something all the while, and must notice nothing."""
    with (
        Crowd(gateway, CHANNEL, each=10) as crowd,
        Producer(gateway.control_path) as producer,
        Publishing(producer, CHANNEL, position=crowd.position) as sent,
    ):
        yield
        crowd.assert_undisturbed(sent[-1])


def visit(port: int, first: bytes) -> bool:
    """One client comes and sends `first`; whether it was answered, and not closed."""
    with RawWebSocket(port) as client:
        client.open(after=first)
        opcode, payload = client.read_frame()
        return opcode == TEXT and "connect" in json.loads(payload)


def test_new_code_that_closes_clients_is_rolled_back_and_the_others_stay(
    installed_copy: Path, start_gateway: Start
) -> None:
    gateway = start_gateway({"reload": GUARD})
    before, generation = gateway.worker_pids(), gateway.status()["generation"]
    edit(
        installed_copy / "workers" / "__main__.py",
        'WorkerSettings.from_map(message["settings"])',
        'WorkerSettings.from_map(message["settings"] | {"message_bytes_max": 200})',
    )
    with crowd_of(gateway):
        port = gateway.http_port
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "ops.cli", "reload", "--canary", "1", "--guard"),
                *("--socket", gateway.control_path),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert gateway.status()["canary"]["guarded"] is True
        refused = 0

        def over() -> bool:
            nonlocal refused
            refused += sum(not visit(port, LONG_REQUEST) for _ in range(10))
            return gateway.status()["canary"] is None

        wait_for(over, "the end of the canary")
        found = gateway.status()
        assert "unclean closes" in found["rolled_back"]["reason"]
        assert found["rolled_back"]["slots"] == [0]
        assert found["generation"] == generation
        assert gateway.worker_pids() == before
        assert all(visit(port, LONG_REQUEST) for _ in range(20))
    wait_until_equal(
        lambda: gateway.totals()['closes_total{reason="message_too_big"}'], refused, "each close"
    )
    assert gateway.totals()["guard_rollbacks_total"] == 1
    assert "the canary is rolled back: " in gateway.log()
    wait_for(lambda: sum(gateway.connections()) == 0, "the end of the crowd")
    gateway.forget_notifications()
    with RawWebSocket(port) as client:
        client.connect(CHANNEL)
        reason = found["rolled_back"]["reason"]
        gateway.wait_notified(
            f"STATUS=serving: 1 connections, 2 workers; the canary was rolled back: {reason}"
        )
    gateway.control("reload")
    assert gateway.status()["rolled_back"] is None


def test_a_guarded_canary_that_fares_as_the_others_stays_until_it_is_promoted(
    start_gateway: Start,
) -> None:
    # So many that, where few come in a window, chance does not give the one three times as many.
    events_min = 30
    gateway = start_gateway(
        {"reload": GUARD | {"guard_window_s": 2.0, "guard_events_min": events_min}}
    )
    with crowd_of(gateway):
        gateway.control("reload", canary=1, guard=True)
        trial, port = gateway.worker_pids(), gateway.http_port
        assert not any(visit(port, FORBIDDEN) for _ in range(4 * EVENTS))
        wait_for(
            lambda: gateway.status()["canary"]["elapsed_s"] > 3 * 2.0, "three windows of the guard"
        )
        canary = gateway.status()["canary"]
        assert canary["guarded"] is True
        assert canary["reason"] == ""
        assert canary["new"]["unclean_closes"] > events_min
        assert canary["new"]["publish_to_flush_ms_p99"] >= 0
        assert gateway.worker_pids() == trial
        gateway.control("reload", end="promote")
        assert gateway.status()["canary"] is None
        assert gateway.status()["rolled_back"] is None


def test_a_guarded_canary_that_dies_is_over(start_gateway: Start) -> None:
    gateway = start_gateway({"reload": GUARD})
    before = gateway.worker_pids()
    gateway.control("reload", canary=1, guard=True)
    os.kill(gateway.worker_pids()[0], signal.SIGKILL)
    wait_for(lambda: gateway.status()["canary"] is None, "the end of the canary")
    rolled_back = gateway.status()["rolled_back"]
    assert rolled_back["reason"] == "no worker on probation is left"
    assert rolled_back["slots"] == [0]
    assert gateway.worker_pids() == before


def test_one_death_with_many_clients_ends_the_canary_of_all_slots(start_gateway: Start) -> None:
    gateway = start_gateway({"reload": GUARD})
    before = gateway.worker_pids()
    with Crowd(gateway, CHANNEL, each=20, makers=("raw",)) as crowd:
        gateway.control("reload", canary=2, guard=True)
        wait_for(lambda: sum(gateway.connections()) == 20, "everybody to be counted")
        slots = gateway.status()["workers"]
        fuller = max(slots, key=lambda slot: int(slot["connections"]))
        os.kill(fuller["pid"], signal.SIGKILL)
        wait_for(lambda: gateway.status()["canary"] is None, "the end of the canary")
        found = gateway.status()
        assert f"{fuller['connections'] + 1} failures" in found["rolled_back"]["reason"]
        assert found["rolled_back"]["slots"] == [0, 1]
        assert gateway.worker_pids() == before
        # Its clients were saved; it had to go all the same.
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])
        wait_for(lambda: sum(gateway.connections()) == len(crowd.members), "all to be counted")


def test_a_guard_whose_way_back_is_dead_says_so_and_serves_on(
    installed_copy: Path, start_gateway: Start
) -> None:
    gateway = start_gateway({"workers": {"count": 1}, "reload": GUARD})
    (before,) = gateway.worker_pids()
    edit(
        installed_copy / "workers" / "__main__.py",
        'WorkerSettings.from_map(message["settings"])',
        'WorkerSettings.from_map(message["settings"] | {"message_bytes_max": 200})',
    )
    with crowd_of(gateway):
        gateway.control("reload", canary=1, guard=True)
        trial, port = gateway.worker_pids(), gateway.http_port
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(before), "its end")
        assert not any(visit(port, LONG_REQUEST) for _ in range(EVENTS))
        wait_for(lambda: "reload failed: slot 0" in gateway.log(), "the rollback that cannot be")
        canary = gateway.status()["canary"]
        assert canary["guarded"] is False
        assert "unclean closes" in canary["reason"]
        assert gateway.worker_pids() == trial


def test_a_guard_without_a_canary_is_refused(gateway: Gateway) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "ops.cli", "reload", "--guard", "--socket", gateway.control_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2
    assert "--canary" in ran.stderr
