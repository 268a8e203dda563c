"""Reload, scale and drain of a running gateway: what changes, what stays, and what is refused."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from gateway.errors import ControlError
from tests.support.gateway import Gateway
from tests.support.installed import Gate, copy_packages
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_for

Start = Callable[..., Gateway]


def refusal(gateway: Gateway, verb: str, **args: Any) -> ControlError:
    with pytest.raises(ControlError) as caught:
        gateway.control(verb, **args)
    return caught.value


def change(gateway: Gateway, section: str, **keys: Any) -> None:
    gateway.sections.setdefault(section, {}).update(keys)
    gateway.write_config()


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Holds back the workers of every gateway that is started."""
    copy_packages(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Gate(tmp_path, "workers")


def workers(gateway: Gateway) -> set[int]:
    """Pids of the supervisor's children that run a worker's code, or are about to."""
    found = set()
    for child in psutil.Process(gateway.pid).children():
        with contextlib.suppress(psutil.Error):
            if "workers" in child.cmdline():
                found.add(child.pid)
    return found


def test_a_successor_that_cannot_start_calls_the_reload_off(
    gate: Gate, start_gateway: Start
) -> None:
    gateway = start_gateway()
    # Not from its beginning: that may take longer.
    change(gateway, "reload", start_timeout_s=2)
    before = gateway.status()
    with Subscriber(gateway.websocket_url, "public:a") as subscriber:
        gate.shut()
        error = refusal(gateway, "reload")
        gate.open()
        assert error.code == "successor_failed"
        assert "slot 0" in error.message
        assert "within 2 s" in error.message
        after = gateway.status()
        assert [w["pid"] for w in after["workers"]] == [w["pid"] for w in before["workers"]]
        assert after["publisher"]["pid"] == before["publisher"]["pid"]
        assert after["generation"] == before["generation"]
        assert after["state"] == "serving"
        assert workers(gateway) == set(gateway.worker_pids())
        top = gateway.publish("public:a", "still here")["offset"]
        subscriber.wait_for_offset("public:a", top)
        assert subscriber.close_codes == []
    assert gateway.totals()['reloads_total{result="failed"}'] == 1
    change(gateway, "reload", start_timeout_s=60)
    gateway.control("reload")
    assert gateway.status()["generation"] == before["generation"] + 1


def test_a_reload_starts_a_worker_that_the_crash_loop_brake_holds_back(
    start_gateway: Start,
) -> None:
    gateway = start_gateway({"workers": {"count": 1, "crash_loop_deaths": 2}})
    for _ in range(2):
        pid = wait_for(lambda: gateway.status()["workers"][0]["pid"], "a worker to be killed")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: gateway.status()["workers"][0]["pid"] != pid, "its death")
    assert gateway.status()["workers"][0]["crash_loop"]
    gateway.control("reload")
    assert gateway.status()["state"] == "serving"
    assert len(workers(gateway)) == 1


