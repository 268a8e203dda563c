"""What a service manager is told of a gateway's life."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.installed import Gate, copy_packages
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_for

# Not so often that lines are lost while nobody reads: the kernel keeps ten
# (net.unix.max_dgram_qlen).
WATCHDOG_USEC = "2500000"


class Manager:
    """The service manager's end: keeps every line that it is told, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.address = f"@tidegate-test-{uuid.uuid4().hex}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:])
        self._socket.settimeout(0.1)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.is_set():
            with contextlib.suppress(TimeoutError):
                self.lines += self._socket.recv(4096).decode().splitlines()

    def count(self, prefix: str) -> int:
        return sum(line.startswith(prefix) for line in self.lines)

    def wait(self, prefix: str, times: int = 1) -> None:
        wait_for(lambda: self.count(prefix) >= times, f"{prefix} {times} times")

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    made = Manager()
    yield made
    made.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tidegate-") as made:
        yield Path(made)


@contextlib.contextmanager
def managed(gateway: Gateway, **environment: str) -> Iterator[Gateway]:
    """The gateway in an environment of the test's own."""
    with gateway.log_path.open("ab") as log:
        gateway.process = subprocess.Popen(
            [sys.executable, "-m", "ops.cli", "run", "-c", str(gateway.config_path)],
            env={"PATH": os.environ["PATH"], **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield gateway
    finally:
        gateway.close()


def test_systemd_is_told_of_every_turn_in_the_gateways_life(
    manager: Manager, directory: Path
) -> None:
    gateway = Gateway(directory, {"stop": {"spread_s": 1}})
    with managed(gateway, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC=WATCHDOG_USEC):
        manager.wait("READY=1")
        assert gateway.status()["state"] == "serving", "READY comes when everything serves"
        assert f"MAINPID={gateway.pid}" in manager.lines
        manager.wait("STATUS=serving: 0 connections, 2 workers")
        with Subscriber(gateway.websocket_url, "public:a"):
            manager.wait("STATUS=serving: 1 connections, 2 workers")
        manager.wait("WATCHDOG=1", times=3)
        os.kill(gateway.pid, signal.SIGHUP)
        manager.wait("READY=1", times=2)
        reload = manager.lines[manager.lines.index("RELOADING=1") :]
        assert reload[1].startswith("MONOTONIC_USEC=")
        assert reload.index("READY=1") > 1
        with Subscriber(gateway.websocket_url, "public:a"):
            os.kill(gateway.pid, signal.SIGTERM)
            manager.wait("STOPPING=1")
            manager.wait("EXTEND_TIMEOUT_USEC=")
            manager.wait("STATUS=stopping: connections, 1 left")
        assert gateway.process is not None
        assert gateway.process.wait(60) == 0


def test_an_upgrade_is_told_like_a_reload_and_the_watchdog_is_fed_on(
    manager: Manager, directory: Path
) -> None:
    gateway = Gateway(directory, {"workers": {"count": 1}})
    with managed(gateway, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC=WATCHDOG_USEC):
        manager.wait("READY=1")
        os.kill(gateway.pid, signal.SIGUSR2)
        manager.wait("READY=1", times=2)
        upgrade = manager.lines[manager.lines.index("RELOADING=1") :]
        assert manager.count("RELOADING=1") == 1, "one from both codes together"
        assert any(line.endswith("upgrade: api") for line in upgrade), "the new code tells on"
        fed = manager.count("WATCHDOG=1")
        manager.wait("WATCHDOG=1", times=fed + 3)
        assert manager.count(f"MAINPID={gateway.pid}") == 2
        assert gateway.status()["generation"] == 2


def test_ready_waits_for_the_last_process(
    manager: Manager, directory: Path, tmp_path: Path
) -> None:
    """The API is held back at its beginning, and READY does not come."""
    copy_packages(tmp_path)
    gate = Gate(tmp_path, "gateway/api")
    gate.shut()
    gateway = Gateway(directory)
    with managed(gateway, NOTIFY_SOCKET=manager.address, PYTHONPATH=str(tmp_path)):
        wait_for(lambda: _api_pid(gateway), "the API's process")
        wait_for(
            lambda: all(w["state"] == "serving" for w in gateway.status()["workers"]),
            "workers that serve",
        )
        assert gateway.status()["state"] == "starting"
        assert manager.count("READY=1") == 0
        gate.open()
        manager.wait("READY=1")


def _api_pid(gateway: Gateway) -> int | None:
    with contextlib.suppress(Exception):
        return int(gateway.status()["api"]["pid"])
    return None


def test_a_crash_loop_is_told_to_systemd(manager: Manager, directory: Path) -> None:
    gateway = Gateway(directory, {"workers": {"count": 1, "crash_loop_deaths": 2}})
    with managed(gateway, NOTIFY_SOCKET=manager.address):
        manager.wait("READY=1")
        for _ in range(2):
            pid = wait_for(lambda: gateway.status()["workers"][0]["pid"], "a worker to be killed")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "its death")
        manager.wait("STATUS=degraded: 0 connections, 1 workers; crash loop, waiting: slot 0")
        worker = gateway.status()["workers"][0]
        assert worker["state"] == "backing_off"
        assert worker["crash_loop"]
        assert "SIGKILL" in worker["last_failure"]
