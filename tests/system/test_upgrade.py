"""The supervisor replaces itself by new code: one process goes on, and nobody is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.control.client import ControlClient
from gateway.control.wire import encode, recv_frame
from gateway.errors import ControlError, TidegateError
from gateway.producer import Producer
from shm.segment import process_start
from tests.support.crowd import Crowd
from tests.support.gateway import Gateway, running_gateway
from tests.support.installed import PACKAGES, copy_packages, edit, set_version
from tests.support.publishing import Publishing
from tests.support.waiting import PATIENCE_S, wait_for

Start = Callable[..., Gateway]

CHANNEL = "public:upgrade"
UPGRADE_TIMEOUT_S = 60.0
CHECK = "check of the new code"
EXEC = "supervisor"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages, version 1, of which every process of a gateway is started."""
    copy_packages(tmp_path)
    set_version(tmp_path, "1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def tidegate(verb: str, gateway: Gateway) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", verb, "--socket", str(gateway.control_path)],
        capture_output=True,
        text=True,
        timeout=UPGRADE_TIMEOUT_S,
        check=False,
    )


def upgrade(gateway: Gateway, at: Callable[[str], None] = lambda phase: None) -> dict[str, Any]:
    """Upgrades, and calls `at` with each phase as it is told."""
    with ControlClient(gateway.control_path, timeout_s=UPGRADE_TIMEOUT_S) as control:
        return control.call("upgrade", on_progress=lambda progress: at(progress["phase"]))


def family(gateway: Gateway) -> list[psutil.Process]:
    supervisor = psutil.Process(gateway.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def segments(gateway: Gateway) -> dict[str, int]:
    """Inode by name."""
    found = Path("/dev/shm").glob(f"tidegate-{gateway.name}-*")
    return {path.name: path.stat().st_ino for path in found}


def code_of(process: psutil.Process) -> set[str]:
    """The extension modules that a process has mapped."""
    names = {line.split(maxsplit=5)[-1] for line in _maps(process) if ".so" in line}
    return {name for name in names if Path(name.split()[0]).parent.name in PACKAGES}


def _maps(process: psutil.Process) -> list[str]:
    return Path(f"/proc/{process.pid}/maps").read_text().splitlines()


def reinstall(folder: Path, version: str) -> None:
    """As an installer does: every file is a new one."""
    # Named for the stable ABI or for one Python, as the build has it.
    for extension in (*folder.glob("shm/_ring.*.so"), *folder.glob("workers/_engine.*.so")):
        shutil.copy2(extension, extension.with_suffix(".new"))
        extension.with_suffix(".new").replace(extension)
    set_version(folder, version)


@contextlib.contextmanager
def published(gateway: Gateway) -> Iterator[list[int]]:
    """Offsets of messages published all the while: nobody may miss one, or be disturbed."""
    with Crowd(gateway, CHANNEL) as crowd, Producer(gateway.control_path) as producer:
        with Publishing(producer, CHANNEL, position=crowd.position) as offsets:
            yield offsets
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
        crowd.assert_undisturbed(offsets[-1])
        assert gateway.ends() == {}


def test_an_upgrade_replaces_all_code_and_no_client_notices(
    installed: Path, start_gateway: Start
) -> None:
    gateway = start_gateway()
    start, before = process_start(gateway.pid), family(gateway)
    with published(gateway) as offsets:
        wait_for(lambda: offsets, "the first message")
        reinstall(installed, "2")
        kept, totals = segments(gateway), gateway.totals()
        ran = tidegate("upgrade", gateway)
        assert ran.returncode == 0, ran.stderr
        assert [line.split()[1:3] for line in ran.stdout.splitlines() if "version" in line] == [
            ["1", "2"]
        ]
        # All but the uplinks and keeps of the old workers, and of the old API, are there still.
        workers_and_api = 2 * 2 + 2
        wait_for(
            lambda: len(kept.items() - segments(gateway).items()) == workers_and_api,
            "the end of the old API's uplinks",
        )
        reached = len(offsets)
        wait_for(lambda: len(offsets) > reached + 100, "publishing to go on")

    wait_for(
        lambda: len(segments(gateway)) == 5 + 2 * 2 + 2, "the producer's uplink to be reclaimed"
    )
    status = gateway.status()
    assert (status["version"], status["pid"], status["generation"]) == ("2", gateway.pid, 2)
    assert process_start(gateway.pid) == start
    after = family(gateway)
    assert not {each.pid for each in before[1:]} & {each.pid for each in after[1:]}
    for process in after:
        code = code_of(process)
        assert code and all(
            name.startswith(str(installed)) and "deleted" not in name for name in code
        ), code
    assert "gateway.upgrade" in after[0].cmdline()
    totals_now = gateway.totals()
    for name in ("control_requests_total", "uplinks_opened_total", 'upgrades_total{result="done"}'):
        assert totals_now[name] > totals[name], name


def test_the_exec_alone_closes_nothing_and_old_workers_go_on(
    installed: Path, start_gateway: Start
) -> None:
    """The new code's workers do not start, which no check can know: the supervisor alone is new."""
    gateway = start_gateway({"reload": {"handoff": False}})
    before = gateway.status()
    with published(gateway) as offsets:
        set_version(installed, "2")
        edit(
            installed / "workers" / "__main__.py",
            'WorkerSettings.from_map(message["settings"])',
            "WorkerSettings.from_map({})",
        )
        ran = tidegate("upgrade", gateway)
        assert ran.returncode == 2
        assert "slot 0: the successor" in ran.stderr
        status = gateway.status()
        assert status["version"] == "2"
        pids = [status[each]["pid"] for each in ("publisher", "api")]
        assert [*pids, *gateway.worker_pids()] == [
            before["publisher"]["pid"],
            before["api"]["pid"],
            *(worker["pid"] for worker in before["workers"]),
        ]
        reached = len(offsets)
        wait_for(lambda: len(offsets) > reached + 100, "publishing to go on")


@pytest.mark.timeout(900)
def test_ten_upgrades_in_a_row_leave_nothing_behind(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    supervisor = psutil.Process(gateway.pid)
    figures = []
    with Crowd(gateway, CHANNEL, each=2) as crowd:
        for number in range(10):
            upgrade(gateway)
            # The old API's descriptors go when its workers have let go of their uplinks.
            wait_for(
                lambda: len(segments(gateway)) == 5 + 2 + 2,
                f"log, its tables, stats, a worker's uplink and keep, the API's, {number + 1}",
            )
            figures.append((supervisor.num_fds(), supervisor.memory_info().rss))
        assert gateway.status()["generation"] == 11
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])
    descriptors = [fds for fds, _ in figures]
    assert max(descriptors) - min(descriptors) <= 2, descriptors
    assert descriptors[-1] <= descriptors[0] + 1, descriptors
    memory = [rss for _, rss in figures]
    assert memory[-1] - memory[0] < 2 << 20, memory


