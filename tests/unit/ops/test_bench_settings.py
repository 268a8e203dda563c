"""Settings of the kernel that a benchmark raises for a while, on machines made of files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gateway.config.load import load as load_config
from gateway.errors import TidegateError
from gateway.host.examine import Finding, examine
from gateway.host.load import Load
from ops.bench.endings import Ended, endings_raised
from ops.bench.million import SETTINGS, Size
from ops.bench.settings import raised
from tests.support.host import make_host

POOR = {
    "proc/sys/net/core/somaxconn": "128",
    "proc/sys/net/ipv4/tcp_mem": "100 200 300",
}
SOMAXCONN = "proc/sys/net/core/somaxconn"
TCP_MEM = "proc/sys/net/ipv4/tcp_mem"
LOAD = Load.of(load_config(flags={"workers.count": 2}, environment={}), connections=1_000_000)


def findings(root: Path) -> list[Finding]:
    kernel = make_host(root, POOR)
    return [each for each in examine(LOAD, kernel) if each.check.name in SETTINGS]


def now(root: Path) -> tuple[str, str]:
    return (root / SOMAXCONN).read_text().strip(), (root / TCP_MEM).read_text().strip()


BEFORE = ("128", "100 200 300")
RAISED = ("4096", "1500000 2000000 3000000")


def test_what_is_lacking_is_raised_for_the_block_and_set_back_after_it(tmp_path: Path) -> None:
    said: list[str] = []
    with raised(findings(tmp_path), said.append, tmp_path):
        assert now(tmp_path) == RAISED
    assert now(tmp_path) == BEFORE
    assert [line.split()[0] for line in said] == ["raised", "raised", "set", "set"]


@pytest.mark.parametrize("failure", [TidegateError("no"), KeyboardInterrupt(), ValueError("x")])
def test_a_failure_sets_everything_back(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)), raised(findings(tmp_path), lambda _: None, tmp_path):
        assert now(tmp_path) == RAISED
        raise failure
    assert now(tmp_path) == BEFORE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_would_end_the_process_sets_everything_back(
    tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with (
        pytest.raises(Ended),
        endings_raised(),
        raised(findings(tmp_path), lambda _: None, tmp_path),
    ):
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 5)  # A place where the interpreter looks for signals.
    assert now(tmp_path) == BEFORE
    assert signal.getsignal(number) is before


def test_what_somebody_else_set_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with raised(findings(tmp_path), lambda _: None, tmp_path):
        (tmp_path / SOMAXCONN).write_text("9999")
    assert now(tmp_path) == ("9999", "100 200 300")


def test_a_setting_that_cannot_be_raised_ends_it_with_nothing_changed(tmp_path: Path) -> None:
    found = findings(tmp_path)
    (tmp_path / TCP_MEM).unlink()
    (tmp_path / TCP_MEM).mkdir()
    with (
        pytest.raises(TidegateError, match="tcp_mem"),
        raised(found, lambda _: None, tmp_path),
    ):
        raise AssertionError("the block must not begin")
    assert (tmp_path / SOMAXCONN).read_text().strip() == "128"


def test_a_million_has_room_in_its_workers_also_where_the_hash_is_unfair() -> None:
    size = Size(connections=1_000_000)
    mean = size.connections / size.worker_count
    # Three standard deviations and more above the mean: SO_REUSEPORT throws dice.
    assert mean + 4 * mean**0.5 < size.worker_connections
