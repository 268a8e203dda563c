"""What an operator sees when processes die, hang, are told things by signals, or are two."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.gateway import Gateway
from tests.support.waiting import wait_for

Start = Callable[..., Gateway]


def family_of(gateway: Gateway) -> list[psutil.Process]:
    """The supervisor and all below it, gunicorn's workers included."""
    supervisor = psutil.Process(gateway.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def segments_of(gateway: Gateway) -> list[Path]:
    return list(Path("/dev/shm").glob(f"tidegate-{gateway.name}-*"))


def is_gone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def serving_pids(gateway: Gateway) -> dict[int, int]:
    """Slot to pid of every worker that serves."""
    workers = gateway.status()["workers"]
    return {w["slot"]: w["pid"] for w in workers if w["state"] == "serving"}


def tidegate(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def test_a_killed_worker_is_replaced_and_the_others_stay(start_gateway: Start) -> None:
    gateway = start_gateway()
    before = serving_pids(gateway)
    os.kill(before[0], signal.SIGKILL)

    def replaced() -> bool:
        now = serving_pids(gateway)
        return len(now) == 2 and now[0] != before[0]

    wait_for(replaced, "a new worker in slot 0")
    assert serving_pids(gateway)[1] == before[1]
    assert gateway.status()["workers"][0]["restarts"] == 1


def test_a_worker_without_a_heartbeat_is_killed_and_replaced(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"stall_timeout_s": 5}})
    before = serving_pids(gateway)
    os.kill(before[1], signal.SIGSTOP)
    wait_for(
        lambda: serving_pids(gateway).get(1, before[1]) != before[1],
        "a new worker in place of the stopped one",
    )
    assert serving_pids(gateway)[0] == before[0]
    assert not psutil.pid_exists(before[1])


def test_an_api_whose_master_hangs_is_killed_and_replaced(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1, "stall_timeout_s": 1}})
    before = gateway.status()["api"]["pid"]
    os.kill(before, signal.SIGSTOP)
    wait_for(lambda: gateway.status()["api"]["pid"] not in (before, None), "a new API in its place")
    wait_for(lambda: gateway.status()["state"] == "serving", "it to serve")
    assert "made no progress for 10 s" in gateway.status()["api"]["last_failure"]
    with urllib.request.urlopen(gateway.api_url.removesuffix("/api") + "/health") as answer:
        assert answer.status == 200


def test_a_worker_that_dies_again_and_again_is_braked_and_status_says_so(
    start_gateway: Start,
) -> None:
    gateway = start_gateway({"workers": {"count": 1}})

    def braked() -> bool:
        worker = gateway.status()["workers"][0]
        if worker["state"] == "serving":
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)
        return "crash" in gateway.log()

    wait_for(braked, "a log line about the crash loop", 60)
    assert gateway.process is not None
    assert gateway.process.poll() is None, "the supervisor goes on"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_no_process_outlives_the_supervisor(start_gateway: Start, how: signal.Signals) -> None:
    gateway = start_gateway()
    family = family_of(gateway)
    assert len(family) >= 7, "supervisor, publisher, two workers, gunicorn and its two workers"
    # A stopped worker cannot act on anything: only the kernel can end it.
    if how == signal.SIGKILL:
        os.kill(gateway.worker_pids()[0], signal.SIGSTOP)
    os.kill(gateway.pid, how)
    assert gateway.process is not None
    gateway.process.wait(60)
    wait_for(lambda: all(is_gone(process) for process in family), "the end of every process")


def test_a_graceful_stop_leaves_no_segment_and_no_socket(start_gateway: Start) -> None:
    gateway = start_gateway()
    assert segments_of(gateway)
    assert gateway.stop() == 0
    assert not segments_of(gateway)
    assert not gateway.control_path.exists()


def test_what_a_killed_supervisor_left_is_cleaned_by_the_next_start(start_gateway: Start) -> None:
    gateway = start_gateway()
    family = family_of(gateway)
    os.kill(gateway.pid, signal.SIGKILL)
    assert gateway.process is not None
    gateway.process.wait(60)
    wait_for(lambda: all(is_gone(process) for process in family), "the end of every process")
    assert segments_of(gateway), "nobody was there to remove them"
    gateway.start()
    assert len(serving_pids(gateway)) == 2
    assert gateway.stop() == 0
    assert not segments_of(gateway)


def test_a_second_instance_of_the_same_name_is_refused_and_told_who_holds_it(
    start_gateway: Start,
) -> None:
    gateway = start_gateway()
    before = serving_pids(gateway)
    second = tidegate("run", "-c", str(gateway.config_path))
    assert second.returncode == 2
    assert str(gateway.pid) in second.stderr
    assert "Traceback" not in second.stderr
    assert serving_pids(gateway) == before, "the first one is not disturbed"


