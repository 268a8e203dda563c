"""What a host needs: one entry a fact, with its reason.

An entry looks at the kernel and says what is now, what is wanted, and for how many connections the
present value suffices. Nothing here changes anything; `examine.py` goes through the entries.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from gateway.config import WORKERS_MAX
from gateway.config.checks import DESCRIPTORS_RESERVED
from gateway.config.schema import KIB, MIB
from gateway.host.kernel import Kernel
from gateway.host.load import CONNECTION_KERNEL_BYTES, CONNECTION_WORKER_BYTES, Load
from gateway.topology import read_nodes

FILES_OF_OTHERS = 65536
"""Open files of everything else on the machine."""
SPARE_DIVISOR = 8
"""An eighth more in a table where connections that ended linger."""
IO_URING_MEMLOCK_BYTES = 8 * MIB
"""Rings of one process with room to spare."""
LOCAL_PORT_FIRST, LOCAL_PORT_LAST = 10240, 65535
"""Below are the ports that servers like to have."""
CLOCKS_WITHOUT_A_CALL = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
"""Those that vdso(7) reads."""


class Status(IntEnum):
    """Of a finding, the worse the higher; the names are part of the JSON schema."""

    OK = 0
    NOTE = 1
    """Good to know; changes no exit status."""
    WARNING = 2
    CANNOT = 3
    """The host cannot hold the connections."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an entry saw. `holds`: connections that the present value suffices for, None: any."""

    now: int | float | str
    wanted: int | float | str
    holds: int | None = None
    enough: bool = True
    otherwise: str = ""
    """Another way out, to be added to the advice."""


Look = Callable[[Kernel, Load], Seen | None]
"""Gives None where this kernel does not have or not show the thing."""


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


# ---- looks of one shape


