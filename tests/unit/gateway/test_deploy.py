"""The files of `deploy/` agree with the program that they are for."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from gateway.config import Config

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
SYSCTL = Path("/proc/sys")


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(DEPLOY / "tidegate.service")
    return unit["Service"]


def test_the_unit_waits_longer_than_the_gateway_may_take(
    service: configparser.SectionProxy,
) -> None:
    config = Config()
    assert float(service["TimeoutStopSec"]) > config.stop.timeout_s
    assert float(service["TimeoutStartSec"]) > config.reload.start_timeout_s
    assert service["Type"] == "notify-reload"
    assert service["KillMode"] == "mixed", "TERM is for the supervisor alone"


def test_the_unit_grants_the_descriptors_that_the_sysctl_file_allows(
    service: configparser.SectionProxy,
) -> None:
    nr_open = re.search(r"^fs\.nr_open = (\d+)$", sysctl_text(), re.MULTILINE)
    assert nr_open is not None
    assert int(service["LimitNOFILE"]) <= int(nr_open[1])


def test_every_sysctl_key_exists_and_has_a_reason() -> None:
    if not SYSCTL.is_dir():
        pytest.skip("no /proc/sys here")
    for group in sysctl_text().strip().split("\n\n"):
        lines = group.splitlines()
        assert lines[0].startswith("#"), f"no reason above {lines[0]}"
        for line in lines:
            if not line.startswith("#"):
                key, _, value = line.partition(" = ")
                assert (SYSCTL / key.replace(".", "/")).exists(), f"no such key: {key}"
                assert re.fullmatch(r"\d+( \d+)*", value), line


def sysctl_text() -> str:
    return (DEPLOY / "99-tidegate.conf").read_text()