def test_a_reload_takes_the_new_configuration(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    change(gateway, "limits", headers_max=32)
    change(gateway, "gateway", log_level="debug")
    result = gateway.control("reload")
    assert result["changed"] == ["gateway.log_level", "limits.headers_max"]
    assert gateway.control("config")["config"]["limits.headers_max"]["value"] == 32


def backlogs(port: int) -> set[str]:
    """What ss(8) shows as Send-Q of a port's listeners."""
    command = ["ss", "--no-header", "--listening", "--tcp", "--numeric", f"sport = :{port}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[2] for line in shown.splitlines()}


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss(8) is not installed")
def test_a_reload_changes_the_backlog_of_listeners_that_stay(start_gateway: Start) -> None:
    gateway = start_gateway({"client": {"backlog": 100}})
    ports = [gateway.http_port, gateway.tcp_port, urlsplit(gateway.api_url).port or 0]
    assert [backlogs(port) for port in ports] == [{"100"}] * 3
    gateway.sections["client"]["backlog"] = 50
    gateway.write_config()
    assert gateway.control("reload")["changed"] == ["client.backlog"]
    assert [backlogs(port) for port in ports] == [{"50"}] * 3


def test_a_bad_configuration_is_refused_and_the_old_one_stays(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    pids = gateway.worker_pids()
    change(gateway, "limits", queue_soft_bytes=1 << 30, headers_min=1)
    error = refusal(gateway, "reload")
    assert error.code == "config"
    assert "limits.queue_soft_bytes" in error.message
    assert "limits.headers_min" in error.message
    assert gateway.worker_pids() == pids
    assert gateway.control("config")["config"]["limits.queue_soft_bytes"]["value"] == 262144


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("log", "capacity_bytes", 8 << 20), ("client", "backlog_port", None), ("workers", "count", 3)],
)
def test_what_a_reload_cannot_change_is_refused_by_name(
    start_gateway: Start, section: str, key: str, value: Any
) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    if value is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            section, key, value = "client", "http_port", free.getsockname()[1]
    change(gateway, section, **{key: value})
    error = refusal(gateway, "reload")
    assert error.code == "restart_needed"
    assert f"{section}.{key}" in error.message
    assert gateway.status()["state"] == "serving"


def test_subscribers_come_back_from_a_reload_without_handoff_and_miss_nothing(
    start_gateway: Start,
) -> None:
    # On a busy machine a client may take longer to come back than 300 publishes do.
    limits = {"recovery_publications_max": 10_000}
    gateway = start_gateway({"reload": {"handoff": False, "spread_s": 0.2}, "limits": limits})
    published = 0
    done = threading.Event()

    def publish() -> None:
        nonlocal published
        while not done.is_set():
            published = gateway.publish("public:flow", {"n": published})["offset"]

    with contextlib.ExitStack() as stack:
        subscribers = [
            stack.enter_context(Subscriber(gateway.websocket_url, "public:flow", reconnect=True))
            for _ in range(8)
        ]
        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            gateway.control("reload")
        finally:
            done.set()
            publisher.join()
        for subscriber in subscribers:
            subscriber.wait_for_offset("public:flow", published)
            subscriber.assert_contiguous("public:flow")
        codes = {push["code"] for each in subscribers for push in each.disconnects}
        assert codes == {3001}


def test_connections_of_a_slot_that_goes_without_handoff_are_closed_and_find_another(
    start_gateway: Start,
) -> None:
    gateway = start_gateway({"workers": {"count": 3}, "reload": {"handoff": False}})
    with contextlib.ExitStack() as stack:
        subscribers = [
            stack.enter_context(Subscriber(gateway.websocket_url, "public:a", reconnect=True))
            for _ in range(12)
        ]
        result = gateway.control("scale", count=1)
        assert (result["before"]["workers"], result["after"]["workers"]) == (3, 1)
        wait_for(
            lambda: sum(w["connections"] for w in gateway.status()["workers"]) == 12,
            "twelve connections on the one worker",
        )
        top = gateway.publish("public:a", 1)["offset"]
        for subscriber in subscribers:
            subscriber.wait_for_offset("public:a", top)
    result = gateway.control("scale", count=2)
    assert result["after"]["workers"] == 2
    wait_for(lambda: gateway.totals()["log_readers"] == 2, "two readers")


def test_a_drained_gateway_refuses_clients_until_the_next_reload(start_gateway: Start) -> None:
    gateway = start_gateway()
    port = gateway.http_port
    with Subscriber(gateway.websocket_url, "public:a") as subscriber:
        result = gateway.control("drain", spread_s=0.1)
        assert result["before"]["connections"] == 1
        assert result["after"] == {"workers": 0, "connections": 0}
        wait_for(lambda: subscriber.disconnects, "the disconnect push")
        assert subscriber.disconnects[0]["code"] == 3001
    assert gateway.status()["state"] == "drained"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert gateway.publish("public:a", "nobody hears it")["offset"] == 1
    gateway.control("reload")
    assert gateway.status()["state"] == "serving"
    assert gateway.http_port == port
    with Subscriber(gateway.websocket_url, "public:a") as subscriber:
        subscriber.wait_for_offset("public:a", gateway.publish("public:a", 2)["offset"])


def test_a_worker_that_dies_while_its_successor_starts_is_replaced_by_it(
    gate: Gate, start_gateway: Start
) -> None:
    gateway = start_gateway({"workers": {"count": 1}, "reload": {"start_timeout_s": 60}})
    pid = gateway.worker_pids()[0]
    gate.shut()
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(gateway.control("reload")))
    thread.start()
    (successor,) = wait_for(lambda: workers(gateway) - {pid}, "the successor")
    os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: gateway.status()["workers"][0]["pid"] == successor, "the successor in its place"
    )
    gate.open()
    thread.join(60)
    assert answers[0]["after"]["workers"] == [successor]
    assert gateway.status()["state"] == "serving"


def test_a_stop_during_a_reload_ends_both(gate: Gate, start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}, "reload": {"start_timeout_s": 60}})
    supervisor, before = psutil.Process(gateway.pid), workers(gateway)
    gate.shut()
    errors: list[ControlError] = []
    thread = threading.Thread(target=lambda: errors.append(refusal(gateway, "reload")))
    thread.start()
    wait_for(lambda: workers(gateway) - before, "the successor")
    family = supervisor.children(recursive=True)
    os.kill(gateway.pid, signal.SIGTERM)
    assert gateway.process is not None
    assert gateway.process.wait(60) == 0
    thread.join(60)
    assert errors[0].code == "aborted"
    wait_for(lambda: not any(child.is_running() for child in family), "the end of them all")


def test_counters_do_not_fall_when_the_process_that_counted_is_gone(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1, "restart_delay_min_s": 0.01}})
    with Subscriber(gateway.websocket_url, "public:a") as subscriber:
        for n in range(20):
            gateway.publish("public:a", n)
        subscriber.wait_for_offset("public:a", 20)
        wait_for(lambda: gateway.totals()["deliveries_total"] >= 20, "twenty deliveries")
        before = gateway.totals()
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        os.kill(gateway.status()["publisher"]["pid"], signal.SIGKILL)
    wait_for(lambda: gateway.status()["state"] == "serving", "everything in its place again")
    gateway.control("reload")
    after = gateway.totals()
    fell = {
        name: (before[name], after[name])
        for name in before
        if "_total" in name and after[name] < before[name]
    }
    assert fell == {}
    assert after['connections{transport="websocket"}'] == 0, "a gauge ends with its process"


def test_a_stop_closes_every_client_with_the_code_to_reconnect(start_gateway: Start) -> None:
    gateway = start_gateway({"stop": {"spread_s": 0.3}})
    with contextlib.ExitStack() as stack:
        subscribers = [
            stack.enter_context(Subscriber(gateway.websocket_url, "public:a")) for _ in range(10)
        ]
        assert gateway.stop() == 0
        for subscriber in subscribers:
            wait_for(lambda each=subscriber: each.disconnects, "the disconnect push")
            assert [push["code"] for push in subscriber.disconnects] == [3001]