def test_a_second_instance_with_another_run_directory_does_not_take_live_segments(
    start_gateway: Start, tmp_path: Path
) -> None:
    gateway = start_gateway()
    elsewhere = tmp_path / "second.toml"
    text = gateway.config_path.read_text()
    elsewhere.write_text(text.replace(str(gateway.directory / "run"), str(tmp_path / "run")))
    second = tidegate("run", "-c", str(elsewhere))
    assert second.returncode == 2
    assert str(gateway.pid) in second.stderr
    gateway.publish("public:a", 1)


def test_a_taken_port_is_a_clear_error(start_gateway: Start, tmp_path: Path) -> None:
    gateway = start_gateway()
    second = Gateway(tmp_path, {"client": {"http_port": gateway.http_port, "tcp_port": 0}})
    refused = tidegate("run", "-c", str(second.config_path))
    assert refused.returncode == 2
    assert str(gateway.http_port) in refused.stderr
    assert "http_port" in refused.stderr
    assert "Traceback" not in refused.stderr
    second.close()


def test_ttin_and_ttou_change_the_number_of_workers_by_one(start_gateway: Start) -> None:
    gateway = start_gateway()
    os.kill(gateway.pid, signal.SIGTTIN)
    wait_for(lambda: len(serving_pids(gateway)) == 3, "a third worker")
    wait_for(lambda: gateway.status()["operation"] is None, "the end of the scaling")
    os.kill(gateway.pid, signal.SIGTTOU)
    wait_for(lambda: len(gateway.status()["workers"]) == 2, "two workers again")


def test_hup_replaces_every_worker_and_keeps_the_old_configuration_if_the_new_is_bad(
    start_gateway: Start,
) -> None:
    gateway = start_gateway()
    before = serving_pids(gateway)
    os.kill(gateway.pid, signal.SIGHUP)

    def all_new() -> bool:
        now = serving_pids(gateway)
        return len(now) == 2 and not set(now.values()) & set(before.values())

    wait_for(all_new, "two new workers")
    gateway.sections["limits"] = {"message_bytes_maximum": 1}
    gateway.write_config()
    after = serving_pids(gateway)
    os.kill(gateway.pid, signal.SIGHUP)
    wait_for(lambda: "message_bytes_maximum" in gateway.log(), "a line that names the bad key")
    assert serving_pids(gateway) == after


def test_usr1_reopens_the_log_file(start_gateway: Start, tmp_path: Path) -> None:
    log = tmp_path / "tidegate.log"
    gateway = start_gateway({"gateway": {"log_file": str(log)}})
    wait_for(log.exists, "the log file")
    log.rename(tmp_path / "rotated.log")
    os.kill(gateway.pid, signal.SIGUSR1)
    wait_for(log.exists, "a new log file")
    gateway.control("reload")
    wait_for(lambda: log.read_text(), "lines in the new file")


def test_a_second_interrupt_does_not_wait_for_anything(start_gateway: Start) -> None:
    gateway = start_gateway({"stop": {"spread_s": 20, "timeout_s": 60}})
    family = family_of(gateway)
    # A stopped worker would hold up any orderly end.
    os.kill(gateway.worker_pids()[0], signal.SIGSTOP)
    os.kill(gateway.pid, signal.SIGTERM)
    wait_for(lambda: "stop" in gateway.log().lower(), "the beginning of the end")
    os.kill(gateway.pid, signal.SIGINT)
    os.kill(gateway.pid, signal.SIGINT)
    assert gateway.process is not None
    gateway.process.wait(60)
    wait_for(lambda: all(is_gone(process) for process in family), "the end of every process")


@pytest.mark.parametrize("pin", ["node", "cpu", "none"])
def test_workers_run_where_the_configuration_pins_them(start_gateway: Start, pin: str) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    gateway = start_gateway({"workers": {"count": 2, "pin": pin}})
    masks = [sorted(os.sched_getaffinity(pid)) for pid in gateway.worker_pids()]
    if pin == "cpu":
        assert all(len(mask) == 1 for mask in masks)
        assert len(allowed) < 2 or masks[0] != masks[1]
    elif pin == "none":
        assert masks == [allowed, allowed]
    else:
        assert all(set(mask) <= set(allowed) and mask for mask in masks)


def test_the_service_manager_hears_status_and_the_end(start_gateway: Start) -> None:
    gateway = start_gateway()
    assert gateway.process is not None
    os.kill(gateway.pid, signal.SIGTERM)
    with contextlib.suppress(AssertionError):
        gateway.wait_notified("STOPPING=1")
        return
    pytest.fail("no STOPPING=1")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small /dev/shm needs root")
def test_a_full_shared_memory_is_a_clear_error_at_start(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, {"log": {"capacity_bytes": 64 << 20}})
    run = f"mount -t tmpfs -o size=8m tmpfs /dev/shm && exec {sys.executable} -m ops.cli run -c"
    refused = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{run} {gateway.config_path}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    gateway.close()
    assert refused.returncode == 2, refused.stderr
    assert "log.capacity_bytes" in refused.stderr
    assert "/dev/shm" in refused.stderr
    assert "Traceback" not in refused.stderr