def _descriptors(read: Callable[[Kernel], int | None]) -> Callable[[Kernel, Load], Seen | None]:
    """A limit of one process's descriptors."""

    def look(kernel: Kernel, load: Load) -> Seen | None:
        now = read(kernel)
        if now is None:
            return None
        each = max(0, now - DESCRIPTORS_RESERVED)
        workers = -(-max(load.connections, load.possible) // each) if each else WORKERS_MAX + 1
        otherwise = f"workers.count = {workers}" if workers <= WORKERS_MAX else ""
        return Seen(now, load.descriptors, each * load.workers, otherwise=otherwise)

    return look


def _at_least(path: str, wanted: Callable[[Load], int]) -> Callable[[Kernel, Load], Seen | None]:
    """A number that does not depend on the connections."""

    def look(kernel: Kernel, load: Load) -> Seen | None:
        now = kernel.number(path)
        return None if now is None else Seen(now, wanted(load), None, now >= wanted(load))

    return look


def _memory(read: Callable[[Kernel], int | None]) -> Callable[[Kernel, Load], Seen | None]:
    """A bound of the memory of everything: processes, segments, sockets."""

    def look(kernel: Kernel, load: Load) -> Seen | None:
        now = read(kernel)
        if now is None:
            return None
        each = CONNECTION_KERNEL_BYTES + CONNECTION_WORKER_BYTES
        wanted = load.base_bytes + load.connections * each
        return Seen(now, wanted, max(0, now - load.base_bytes) // each)

    return look


def _minimum(path: str) -> Callable[[Kernel, Load], Seen | None]:
    """The first of three: what a socket's buffer keeps under memory pressure."""

    def look(kernel: Kernel, load: Load) -> Seen | None:
        now, memory = kernel.numbers(path), kernel.memory_bytes()
        if now is None or not now[0] or memory is None:
            return None
        # A quarter of the memory for each direction.
        holds = memory // 4 // now[0]
        return Seen(now[0], min(4 * KIB, now[0]), holds)

    return look


# ---- looks of their own


def _file_max(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.number("proc/sys/fs/file-max")
    if now is None:
        return None
    own = FILES_OF_OTHERS + load.workers * DESCRIPTORS_RESERVED
    return Seen(now, load.connections + own, max(0, now - own))


def _epoll_watches(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.number("proc/sys/fs/epoll/max_user_watches")
    if now is None:
        return None
    own = load.workers * DESCRIPTORS_RESERVED
    return Seen(now, load.connections + own, max(0, now - own))


def _tcp_mem(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.numbers("proc/sys/net/ipv4/tcp_mem")
    if now is None or len(now) != 3:
        return None
    # In pages, and a message under way takes one for each connection that it goes to.
    pages = load.connections
    wanted = [max(a, b) for a, b in zip(now, (pages * 3 // 4, pages, pages * 3 // 2), strict=True)]
    return Seen(_words(now), _words(wanted), now[1])


def _port_range(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.numbers("proc/sys/net/ipv4/ip_local_port_range")
    if now is None or len(now) != 2:
        return None
    wanted = [min(now[0], LOCAL_PORT_FIRST), max(now[1], LOCAL_PORT_LAST)]
    return Seen(_words(now), _words(wanted), now[1] - now[0] + 1)


def _conntrack(kernel: Kernel, load: Load) -> Seen | None:
    table = "proc/sys/net/netfilter/nf_conntrack"
    now = kernel.number(f"{table}_max")
    # No file: not loaded. 0: no limit. None of our own in it: no rule asks for tracking here.
    if not now or not kernel.number(f"{table}_count"):
        return None
    wanted = load.connections + load.connections // SPARE_DIVISOR + 1
    return Seen(now, wanted, now * SPARE_DIVISOR // (SPARE_DIVISOR + 1))


def _shared_memory(kernel: Kernel, load: Load) -> Seen | None:
    shm = kernel.root / "dev/shm"
    free = kernel.free_bytes(shm)
    if free is None:
        return None
    # What a running instance of this name took is ours already.
    own = 0
    for segment in shm.glob(f"tidegate-{load.instance}-*"):
        try:
            own += segment.stat().st_blocks * 512
        except OSError:
            continue
    enough = free + own >= load.segments_bytes
    return Seen(free + own, load.segments_bytes, None if enough else 0, enough)


def _memlock(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.limit("Max locked memory")
    if now is None:
        return None
    # Since 5.12 rings are charged to the cgroup's memory instead.
    free_of_it = (kernel.release() or (0, 0)) >= (5, 12)
    wanted = 0 if free_of_it else IO_URING_MEMLOCK_BYTES
    return Seen(now, wanted, None, now >= wanted)


def _pids(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.cgroup_pids()
    if now is None:
        return None
    return Seen(now, load.tasks, None if now >= load.tasks else 0, now >= load.tasks)


def _cpu_count(kernel: Kernel, load: Load) -> Seen | None:
    allowed = kernel.cpus()
    if not allowed:
        return None
    quota = kernel.cgroup_cpus()
    now: float = len(allowed) if quota is None else min(len(allowed), round(quota, 2))
    return Seen(now, load.workers, None, now >= load.workers)


def _nodes(kernel: Kernel, load: Load) -> Seen | None:
    nodes = read_nodes(kernel.root / "sys/devices/system", kernel.cpus())
    if not nodes:
        return None
    return Seen(
        f"{len(nodes)} with CPUs", f"{len(nodes)} workers or more", None, load.workers >= len(nodes)
    )


def _huge_pages(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.chosen("sys/kernel/mm/transparent_hugepage/enabled")
    return None if now is None else Seen(now, "madvise", None, now != "always")


def _clock(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if not now:
        return None
    quick = now in CLOCKS_WITHOUT_A_CALL
    return Seen(now, now if quick else "tsc", None, quick)


def _io_uring(kernel: Kernel, load: Load) -> Seen | None:
    disabled = kernel.number("proc/sys/kernel/io_uring_disabled")
    refused = kernel.io_uring()
    if not refused:
        return Seen("available", "available")
    reason = errno.errorcode.get(refused, str(refused))
    now = f"{reason}, io_uring_disabled {disabled}" if disabled else reason
    return Seen(now, "available", None, False)


def _reuseport_program(kernel: Kernel, load: Load) -> Seen | None:
    refused = kernel.reuseport_program()
    now = errno.errorcode.get(refused, str(refused)) if refused else "available"
    return Seen(now, "available", None, not refused)


def _ktls(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.text("proc/sys/net/ipv4/tcp_available_ulp")
    return None if now is None else Seen(now or "none", "tls", None, "tls" in now.split())


def _words(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


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
        look=_descriptors(lambda kernel: kernel.limit("Max open files")),
        lacking=Status.CANNOT,
        advice="LimitNOFILE={wanted} in the systemd unit, `ulimit -n {wanted}` in root's shell, "
        "`--ulimit nofile={wanted}` for a container",
    ),
    _sysctl(
        "fs.nr_open",
        "no process's descriptor limit can be set above it",
        _descriptors(lambda kernel: kernel.number("proc/sys/fs/nr_open")),
        Status.CANNOT,
    ),
    _sysctl(
        "fs.file-max",
        "open files of the whole machine; beyond, accept(2) fails with ENFILE",
        _file_max,
        Status.CANNOT,
    ),
    _sysctl(
        "fs.epoll.max_user_watches",
        "a connection is a watch, counted for each user; beyond, epoll_ctl(2) fails with ENOSPC",
        _epoll_watches,
        Status.CANNOT,
    ),
    Check(
        name="memory",
        why=f"a quiet connection takes about {CONNECTION_KERNEL_BYTES // KIB} KiB of the kernel's "
        f"and {CONNECTION_WORKER_BYTES // KIB} KiB of the worker's memory; queues come on top",
        look=_memory(Kernel.memory_bytes),
        lacking=Status.CANNOT,
        unit="bytes",
        advice="give the machine more memory, or shrink log.capacity_bytes and workers.count",
    ),
    Check(
        name="cgroup memory",
        why="the least limit of the cgroups above the gateway; sockets count, beyond it is killed",
        look=_memory(Kernel.cgroup_memory_bytes),
        lacking=Status.CANNOT,
        unit="bytes",
        absent="no limit",
        advice="MemoryMax={wanted} in the systemd unit, `--memory {wanted}` for a container",
    ),
    Check(
        name="cgroup pids",
        why="processes and threads of the gateway, two generations at a reload",
        look=_pids,
        lacking=Status.CANNOT,
        absent="no limit",
        advice="TasksMax={wanted} in the systemd unit, `--pids-limit {wanted}` for a container",
    ),
    Check(
        name="/dev/shm",
        why="log, channel table, uplinks and statistics are reserved there (size and free space)",
        look=_shared_memory,
        lacking=Status.CANNOT,
        unit="bytes",
        advice="`mount -o remount,size=... /dev/shm` with {wanted} bytes free, `--shm-size` for a "
        "container, or lower log.capacity_bytes",
    ),
    _sysctl(
        "net.netfilter.nf_conntrack_max",
        "where connections are tracked, each is an entry; with a full table new ones are dropped",
        _conntrack,
        Status.CANNOT,
        absent="tracks nothing here",
    ),
    _sysctl(
        "net.core.somaxconn",
        "client.backlog is cut to it: who is not yet accepted after a restart of the world",
        _at_least("proc/sys/net/core/somaxconn", lambda load: load.backlog),
    ),
    _sysctl(
        "net.ipv4.tcp_max_syn_backlog",
        "half-open handshakes of a listener; beyond, they are answered by cookies or dropped",
        _at_least("proc/sys/net/ipv4/tcp_max_syn_backlog", lambda load: load.backlog),
    ),
    _sysctl(
        "net.ipv4.tcp_mem",
        "pages for all TCP buffers: above the second number windows shrink, above the third sends "
        "fail; a message on its way to everybody is a page for each",
        _tcp_mem,
    ),
    Check(
        name="net.ipv4.tcp_rmem",
        why="the minimum is kept by every receive buffer also when memory is short",
        look=_minimum("proc/sys/net/ipv4/tcp_rmem"),
        unit="bytes",
        advice="lower the first number: `sysctl -w net.ipv4.tcp_rmem='4096 16384 4194304'`",
    ),
    Check(
        name="net.ipv4.tcp_wmem",
        why="the minimum is kept by every send buffer also when memory is short",
        look=_minimum("proc/sys/net/ipv4/tcp_wmem"),
        unit="bytes",
        advice="lower the first number: `sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'`",
    ),
    _sysctl(
        "net.ipv4.ip_local_port_range",
        "only for clients on this host (a proxy, a load test): connections from one of its "
        "addresses to one port",
        _port_range,
        Status.NOTE,
    ),
    Check(
        name="RLIMIT_MEMLOCK",
        why="kernels before 5.12 charge the rings of io_uring to it",
        look=_memlock,
        unit="bytes",
        advice="LimitMEMLOCK={wanted} in the systemd unit, `--ulimit memlock={wanted}` for a "
        "container",
    ),
    Check(
        name="CPUs",
        why="CPUs that affinity and quota leave; workers beyond them compete for the same ones",
        look=_cpu_count,
        advice="lower workers.count, unless descriptors ask for so many workers",
    ),
    Check(
        name="NUMA nodes",
        why="slots go round the nodes; one without a worker leaves its memory channels idle",
        look=_nodes,
        advice="raise workers.count",
    ),
    Check(
        name="transparent huge pages",
        why="with always, small heaps grow by 2 MiB at a time and khugepaged stalls the loops",
        look=_huge_pages,
        setting="sys/kernel/mm/transparent_hugepage/enabled",
    ),
    Check(
        name="clocksource",
        why="any other makes each reading of the clock a system call, several a message",
        look=_clock,
        advice="boot with clocksource=tsc if the kernel's log does not call it unstable",
    ),
    Check(
        name="io_uring",
        why="one system call sends to many connections; without it each takes its own",
        look=_io_uring,
        advice="`sysctl -w kernel.io_uring_disabled=0`; in a container a seccomp profile that "
        "allows io_uring_setup",
    ),
    Check(
        name="reuseport program",
        why="SO_ATTACH_REUSEPORT_CBPF lets us choose the listener of a new connection",
        look=_reuseport_program,
        advice="a seccomp profile that allows setsockopt(2) with that option",
    ),
    Check(
        name="kTLS",
        why="the kernel encrypts (TCP_ULP); only for TLS without a proxy in front",
        look=_ktls,
        lacking=Status.NOTE,
        advice="`modprobe tls`",
    ),
)
