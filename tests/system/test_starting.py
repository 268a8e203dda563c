"""Starts that fail, starts that are called off, and starts in the surroundings of containers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.waiting import wait_for

STRANGER_UID = 54321


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tidegate-") as made:
        yield Path(made)


def run(directory: Path, sections: dict[str, Any]) -> tuple[Gateway, int]:
    """A gateway that is expected to end by itself, and its exit status."""
    gateway = Gateway(directory, sections)
    gateway.start(wait=False)
    assert gateway.process is not None
    try:
        return gateway, gateway.process.wait(60)
    finally:
        gateway.close()


def leftovers(gateway: Gateway) -> list[Path]:
    run_dir = gateway.control_path.parent
    left = [path for path in run_dir.glob("*") if path.name not in ("lock", "api.key")]
    return left + list(Path("/dev/shm").glob(f"tidegate-{gateway.name}-*"))


def test_a_process_that_cannot_start_ends_the_start_with_its_reason(directory: Path) -> None:
    gateway, status = run(directory, {"reload": {"start_timeout_s": 0.01}})
    assert status == 2
    assert "cannot start: it did not say that it is ready within 0.01 s" in gateway.log()
    assert "Traceback" not in gateway.log()
    assert leftovers(gateway) == []


def test_a_full_disk_behind_standard_output_is_no_reason_to_end(directory: Path) -> None:
    gateway = Gateway(directory)
    try:
        with Path("/dev/full").open("wb") as full:
            gateway.process = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "run", "-c", str(gateway.config_path)],
                stdout=full,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"NOTIFY_SOCKET": str(directory / "notify")},
            )
        gateway.wait_notified("READY=1")
        assert gateway.status()["state"] == "serving"
        assert gateway.stop() == 0
    finally:
        gateway.close()


def test_a_log_file_that_cannot_be_opened_is_a_clear_error(directory: Path) -> None:
    gateway, status = run(directory, {"gateway": {"log_file": "/proc/none/tidegate.log"}})
    assert status == 2
    assert "gateway.log_file = /proc/none/tidegate.log" in gateway.log()
    assert "Traceback" not in gateway.log()
    assert leftovers(gateway) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_can_be_called_off(directory: Path, number: signal.Signals) -> None:
    gateway = Gateway(directory).start(wait=False)
    try:
        wait_for(gateway.control_path.exists, "the control socket, before any process serves")
        assert gateway.process is not None
        gateway.process.send_signal(number)
        assert gateway.process.wait(60) == 0
    finally:
        gateway.close()
    assert leftovers(gateway) == []


def open_to_strangers(folder: Path, spare: Path) -> list[str]:
    """Shell lines that make `folder` reachable for everybody, within this mount namespace.

    An interpreter in root's home is closed to others. Instead of opening the home itself, an empty
    one is put in its place, with nothing in it but that folder.
    """
    closed = [parent for parent in folder.parents if not parent.stat().st_mode & 0o001]
    if not closed:
        return []
    return [
        f"mkdir {spare}",
        f"mount --bind {folder} {spare}",
        f"mount -t tmpfs -o mode=755 tmpfs {closed[-1]}",
        f"mkdir -p {folder}",
        f"mount --bind {spare} {folder}",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="a user id of one's own choice needs root")
def test_it_runs_with_a_random_user_id_no_home_and_a_read_only_root(directory: Path) -> None:
    """As a container platform runs it: nothing may be written but /dev/shm and one directory."""
    directory.chmod(0o755)
    (directory / "run").mkdir()
    os.chown(directory / "run", STRANGER_UID, STRANGER_UID)
    gateway = Gateway(directory)
    gateway.config_path.chmod(0o644)
    become = f"setpriv --reuid {STRANGER_UID} --regid {STRANGER_UID} --clear-groups"
    script = [
        *open_to_strangers(Path(sys.base_prefix), directory / "spare"),
        # Where /tmp is on the root file system it must stay writable itself.
        f"mount --bind {directory} {directory}",
        "mount -o remount,bind,ro /",
        f"cd {Path(__file__).parents[2]}",
        f"exec {become} env -i PATH=/usr/bin:/bin {sys.executable} -m ops.cli run"
        f" -c {gateway.config_path}",
    ]
    with gateway.log_path.open("ab") as log:
        gateway.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", "\n".join(script)], stdout=log, stderr=log
        )
    try:
        wait_for(lambda: _serves(gateway), "a gateway that serves")
        assert Path(f"/proc/{gateway.pid}").stat().st_uid == STRANGER_UID
        assert gateway.publish("public:a", 1)["offset"] == 1
    except AssertionError as failure:
        raise AssertionError(f"{failure}\n{gateway.log()}") from None
    finally:
        gateway.close()


def _serves(gateway: Gateway) -> bool:
    assert gateway.process is not None
    assert gateway.process.poll() is None, "it ended"
    with contextlib.suppress(Exception):
        return bool(gateway.status()["state"] == "serving")
    return False
