"""The doctor's remedies, on machines made of files: the script, and what is written at run time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gateway.config.load import load as load_config
from gateway.host.checks import Status
from gateway.host.examine import Finding, examine
from gateway.host.load import Load
from ops.tune import Outcome, apply, remedy, script
from tests.support.host import Files, limits, make_host

POOR: Files = {
    "proc/self/limits": limits(nofile=4096),
    "proc/sys/fs/nr_open": "4096",
    "proc/sys/net/core/somaxconn": "128",
    "proc/sys/net/ipv4/tcp_mem": "100 2000000 9000000",
    "proc/sys/net/ipv4/tcp_rmem": "65536 131072 6291456",
    "proc/sys/net/ipv4/ip_local_port_range": "32768 60999",
    "sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never",
}
LOAD = Load.of(load_config(flags={"workers.count": 2}, environment={}), connections=3_000_000)


def findings(root: Path, files: Files | None = None) -> list[Finding]:
    return examine(LOAD, make_host(root, POOR if files is None else files))


def by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in outcomes}


def test_what_can_be_written_is_written_and_told_with_before_and_after(tmp_path: Path) -> None:
    outcomes = by_name(apply(findings(tmp_path), tmp_path))
    somaxconn = outcomes["net.core.somaxconn"]
    assert (somaxconn.before, somaxconn.after, somaxconn.reason) == ("128", "4096", "")
    assert (tmp_path / "proc/sys/net/core/somaxconn").read_text() == "4096"
    assert outcomes["fs.nr_open"].after == str(3_000_000 // 2 + 256)
    assert outcomes["transparent huge pages"].after == "madvise"


def test_what_cannot_be_done_at_run_time_is_left_and_says_why(tmp_path: Path) -> None:
    outcomes = by_name(apply(findings(tmp_path), tmp_path))
    descriptors = outcomes["RLIMIT_NOFILE"]
    assert descriptors.before == descriptors.after
    assert "LimitNOFILE=" in descriptors.reason
    assert outcomes["net.ipv4.tcp_rmem"].reason, "lowering is for people to decide"


def test_no_number_is_ever_lowered(tmp_path: Path) -> None:
    before = findings(tmp_path)
    values = {
        finding.check.setting: (tmp_path / finding.check.setting).read_text()
        for finding in before
        if finding.check.setting.startswith("proc/sys/")
    }
    apply(before, tmp_path)
    for setting, old in values.items():
        new = (tmp_path / setting).read_text()
        assert all(int(a) <= int(b) for a, b in zip(old.split(), new.split(), strict=True)), setting
    assert (tmp_path / "proc/sys/net/ipv4/tcp_mem").read_text() == "4500000 6000000 9000000"


def test_what_somebody_raised_meanwhile_stays(tmp_path: Path) -> None:
    found = findings(tmp_path)
    (tmp_path / "proc/sys/net/core/somaxconn").write_text("50000")
    outcome = by_name(apply(found, tmp_path))["net.core.somaxconn"]
    assert outcome.after == "50000"
    assert "would lower it" in outcome.reason
    assert (tmp_path / "proc/sys/net/core/somaxconn").read_text() == "50000"


def test_notes_are_left_alone(tmp_path: Path) -> None:
    apply(findings(tmp_path), tmp_path)
    ports = (tmp_path / "proc/sys/net/ipv4/ip_local_port_range").read_text()
    assert ports.split() == ["32768", "60999"]


def test_a_setting_that_cannot_be_written_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    found = findings(tmp_path)
    place = tmp_path / "proc/sys/fs/nr_open"
    place.unlink()
    place.mkdir()
    outcomes = by_name(apply(found, tmp_path))
    assert "cannot be written (Is a directory)" in outcomes["fs.nr_open"].reason
    assert outcomes["net.core.somaxconn"].after == "4096"


def test_the_script_is_a_shell_script_whose_prose_is_comments(tmp_path: Path) -> None:
    text = script(LOAD, findings(tmp_path))
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert "sysctl -w fs.nr_open=1500256" in commands
    assert "sysctl -w net.ipv4.tcp_mem='4500000 6000000 9000000'" in commands
    assert "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled" in commands
    assert "net.core.somaxconn = 4096" in commands
    assert not any("ulimit" in line or "port_range" in line for line in commands)
    assert "LimitNOFILE=1500256" in text


def test_the_script_of_a_machine_that_lacks_nothing_does_nothing(tmp_path: Path) -> None:
    load = Load.of(load_config(flags={"workers.count": 2}, environment={}), connections=1000)
    text = script(load, examine(load, make_host(tmp_path)))
    assert all(line.startswith("#") for line in text.splitlines())


@pytest.mark.parametrize("status", [Status.NOTE, Status.WARNING, Status.CANNOT])
def test_every_finding_has_a_remedy(tmp_path: Path, status: Status) -> None:
    found = [f for f in findings(tmp_path) if f.status is status and f.seen is not None]
    assert found
    assert all(remedy(finding) for finding in found)
