"""A machine made of files: a root with as much of /proc and /sys as the checks of a host read."""

from __future__ import annotations

from pathlib import Path

from gateway.host.kernel import Kernel

Files = dict[str, str | None]

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 {nofile:<20} files
Max locked memory         65536                {memlock:<20} bytes
"""


def limits(*, nofile: int | str = 1_100_000, memlock: int | str = "unlimited") -> str:
    return LIMITS.format(nofile=nofile, memlock=memlock)


# A machine that lacks nothing for a million connections in two workers.
GENEROUS: Files = {
    "proc/self/limits": limits(),
    "proc/self/status": "Name:\ttidegate\nCpus_allowed_list:\t0-3\n",
    "proc/self/cgroup": "0::/\n",
    "proc/meminfo": "MemTotal:       33554432 kB\nMemFree:        1024 kB\n",
    "proc/sys/kernel/osrelease": "6.1.0-18-amd64",
    "proc/sys/fs/nr_open": "1100000",
    "proc/sys/fs/file-max": "9223372036854775807",
    "proc/sys/fs/epoll/max_user_watches": "7000000",
    "proc/sys/net/core/somaxconn": "16384",
    "proc/sys/net/ipv4/tcp_max_syn_backlog": "16384",
    "proc/sys/net/ipv4/tcp_mem": "1572864\t2097152\t3145728",
    "proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t33554432",
    "proc/sys/net/ipv4/tcp_wmem": "4096\t16384\t4194304",
    "proc/sys/net/ipv4/ip_local_port_range": "1024\t65535",
    "proc/sys/net/ipv4/tcp_available_ulp": "espintcp mptcp tls",
    "proc/sys/net/netfilter/nf_conntrack_max": "2000000",
    "proc/sys/net/netfilter/nf_conntrack_count": "17",
    "proc/sys/kernel/io_uring_disabled": "0",
    "sys/fs/cgroup/memory.max": "max",
    "sys/fs/cgroup/pids.max": "max",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "sys/devices/system/cpu/online": "0-3",
    "sys/devices/system/node/node0/cpulist": "0-1",
    "sys/devices/system/node/node1/cpulist": "2-3",
}


def make_host(
    root: Path,
    files: Files | None = None,
    *,
    shm_bytes: int = 1 << 34,
    io_uring: int = 0,
    reuseport_program: int = 0,
) -> Kernel:
    """The generous machine with some `files` changed, or taken away (None)."""
    for name, text in (GENEROUS | (files or {})).items():
        path = root / name
        if text is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        else:
            path.unlink(missing_ok=True)
    (root / "dev/shm").mkdir(parents=True, exist_ok=True)
    return Kernel(
        root=root,
        io_uring=lambda: io_uring,
        reuseport_program=lambda: reuseport_program,
        free_bytes=lambda path: shm_bytes,
    )