BROKEN = {
    "SyntaxError": ("gateway/supervisor.py", "def run(self)", "def run(self"),
    "ImportError": (
        "workers/__main__.py",
        "def main() -> int:",
        "from workers import nothing\n\n\ndef main() -> int:",
    ),
    "reads 8 to 9": (
        "gateway/upgrade.py",
        "UPGRADE_STATE_VERSION = 1",
        "UPGRADE_STATE_VERSION = 9",
    ),
    "none may be of another kind than before": (
        "gateway/metrics.py",
        '"gauge", "uplinks_open"',
        '"counter", "uplinks_open"',
    ),
    "KeyError": ("gateway/fleet.py", 'state["wanted"]', 'state["wished"]'),
    "not checked within 15 s": (
        "gateway/supervisor.py",
        "EXIT_OK = 0",
        "import threading; threading.Event().wait()",
    ),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_new_code_that_cannot_take_over_is_refused_and_everything_goes_on(
    reason: str, installed: Path, start_gateway: Start
) -> None:
    gateway = start_gateway({"workers": {"count": 1}, "reload": {"start_timeout_s": 15}})
    pids = sorted(process.pid for process in family(gateway))
    path, old, new = BROKEN[reason]
    with Crowd(gateway, CHANNEL, each=2) as crowd, Producer(gateway.control_path) as producer:
        edit(installed / path, old, new)
        ran = tidegate("upgrade", gateway)
        assert ran.returncode == 2
        assert reason in ran.stderr
        assert "the gateway runs on as it was" in ran.stderr
        assert sorted(process.pid for process in family(gateway)) == pids
        assert "gateway.upgrade" not in psutil.Process(gateway.pid).cmdline()
        crowd.assert_undisturbed(producer.publish(CHANNEL, 1).offset)
        status = gateway.status()
        assert (status["state"], status["operation"]) == ("serving", None)
        assert status["totals"]['upgrades_total{result="failed"}'] == 1


def test_new_code_may_count_what_the_old_did_not(installed: Path, start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    before = gateway.totals()
    edit(
        installed / "gateway" / "metrics.py",
        "METRICS: list[_ring.Metric] = [",
        'METRICS: list[_ring.Metric] = [("counter", "later_total", "Later."),',
    )
    edit(
        installed / "gateway" / "supervisor.py",
        "self._runtime.memory.row.heartbeat()",
        'self._runtime.memory.row.add("later_total")',
    )
    upgrade(gateway)
    wait_for(lambda: gateway.totals()["later_total"] > 1, "the new counter")
    assert gateway.totals()["control_requests_total"] > before["control_requests_total"]


def test_a_configuration_that_cannot_be_used_refuses_the_upgrade(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    gateway.sections["limits"] = {"message_bytes_max": -1}
    gateway.write_config()
    with pytest.raises(ControlError, match="message_bytes_max") as caught:
        upgrade(gateway)
    assert caught.value.code == "config"
    gateway.sections["limits"] = {}
    gateway.sections["client"]["http_port"] = 1
    gateway.write_config()
    with pytest.raises(ControlError, match=r"cannot change client\.http_port"):
        upgrade(gateway)
    assert gateway.status()["generation"] == 1


def test_usr2_upgrades_and_the_service_manager_is_told(
    installed: Path, start_gateway: Start
) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    set_version(installed, "2")
    os.kill(gateway.pid, signal.SIGUSR2)
    gateway.wait_notified("RELOADING=1")
    gateway.wait_notified("READY=1")
    status = gateway.status()
    assert (status["version"], status["pid"]) == ("2", gateway.pid)
    os.kill(gateway.pid, signal.SIGUSR2)
    wait_for(lambda: gateway.status()["generation"] == 3, "the second upgrade")
    assert gateway.stop() == 0
    assert segments(gateway) == {}
    assert not gateway.control_path.exists()


@pytest.mark.parametrize("phase", [CHECK, EXEC])
@pytest.mark.parametrize("who", ["worker", "publisher"])
def test_a_death_during_the_upgrade_is_noticed(who: str, phase: str, start_gateway: Start) -> None:
    """When `supervisor` is told, the exec follows at once: the death falls before, in or after."""
    gateway = start_gateway()
    status = gateway.status()
    victim = (status["workers"][0] if who == "worker" else status["publisher"])["pid"]

    def kill(now: str) -> None:
        if now == phase:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    upgrade(gateway, kill)
    wait_for(lambda: gateway.status()["state"] == "serving", "all to serve")
    assert not psutil.pid_exists(victim)
    assert victim not in [process.pid for process in family(gateway)]
    deaths = f'process_deaths_total{{process="{who}"}}'
    assert gateway.totals()[deaths] == 1
    with Producer(gateway.control_path) as producer:
        producer.publish(CHANNEL, 1)


def test_term_at_the_moment_of_the_exec_stops_the_gateway_in_order(start_gateway: Start) -> None:
    gateway = start_gateway()
    process = gateway.process
    assert process is not None

    def stop(phase: str) -> None:
        if phase == EXEC:
            os.kill(gateway.pid, signal.SIGTERM)

    with pytest.raises(TidegateError):
        upgrade(gateway, stop)
    assert process.wait(60) == 0
    assert segments(gateway) == {}
    assert not gateway.control_path.exists()


def test_an_upgraded_gateway_is_as_alive_as_before(start_gateway: Start) -> None:
    """Deaths are answered, verbs are obeyed, and no process outlives the supervisor."""
    gateway = start_gateway()
    upgrade(gateway)
    before = gateway.worker_pids()
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: before[0] not in gateway.worker_pids(), "a new worker")
    wait_for(lambda: gateway.status()["state"] == "serving", "all to serve")
    assert gateway.status()["workers"][0]["restarts"] == 1
    upgrade(gateway)
    assert gateway.status()["workers"][0]["restarts"] == 1, "histories are carried over"
    assert gateway.control("scale", count=3)["after"]["workers"] == 3
    gateway.control("reload")
    second = subprocess.run(
        [sys.executable, "-m", "ops.cli", "run", "-c", str(gateway.config_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (second.returncode, f"runs already as process {gateway.pid}" in second.stderr) == (
        2,
        True,
    )
    everyone = family(gateway)
    os.kill(gateway.pid, signal.SIGKILL)
    assert gateway.process is not None
    gateway.process.wait()
    psutil.wait_procs(everyone, timeout=60)
    assert not [process for process in everyone if process.is_running()]
    gateway.start()
    assert gateway.status()["state"] == "serving"


def test_open_control_connections_are_carried_over(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    request = encode({"id": 7, "verb": "status", "args": {}})
    with (
        ControlClient(gateway.control_path, timeout_s=PATIENCE_S) as idle,
        socket.socket(socket.AF_UNIX) as half,
        ControlClient(gateway.control_path, timeout_s=PATIENCE_S) as busy,
    ):
        half.connect(str(gateway.control_path))
        recv_frame(half)
        half.sendall(request[:5])
        stopping = threading.Event()
        answered: list[dict[str, Any]] = []

        def publish() -> None:
            while not stopping.is_set():
                answered.append(busy.call("publish", channel=CHANNEL, data=len(answered)))

        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            upgrade(gateway)
        finally:
            stopping.set()
            publisher.join()
        offsets = [each["offset"] for each in answered]
        assert offsets == list(range(1, len(offsets) + 1))
        half.sendall(request[5:])
        answer, _ = recv_frame(half)
        assert (answer["id"], answer["result"]["generation"]) == (7, 2)
        assert idle.call("status")["generation"] == 2


def test_new_code_that_fails_after_all_keeps_the_processes_that_serve(installed: Path) -> None:
    """It passed the check, and then cannot take over; a correction and USR2 end the upgrade."""
    with running_gateway() as gateway:
        pids = gateway.worker_pids()
        supervisor = installed / "gateway" / "supervisor.py"
        good = supervisor.read_text()
        edit(
            supervisor,
            "        supervisor = cls(Assembly.restore(",
            '        if "--resume" in __import__("sys").argv:\n'
            '            raise OSError("no luck")\n'
            "        supervisor = cls(Assembly.restore(",
        )
        set_version(installed, "2")
        with published(gateway) as offsets:
            ran = tidegate("upgrade", gateway)
            assert ran.returncode == 2
            assert "cannot take over (no luck): the gateway serves on without one" in ran.stderr
            gateway.wait_notified("STATUS=serves without a supervisor, USR2 tries again (no luck)")
            reached = len(offsets)
            wait_for(lambda: len(offsets) > reached + 100, "publishing to go on")
            supervisor.write_text(good)
            os.kill(gateway.pid, signal.SIGUSR2)
            wait_for(lambda: "upgrade is done" in gateway.log(), "the end of the upgrade")
        assert gateway.status()["version"] == "2"
        assert not set(pids) & set(gateway.worker_pids())


def test_an_upgrade_does_not_wait_for_a_slot_that_left_without_a_process(
    start_gateway: Start,
) -> None:
    gateway = start_gateway({"workers": {"restart_delay_min_s": 60, "restart_delay_max_s": 60}})

    def kill_the_last() -> bool:
        """Whether it is dead and waits to start: the first death is answered at once."""
        worker = gateway.status()["workers"][1]
        if worker["pid"] is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)
        return worker["state"] == "backing_off"

    wait_for(kill_the_last, "a worker that waits to start")
    gateway.control("scale", count=1)
    assert len(upgrade(gateway)["after"]["workers"]) == 1


def test_an_upgrade_needs_the_end_of_a_canary(start_gateway: Start) -> None:
    gateway = start_gateway()
    gateway.control("reload", canary=1)
    with pytest.raises(ControlError, match="a canary is under way"):
        upgrade(gateway)
    gateway.control("reload", end="promote")
    upgrade(gateway)
    assert gateway.status()["state"] == "serving"
