"""Applications change: what is installed at a reload is in force after it, if it can be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import CommandClient
from tests.support.gateway import Gateway, running_gateway
from tests.support.installed import edit
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = """
class App:
    def connect(self, request):
        return {"result": {"user": "ann"}}

    def rpc(self, request):
        return {"result": {"data": "old"}}
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    path = tmp_path / "shop" / "realtime.py"
    path.parent.mkdir()
    path.write_text(APPLICATION)
    return path


@pytest.fixture
def gateway(application: Path) -> Iterator[Gateway]:
    with running_gateway(sections(), environment=environment(application)) as running:
        yield running


def sections() -> dict[str, dict[str, Any]]:
    hooks = {"app": "shop.realtime:App", "timeout_s": 20.0}
    return {"workers": {"count": 2}, "hooks": hooks}


def environment(application: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{application.parents[1]}:{ROOT}"}


def cli(application: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "ops.cli", *map(str, arguments)],
        env=os.environ | environment(application),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_edit_to_the_application_is_in_force_after_a_reload(
    gateway: Gateway, application: Path
) -> None:
    with CommandClient(gateway.http_port) as client:
        client.call("connect")
        assert client.call("rpc")["data"] == "old"
        edit(application, '"old"', '"new"')
        assert client.call("rpc")["data"] == "old", "until the reload"
        gateway.control("reload")
        assert client.call("rpc")["data"] == "new", "on the same connection"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("class App:", "class App(:", "importing shop.realtime failed: SyntaxError"),
        ("class App:", "import gone\nclass App:", "importing shop.realtime failed"),
        ("class App:", "class Other:", "shop.realtime has no class App"),
    ],
)
def test_an_application_that_cannot_be_loaded_calls_the_reload_off(
    gateway: Gateway, application: Path, old: str, new: str, reason: str
) -> None:
    pids = gateway.worker_pids()
    with CommandClient(gateway.http_port) as client:
        client.call("connect")
        edit(application, old, new)
        ran = cli(application, "reload", "--socket", gateway.control_path)
        assert ran.returncode == 2
        assert "slot 0: the successor" in ran.stderr
        assert reason in gateway.log()
        assert gateway.worker_pids() == pids
        assert client.call("rpc")["data"] == "old"


def test_a_gateway_does_not_start_with_an_application_that_cannot_be_loaded(
    application: Path, tmp_path: Path
) -> None:
    edit(application, "class App:", "class Other:")
    config = tmp_path / "tidegate.toml"
    config.write_text('[hooks]\napp = "shop.realtime:App"\n')
    for verb in ("check-config", "run"):
        ran = cli(application, verb, "-c", config)
        assert ran.returncode == 2
        assert 'hooks.app = "shop.realtime:App": shop.realtime has no class App' in ran.stderr
        assert "Traceback" not in ran.stderr
    edit(application, "class Other:", "class App:")
    assert cli(application, "check-config", "-c", config).returncode == 0


def test_a_guard_rolls_back_an_application_that_fails(gateway: Gateway, application: Path) -> None:
    edit(application, 'return {"result": {"data": "old"}}', "raise RuntimeError")
    with ExitStack() as stack:
        # Some of them are with the worker that changes, wherever the kernel sends each.
        clients = [stack.enter_context(CommandClient(gateway.http_port)) for _ in range(30)]
        for client in clients:
            client.call("connect")
        gateway.control("reload", canary=1, guard=True)

        def rolled_back() -> bool:
            for client in clients:
                client.reply_to(client.send("rpc"))
            return gateway.status()["rolled_back"] is not None

        wait_for(rolled_back, "the rollback")
        assert "failures" in gateway.status()["rolled_back"]["reason"]
        for client in clients:
            assert client.call("rpc")["data"] == "old"
