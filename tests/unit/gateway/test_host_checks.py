"""Each check both ways, on machines made of files, and what holds for all of them."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import Config, Host
from gateway.config.load import load as load_config
from gateway.host.checks import CHECKS, Check, Status
from gateway.host.examine import Finding, examine, holds, verdict, warning_at_start
from gateway.host.kernel import Kernel
from gateway.host.load import Load
from tests.support.host import GENEROUS, limits, make_host

MILLION = 1_000_000
DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
ROOMY = Host(cpus=2, memory_bytes=32 << 30, descriptors_max=1_100_000)
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"

# For each check a machine on which it finds something lacking, and how bad that is.
LACKING: dict[str, tuple[Status, dict[str, Any]]] = {
    "RLIMIT_NOFILE": (Status.CANNOT, {"files": {"proc/self/limits": limits(nofile=20_000)}}),
    "fs.nr_open": (Status.CANNOT, {"files": {"proc/sys/fs/nr_open": "400000"}}),
    "fs.file-max": (Status.CANNOT, {"files": {"proc/sys/fs/file-max": "1000000"}}),
    "fs.epoll.max_user_watches": (
        Status.CANNOT,
        {"files": {"proc/sys/fs/epoll/max_user_watches": "1000000"}},
    ),
    "memory": (Status.CANNOT, {"files": {"proc/meminfo": "MemTotal: 4000000 kB"}}),
    "cgroup memory": (Status.CANNOT, {"files": {"sys/fs/cgroup/memory.max": "2147483648"}}),
    "cgroup pids": (Status.CANNOT, {"files": {"sys/fs/cgroup/pids.max": "20"}}),
    "/dev/shm": (Status.CANNOT, {"shm_bytes": 64 << 20}),
    "net.netfilter.nf_conntrack_max": (
        Status.CANNOT,
        {"files": {"proc/sys/net/netfilter/nf_conntrack_max": "262144"}},
    ),
    "net.core.somaxconn": (Status.WARNING, {"files": {"proc/sys/net/core/somaxconn": "128"}}),
    "net.ipv4.tcp_max_syn_backlog": (
        Status.WARNING,
        {"files": {"proc/sys/net/ipv4/tcp_max_syn_backlog": "512"}},
    ),
    "net.ipv4.tcp_mem": (
        Status.WARNING,
        {"files": {"proc/sys/net/ipv4/tcp_mem": "900000 950000 1200000"}},
    ),
    "net.ipv4.tcp_rmem": (
        Status.WARNING,
        {"files": {"proc/sys/net/ipv4/tcp_rmem": "16384 131072 6291456"}},
    ),
    "net.ipv4.tcp_wmem": (
        Status.WARNING,
        {"files": {"proc/sys/net/ipv4/tcp_wmem": "16384 131072 6291456"}},
    ),
    "net.ipv4.ip_local_port_range": (Status.NOTE, {}),
    "RLIMIT_MEMLOCK": (
        Status.WARNING,
        {
            "files": {
                "proc/self/limits": limits(memlock=65536),
                "proc/sys/kernel/osrelease": "5.10.0",
            }
        },
    ),
    "CPUs": (Status.WARNING, {"files": {"sys/fs/cgroup/cpu.max": "50000 100000"}}),
    "NUMA nodes": (
        Status.WARNING,
        {
            "files": {
                "sys/devices/system/node/node1/cpulist": "2",
                "sys/devices/system/node/node2/cpulist": "3",
            }
        },
    ),
    "transparent huge pages": (
        Status.WARNING,
        {"files": {"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never"}},
    ),
    "clocksource": (Status.WARNING, {"files": {CLOCK: "hpet"}}),
    "io_uring": (Status.WARNING, {"io_uring": errno.EPERM}),
    "reuseport program": (Status.WARNING, {"reuseport_program": errno.EPERM}),
    "kTLS": (Status.NOTE, {"files": {"proc/sys/net/ipv4/tcp_available_ulp": "mptcp"}}),
}

IDS = [check.name for check in CHECKS]


def a_load(connections: int = MILLION, workers: int = 2, **flags: object) -> Load:
    config = load_config(flags={"workers.count": workers, **flags}, environment={}, host=ROOMY)
    return Load.of(config, ROOMY, connections=connections)


def found(check: Check, kernel: Kernel, load: Load | None = None) -> Finding:
    return examine(load or a_load(), kernel, [check])[0]


@pytest.mark.parametrize("check", CHECKS, ids=IDS)
def test_each_check_tells_what_a_machine_lacks(check: Check, tmp_path: Path) -> None:
    status, machine = LACKING[check.name]
    finding = found(check, make_host(tmp_path, **machine))
    assert finding.status is status
    assert finding.seen is not None
    assert finding.seen.now != finding.seen.wanted or status is Status.NOTE
    assert check.setting or finding.advice, "it must say what to do"


@pytest.mark.parametrize("check", CHECKS, ids=IDS)
def test_each_check_is_content_with_a_generous_machine(check: Check, tmp_path: Path) -> None:
    # No range of ports is wide enough for a million connections from one address.
    load = a_load(60_000 if check.name == "net.ipv4.ip_local_port_range" else MILLION)
    assert found(check, make_host(tmp_path), load).status is Status.OK


@pytest.mark.parametrize("check", CHECKS, ids=IDS)
def test_each_check_bears_a_machine_that_shows_nothing(check: Check, tmp_path: Path) -> None:
    nothing = make_host(tmp_path, dict.fromkeys(GENEROUS), shm_bytes=0)
    assert found(check, nothing).status in (Status.OK, Status.NOTE, check.lacking)


def test_a_setting_is_enough_once_it_has_the_value_that_was_wanted(tmp_path: Path) -> None:
    files: dict[str, str | None] = {}
    for _, machine in LACKING.values():
        files |= machine.get("files", {})
    kernel = make_host(tmp_path, files)
    for finding in examine(a_load(60_000 * 20), kernel):
        if finding.check.setting and finding.seen is not None:
            enabled = finding.check.setting.endswith("enabled")
            wanted = str(finding.seen.wanted)
            (tmp_path / finding.check.setting).write_text(f"[{wanted}]" if enabled else wanted)
    after = examine(a_load(60_000 * 20), kernel)
    lacking = [f.check.name for f in after if f.check.setting and f.status >= Status.WARNING]
    assert lacking == []


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    few=st.integers(1, 2 * MILLION),
    more=st.integers(0, 2 * MILLION),
    workers=st.integers(1, 128),
)
def test_more_connections_never_want_less(
    few: int, more: int, workers: int, tmp_path: Path
) -> None:
    kernel = make_host(tmp_path)
    small = examine(a_load(few, workers), kernel)
    large = examine(a_load(few + more, workers), kernel)
    for less, greater in zip(small, large, strict=True):
        name = less.check.name
        assert less.seen is not None or greater.seen is None, name
        if less.seen is None or greater.seen is None:
            continue
        pairs = zip(_numbers(less.seen.wanted), _numbers(greater.seen.wanted), strict=True)
        assert all(a <= b for a, b in pairs), name
        assert less.status <= greater.status, name
        if greater.seen.holds is not None and greater.seen.holds >= few + more:
            assert greater.status is Status.OK or not greater.seen.enough, name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    connections=st.integers(1, 2 * MILLION),
    workers=st.integers(1, 128),
    values=st.lists(st.integers(1, 4 * MILLION), min_size=6, max_size=6),
)
def test_a_number_suffices_if_and_only_if_it_is_as_large_as_wanted(
    connections: int, workers: int, values: list[int], tmp_path: Path
) -> None:
    names = [
        "fs/nr_open",
        "fs/file-max",
        "fs/epoll/max_user_watches",
        "net/netfilter/nf_conntrack_max",
        "net/core/somaxconn",
    ]
    files = {f"proc/sys/{name}": str(value) for name, value in zip(names, values, strict=False)}
    files["proc/self/limits"] = limits(nofile=values[0])
    files["proc/meminfo"] = f"MemTotal: {values[5] * 4} kB"
    for finding in examine(a_load(connections, workers), make_host(tmp_path, dict(files))):
        seen, name = finding.seen, finding.check.name
        if seen is None or isinstance(seen.now, str) or isinstance(seen.wanted, str):
            continue
        if name not in ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"):  # these should be small
            assert (finding.status is finding.check.lacking) == (seen.now < seen.wanted), name


def _numbers(value: float | str) -> list[float]:
    if isinstance(value, str):
        return [float(word) for word in value.split() if word.isdigit()]
    return [value]


def test_more_workers_share_the_descriptors(tmp_path: Path) -> None:
    kernel = make_host(tmp_path, {"proc/self/limits": limits(nofile=20_000)})
    descriptors = next(check for check in CHECKS if check.name == "RLIMIT_NOFILE")
    few = found(descriptors, kernel, a_load(MILLION, workers=2))
    assert few.status is Status.CANNOT
    assert "workers.count = 51" in few.advice
    assert found(descriptors, kernel, a_load(MILLION, workers=51)).status is Status.OK
    assert found(descriptors, kernel, a_load(MILLION, workers=50)).status is Status.CANNOT


def test_conntrack_counts_only_where_it_tracks(tmp_path: Path) -> None:
    table = "proc/sys/net/netfilter/nf_conntrack"
    kernel = make_host(tmp_path, {f"{table}_max": "100", f"{table}_count": "0"})
    conntrack = next(check for check in CHECKS if check.name.startswith("net.netfilter"))
    assert found(conntrack, kernel).status is Status.OK


@pytest.mark.parametrize("store", ["history", "presence"])
def test_what_history_and_presence_reserve_counts(store: str) -> None:
    large = a_load(**{f"{store}.memory_bytes": 1 << 30})
    assert large.segments_bytes >= a_load().segments_bytes + (1 << 29)


def test_segments_of_the_running_instance_count_as_room(tmp_path: Path) -> None:
    load = a_load()
    kernel = make_host(tmp_path, shm_bytes=load.segments_bytes - 4096)
    room = next(check for check in CHECKS if check.name == "/dev/shm")
    assert found(room, kernel).status is Status.CANNOT
    (tmp_path / "dev/shm/tidegate-default-log").write_bytes(b"x" * 8192)
    assert found(room, kernel).status is Status.OK


def test_the_verdict_is_the_worst_and_notes_do_not_count(tmp_path: Path) -> None:
    assert verdict(examine(a_load(), make_host(tmp_path / "a"))) is Status.OK
    dull = make_host(tmp_path / "b", {"proc/sys/net/core/somaxconn": "128"})
    assert verdict(examine(a_load(), dull)) is Status.WARNING
    small = make_host(tmp_path / "c", {"proc/sys/fs/nr_open": "65536"})
    findings = examine(a_load(), small)
    assert verdict(findings) is Status.CANNOT
    assert holds(findings) == 2 * (65536 - 256)


def test_the_shipped_settings_hold_a_million(tmp_path: Path) -> None:
    text = (DEPLOY / "99-tidegate.conf").read_text()
    shipped: dict[str, str | None] = {
        f"proc/sys/{key.replace('.', '/')}": value
        for key, value in re.findall(r"^([\w.-]+) = (.*)$", text, re.MULTILINE)
    }
    unit = (DEPLOY / "tidegate.service").read_text()
    granted = re.search(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)
    assert granted is not None
    shipped["proc/self/limits"] = limits(nofile=granted[1])
    assert verdict(examine(a_load(MILLION), make_host(tmp_path, shipped))) is Status.OK


# ---- the line at start


def test_a_host_that_lacks_nothing_gives_no_warning_at_start(tmp_path: Path) -> None:
    config = load_config(flags={"limits.connections_max": 1000}, environment={})
    assert warning_at_start(config, make_host(tmp_path)) == ""


def test_what_only_slows_the_gateway_is_no_matter_for_its_start(tmp_path: Path) -> None:
    config = load_config(flags={"limits.connections_max": 1000}, environment={})
    dull = make_host(tmp_path, {"proc/sys/net/core/somaxconn": "16"}, io_uring=errno.EPERM)
    assert warning_at_start(config, dull) == ""


def test_the_warning_at_start_is_one_line_that_names_the_cause_and_the_doctor(
    tmp_path: Path,
) -> None:
    flags = {"limits.connections_max": 1000, "workers.count": 2}
    config = load_config(flags=flags, environment={})
    table = "proc/sys/net/netfilter/nf_conntrack"
    warning = warning_at_start(config, make_host(tmp_path, {f"{table}_max": "900"}))
    assert "holds 800 of 2,000 configured connections" in warning
    assert "net.netfilter.nf_conntrack_max is 900" in warning
    assert "`tidegate doctor`" in warning
    assert "\n" not in warning


def test_an_automatic_limit_that_descriptors_decide_is_told(tmp_path: Path) -> None:
    config = Config()
    few = Host(cpus=2, memory_bytes=32 << 30, descriptors_max=1256)
    load = Load.of(config, few)
    assert load.connections == 2000
    assert load.possible == (32 << 30) // config.limits.queue_soft_bytes
    kernel = make_host(tmp_path, {"proc/self/limits": limits(nofile=1256)})
    descriptors = next(check for check in CHECKS if check.name == "RLIMIT_NOFILE")
    assert found(descriptors, kernel, load).status is Status.WARNING
