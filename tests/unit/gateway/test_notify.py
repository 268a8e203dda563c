"""What systemd is told, over a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.notify import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end, once with a file and once without."""
    name = f"\0{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name)
        end.settimeout(60)
        yield end


def address(end: socket.socket) -> str:
    name = end.getsockname()
    return "@" + name[1:].decode() if isinstance(name, bytes) else str(name)


def connected(end: socket.socket, **more: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": address(end), **more})


def lines(end: socket.socket) -> list[str]:
    return end.recv(4096).decode().splitlines()


def test_each_message_is_in_the_words_of_sd_notify(manager: socket.socket) -> None:
    gateway = connected(manager)
    gateway.ready()
    assert lines(manager) == ["READY=1", f"MAINPID={os.getpid()}"]
    before_us = time.monotonic_ns() // 1000
    gateway.reloading()
    first, second = lines(manager)
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before_us <= int(value) <= time.monotonic_ns() // 1000
    gateway.stopping()
    assert lines(manager) == ["STOPPING=1"]
    gateway.extend_timeout(2.5)
    assert lines(manager) == ["EXTEND_TIMEOUT_USEC=2500000"]
    gateway.watchdog()
    assert lines(manager) == ["WATCHDOG=1"]
    gateway.close()


def test_a_status_is_sent_only_when_it_changes(manager: socket.socket) -> None:
    gateway = connected(manager)
    for text in ("1 connection", "1 connection", "2 connections"):
        gateway.status(text)
    assert lines(manager) == ["STATUS=1 connection"]
    assert lines(manager) == ["STATUS=2 connections"]
    gateway.close()


def test_a_manager_that_does_not_read_never_blocks_us(manager: socket.socket) -> None:
    gateway = connected(manager)
    for count in range(10_000):
        gateway.status(f"{count} connections")
    gateway.close()


def test_a_manager_that_is_gone_is_no_error(manager: socket.socket) -> None:
    gateway = connected(manager)
    manager.close()
    gateway.ready()
    gateway.close()


def test_the_watchdog_is_fed_well_within_its_interval(manager: socket.socket) -> None:
    gateway = connected(manager, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    assert 0 < gateway.watchdog_interval_s < 15
    gateway.close()


def test_a_watchdog_for_another_process_is_not_ours(manager: socket.socket) -> None:
    gateway = connected(manager, WATCHDOG_USEC="30000000", WATCHDOG_PID="1")
    assert gateway.watchdog_interval_s == 0
    gateway.close()


def test_children_do_not_inherit_the_address(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": address(manager), "WATCHDOG_USEC": "1", "PATH": "/bin"}
    ServiceManager(environment).close()
    assert environment == {"PATH": "/bin"}


def test_without_a_manager_nothing_is_said() -> None:
    gateway = ServiceManager({})
    gateway.ready()
    gateway.status("1 connection")
    assert gateway.watchdog_interval_s == 0
    gateway.close()
