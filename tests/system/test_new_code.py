"""A reload brings the code that is installed by then into force, or changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.crowd import Crowd
from tests.support.gateway import Gateway
from tests.support.installed import copy_packages, edit
from tests.support.raw_websocket import RawWebSocket

Start = Callable[..., Gateway]

CHANNEL = "public:code"


@pytest.fixture
def installed_copy(tmp_path: Path) -> Path:
    copy_packages(tmp_path)
    return tmp_path


def test_an_edit_to_the_installed_code_is_in_force_after_a_reload(
    installed_copy: Path, monkeypatch: pytest.MonkeyPatch, start_gateway: Start
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed_copy))
    gateway = start_gateway({"workers": {"count": 1}})
    with Crowd(gateway, CHANNEL) as crowd, RawWebSocket(gateway.http_port) as before:
        version = before.connect(CHANNEL)["version"]
        edit(
            installed_copy / "workers" / "__main__.py",
            'WorkerSettings.from_map(message["settings"])',
            'WorkerSettings.from_map(message["settings"] | {"version": "edited"})',
        )
        gateway.control("reload")
        with RawWebSocket(gateway.http_port) as after:
            assert after.connect(CHANNEL)["version"] == "edited" != version
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])


def test_broken_code_calls_the_reload_off_and_clients_stay(
    installed_copy: Path, monkeypatch: pytest.MonkeyPatch, start_gateway: Start
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed_copy))
    gateway = start_gateway({"workers": {"count": 1}})
    pids = gateway.worker_pids()
    with Crowd(gateway, CHANNEL) as crowd:
        edit(installed_copy / "workers" / "__main__.py", "def main() -> int:", "def main( -> int:")
        ran = subprocess.run(
            [sys.executable, "-m", "ops.cli", "reload", "--socket", gateway.control_path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 2
        assert "slot 0: the successor exited with status 1" in ran.stderr
        assert "SyntaxError" in gateway.log()
        assert gateway.worker_pids() == pids
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])
