"""Reading a machine: limits, and cgroups of both versions as containers show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.host.kernel import Kernel
from tests.support.host import Files, limits, make_host

UNLIMITED_V1 = str((1 << 63) - 4096)

V2_NESTED: Files = {
    "proc/self/cgroup": "0::/system.slice/tidegate.service",
    "sys/fs/cgroup/memory.max": None,
    "sys/fs/cgroup/system.slice/memory.max": "4294967296",
    "sys/fs/cgroup/system.slice/tidegate.service/memory.max": "max",
    "sys/fs/cgroup/system.slice/pids.max": "max",
    "sys/fs/cgroup/system.slice/tidegate.service/pids.max": "100",
    "sys/fs/cgroup/system.slice/cpu.max": "150000 100000",
    "sys/fs/cgroup/system.slice/tidegate.service/cpu.max": "max 100000",
}
V1: Files = {
    "proc/self/cgroup": "4:memory:/jobs/one\n3:cpu,cpuacct:/jobs\n2:pids:/jobs\n1:name=systemd:/",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
    "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": "4294967296",
    "sys/fs/cgroup/memory/jobs/one/memory.limit_in_bytes": UNLIMITED_V1,
    "sys/fs/cgroup/pids/jobs/pids.max": "100",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/cpu/jobs/cpu.cfs_quota_us": "150000",
    "sys/fs/cgroup/cpu/jobs/cpu.cfs_period_us": "100000",
}
# A container without a namespace of cgroups: the host's path, the container's mount.
V1_IN_A_CONTAINER: Files = {
    "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu:/docker/abc\n2:pids:/docker/abc\n0::/docker/x",
    "sys/fs/cgroup/memory.max": None,
    "sys/fs/cgroup/pids.max": None,
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "4294967296",
    "sys/fs/cgroup/pids/pids.max": "100",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
}
HYBRID: Files = {
    "proc/self/cgroup": "2:pids:/a\n0::/a",
    "sys/fs/cgroup/memory.max": None,
    "sys/fs/cgroup/unified/a/memory.max": "4294967296",
    "sys/fs/cgroup/pids/a/pids.max": "100",
    "sys/fs/cgroup/unified/a/cpu.max": "150000 100000",
}


@pytest.mark.parametrize("files", [V2_NESTED, V1, V1_IN_A_CONTAINER, HYBRID])
def test_the_least_limit_of_a_cgroup_and_its_ancestors_binds(tmp_path: Path, files: Files) -> None:
    kernel = make_host(tmp_path, files)
    assert kernel.cgroup_memory_bytes() == 4 << 30
    assert kernel.cgroup_pids() == 100
    assert kernel.cgroup_cpus() == 1.5


def test_a_machine_without_limits_has_none(tmp_path: Path) -> None:
    kernel = make_host(tmp_path)
    assert kernel.cgroup_memory_bytes() is None
    assert kernel.cgroup_pids() is None
    assert kernel.cgroup_cpus() is None


def test_hard_limits_are_read_and_unlimited_is_a_large_number(tmp_path: Path) -> None:
    kernel = make_host(tmp_path, {"proc/self/limits": limits(nofile=4096)})
    assert kernel.limit("Max open files") == 4096
    assert kernel.limit("Max locked memory") == (1 << 63) - 1
    assert kernel.limit("Max dreams") is None


def test_nothing_raises_on_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    empty = Kernel(root=tmp_path)
    assert empty.text("proc/meminfo") is None
    assert empty.memory_bytes() is None
    assert empty.cpus() is None
    assert empty.release() is None
    assert empty.limit("Max open files") is None
    assert empty.free_bytes(tmp_path / "dev/shm") is None
    assert empty.cgroup_memory_bytes() is None


def test_garbage_is_as_good_as_nothing(tmp_path: Path) -> None:
    kernel = make_host(
        tmp_path,
        {
            "proc/sys/net/ipv4/tcp_mem": "1 two 3",
            "proc/meminfo": "MemTotal: much",
            "proc/self/cgroup": "no colon\n\n0::/../..",
            "sys/kernel/mm/transparent_hugepage/enabled": "always",
        },
    )
    assert kernel.numbers("proc/sys/net/ipv4/tcp_mem") is None
    assert kernel.memory_bytes() is None
    assert kernel.cgroup_memory_bytes() is None
    assert kernel.chosen("sys/kernel/mm/transparent_hugepage/enabled") is None
