"""What a host needs: one entry a fact, with its reason and its remedy.

Nothing here reads or changes anything: `looks.py` reads, `examine.py` goes through the entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from gateway.config.schema import KIB
from gateway.host import looks
from gateway.host.kernel import Kernel
from gateway.host.load import CONNECTION_KERNEL_BYTES, CONNECTION_WORKER_BYTES
from gateway.host.looks import Look


class Status(IntEnum):
    """Of a finding, the worse the higher; the names are part of the JSON schema."""

    OK = 0
    NOTE = 1
    """Good to know; changes no exit status."""
    WARNING = 2
    CANNOT = 3
    """The host cannot hold the connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One entry."""

    name: str
    why: str
    look: Look
    lacking: Status = Status.WARNING
    """What it means if the present value does not suffice."""
    unit: str = ""
    absent: str = ""
    """Why it is good that the thing is not there; empty: that tells nothing."""
    setting: str = ""
    """File, relative to the root, to which root writes the wanted value at run time."""
    advice: str = ""
    """How it is changed where such a write cannot do it; {wanted} is filled in."""


# ---- the entries


def _sysctl(
    key: str, why: str, look: Look, lacking: Status = Status.WARNING, absent: str = ""
) -> Check:
    """An entry that sysctl(8) sets."""
    setting = f"proc/sys/{key.replace('.', '/')}"
    return Check(name=key, why=why, look=look, lacking=lacking, absent=absent, setting=setting)


CHECKS: tuple[Check, ...] = (
    Check(
        name="RLIMIT_NOFILE",
        why="a connection is a descriptor of its worker; this is the hard limit of one process",
        look=looks.descriptors(lambda kernel: kernel.limit("Max open files")),
        lacking=Status.CANNOT,
        advice="LimitNOFILE={wanted} in the systemd unit, `ulimit -n {wanted}` in root's shell, "
        "`--ulimit nofile={wanted}` for a container",
    ),
    _sysctl(
        "fs.nr_open",
        "no process's descriptor limit can be set above it",
        looks.descriptors(lambda kernel: kernel.number("proc/sys/fs/nr_open")),
        Status.CANNOT,
    ),
    _sysctl(
        "fs.file-max",
        "open files of the whole machine; beyond, accept(2) fails with ENFILE",
        looks.file_max,
        Status.CANNOT,
    ),
    _sysctl(
        "fs.epoll.max_user_watches",
        "a connection is a watch, counted for each user; beyond, epoll_ctl(2) fails with ENOSPC",
        looks.epoll_watches,
        Status.CANNOT,
    ),
    Check(
        name="memory",
        why=f"a quiet connection takes about {CONNECTION_KERNEL_BYTES // KIB} KiB of the kernel's "
        f"and {CONNECTION_WORKER_BYTES // KIB} KiB of the worker's memory; queues come on top",
        look=looks.memory(Kernel.memory_bytes),
        lacking=Status.CANNOT,
        unit="bytes",
        advice="give the machine more memory, or shrink log.capacity_bytes and workers.count",
    ),
    Check(
        name="cgroup memory",
        why="the least limit of the cgroups above the gateway; sockets count, beyond it is killed",
        look=looks.memory(Kernel.cgroup_memory_bytes),
        lacking=Status.CANNOT,
        unit="bytes",
        absent="no limit",
        advice="MemoryMax={wanted} in the systemd unit, `--memory {wanted}` for a container",
    ),
    Check(
        name="cgroup pids",
        why="processes and threads of the gateway, two generations at a reload",
        look=looks.pids,
        lacking=Status.CANNOT,
        absent="no limit",
        advice="TasksMax={wanted} in the systemd unit, `--pids-limit {wanted}` for a container",
    ),
    Check(
        name="/dev/shm",
        why="log, channels, history, presence, uplinks and statistics are reserved there",
        look=looks.shared_memory,
        lacking=Status.CANNOT,
        unit="bytes",
        advice="`mount -o remount,size=... /dev/shm` with {wanted} bytes free, `--shm-size` for a "
        "container, or lower log.capacity_bytes, history.memory_bytes or presence.memory_bytes",
    ),
    _sysctl(
        "net.netfilter.nf_conntrack_max",
        "where connections are tracked, each is an entry; with a full table new ones are dropped",
        looks.conntrack,
        Status.CANNOT,
        absent="tracks nothing here",
    ),
    _sysctl(
        "net.core.somaxconn",
        "client.backlog is cut to it: who is not yet accepted after a restart of the world",
        looks.at_least("proc/sys/net/core/somaxconn", lambda load: load.backlog),
    ),
    _sysctl(
        "net.ipv4.tcp_max_syn_backlog",
        "half-open handshakes of a listener; beyond, they are answered by cookies or dropped",
        looks.at_least("proc/sys/net/ipv4/tcp_max_syn_backlog", lambda load: load.backlog),
    ),
    _sysctl(
        "net.ipv4.tcp_mem",
        "pages for all TCP buffers: above the second number windows shrink, above the third sends "
        "fail; a used socket keeps a page, a message on its way to everybody takes one for each",
        looks.tcp_mem,
    ),
    Check(
        name="net.ipv4.tcp_rmem",
        why="the minimum is kept by every receive buffer also when memory is short",
        look=looks.minimum("proc/sys/net/ipv4/tcp_rmem"),
        unit="bytes",
        advice="lower the first number: `sysctl -w net.ipv4.tcp_rmem='4096 16384 4194304'`",
    ),
    Check(
        name="net.ipv4.tcp_wmem",
        why="the minimum is kept by every send buffer also when memory is short",
        look=looks.minimum("proc/sys/net/ipv4/tcp_wmem"),
        unit="bytes",
        advice="lower the first number: `sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'`",
    ),
    _sysctl(
        "net.ipv4.ip_local_port_range",
        "only for clients on this host (a proxy, a load test): connections from one of its "
        "addresses to one port",
        looks.port_range,
        Status.NOTE,
    ),
    Check(
        name="RLIMIT_MEMLOCK",
        why="kernels before 5.12 charge the rings of io_uring to it",
        look=looks.memlock,
        unit="bytes",
        advice="LimitMEMLOCK={wanted} in the systemd unit, `--ulimit memlock={wanted}` for a "
        "container",
    ),
    Check(
        name="CPUs",
        why="CPUs that affinity and quota leave; workers beyond them compete for the same ones",
        look=looks.cpu_count,
        advice="lower workers.count, unless descriptors ask for so many workers",
    ),
    Check(
        name="NUMA nodes",
        why="slots go round the nodes; one without a worker leaves its memory channels idle",
        look=looks.nodes,
        advice="raise workers.count",
    ),
    Check(
        name="transparent huge pages",
        why="with always, small heaps grow by 2 MiB at a time and khugepaged stalls the loops",
        look=looks.huge_pages,
        setting="sys/kernel/mm/transparent_hugepage/enabled",
    ),
    Check(
        name="clocksource",
        why="any other makes each reading of the clock a system call, several a message",
        look=looks.clock,
        advice="boot with clocksource=tsc if the kernel's log does not call it unstable",
    ),
    Check(
        name="io_uring",
        why="one system call sends to many connections; without it each takes its own",
        look=looks.io_uring,
        advice="`sysctl -w kernel.io_uring_disabled=0`; in a container a seccomp profile that "
        "allows io_uring_setup",
    ),
    Check(
        name="reuseport program",
        why="SO_ATTACH_REUSEPORT_CBPF lets us choose the listener of a new connection",
        look=looks.reuseport_program,
        advice="a seccomp profile that allows setsockopt(2) with that option",
    ),
    Check(
        name="kTLS",
        why="the kernel encrypts (TCP_ULP); only for TLS without a proxy in front",
        look=looks.ktls,
        lacking=Status.NOTE,
        advice="`modprobe tls`",
    ),
)
