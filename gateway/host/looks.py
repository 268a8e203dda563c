"""How each fact of a host is seen: what is now, what is wanted, and for how many connections.

Functions here read a Kernel and compare it with a Load; what it means and what to do about it is in
`checks.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.config import WORKERS_MAX
from gateway.config.checks import DESCRIPTORS_RESERVED
from gateway.config.schema import KIB, MIB
from gateway.host.kernel import Kernel
from gateway.host.load import CONNECTION_KERNEL_BYTES, CONNECTION_WORKER_BYTES, Load
from gateway.topology import read_nodes

FILES_OF_OTHERS = 65536
"""Open files of everything else on the machine."""
LINGERING = (9, 8)
"""An eighth more in a table where connections that ended linger."""
IO_URING_MEMLOCK_BYTES = 8 * MIB
"""Rings of one process with room to spare."""
TCP_PAGES = 2
"""Of a connection: a socket that was used keeps one, and a message on its way takes one."""
LOCAL_PORT_FIRST, LOCAL_PORT_LAST = 10240, 65535
"""Below are the ports that servers like to have."""
CLOCKS_WITHOUT_A_CALL = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
"""Those that vdso(7) reads."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an entry saw. `holds`: connections that the present value suffices for, None: any."""

    now: int | float | str
    wanted: int | float | str
    holds: int | None = None
    enough: bool = True
    limiting: bool = False
    """It decides the automatic limit of connections, where memory would allow more."""
    otherwise: str = ""
    """Another way out, to be added to the advice."""


Look = Callable[[Kernel, Load], Seen | None]
"""Gives None where this kernel does not have or not show the thing."""


# ---- looks of one shape


def descriptors(read: Callable[[Kernel], int | None]) -> Look:
    """A limit of one process's descriptors."""

    def look(kernel: Kernel, load: Load) -> Seen | None:
        now = read(kernel)
        if now is None:
            return None
        each = max(0, now - DESCRIPTORS_RESERVED)
        workers = -(-max(load.connections, load.possible) // each) if each else WORKERS_MAX + 1
        otherwise = f"workers.count = {workers}" if workers <= WORKERS_MAX else ""
        holds = each * load.workers
        limiting = holds < load.possible
        return Seen(now, load.descriptors, holds, limiting=limiting, otherwise=otherwise)

    return look


def at_least(path: str, wanted: Callable[[Load], int]) -> Look:
    """A number that does not depend on the connections."""

    def look(kernel: Kernel, load: Load) -> Seen | None:
        now = kernel.number(path)
        return None if now is None else Seen(now, wanted(load), None, now >= wanted(load))

    return look


def memory(read: Callable[[Kernel], int | None]) -> Look:
    """A bound of the memory of everything: processes, segments, sockets."""

    def look(kernel: Kernel, load: Load) -> Seen | None:
        now = read(kernel)
        if now is None:
            return None
        each = CONNECTION_KERNEL_BYTES + CONNECTION_WORKER_BYTES
        wanted = load.base_bytes + load.connections * each
        return Seen(now, wanted, max(0, now - load.base_bytes) // each)

    return look


def minimum(path: str) -> Look:
    """The first of three: what a socket's buffer keeps under memory pressure."""

    def look(kernel: Kernel, load: Load) -> Seen | None:
        now, memory_bytes = kernel.numbers(path), kernel.memory_bytes()
        if now is None or not now[0] or memory_bytes is None:
            return None
        # A quarter of the memory for each direction.
        return Seen(now[0], min(4 * KIB, now[0]), memory_bytes // 4 // now[0])

    return look


# ---- looks of their own


def file_max(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.number("proc/sys/fs/file-max")
    if now is None:
        return None
    own = FILES_OF_OTHERS + load.workers * DESCRIPTORS_RESERVED
    return Seen(now, load.connections + own, max(0, now - own))


def epoll_watches(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.number("proc/sys/fs/epoll/max_user_watches")
    if now is None:
        return None
    own = load.workers * DESCRIPTORS_RESERVED
    return Seen(now, load.connections + own, max(0, now - own))


def tcp_mem(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.numbers("proc/sys/net/ipv4/tcp_mem")
    if now is None or len(now) != 3:
        return None
    pages = TCP_PAGES * load.connections
    wanted = [max(a, b) for a, b in zip(now, (pages * 3 // 4, pages, pages * 3 // 2), strict=True)]
    return Seen(_words(now), _words(wanted), now[1] // TCP_PAGES)


def port_range(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.numbers("proc/sys/net/ipv4/ip_local_port_range")
    if now is None or len(now) != 2:
        return None
    wanted = [min(now[0], LOCAL_PORT_FIRST), max(now[1], LOCAL_PORT_LAST)]
    return Seen(_words(now), _words(wanted), now[1] - now[0] + 1)


def conntrack(kernel: Kernel, load: Load) -> Seen | None:
    table = "proc/sys/net/netfilter/nf_conntrack"
    now = kernel.number(f"{table}_max")
    # No file: not loaded. 0: no limit. None of our own in it: no rule asks for tracking here.
    if not now or not kernel.number(f"{table}_count"):
        return None
    more, less = LINGERING
    return Seen(now, -(-load.connections * more // less), now * less // more)


def shared_memory(kernel: Kernel, load: Load) -> Seen | None:
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


def memlock(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.limit("Max locked memory")
    if now is None:
        return None
    # Since 5.12 rings are charged to the cgroup's memory instead.
    free_of_it = (kernel.release() or (0, 0)) >= (5, 12)
    wanted = 0 if free_of_it else IO_URING_MEMLOCK_BYTES
    return Seen(now, wanted, None, now >= wanted)


def pids(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.cgroup_pids()
    if now is None:
        return None
    return Seen(now, load.tasks, None if now >= load.tasks else 0, now >= load.tasks)


def cpu_count(kernel: Kernel, load: Load) -> Seen | None:
    allowed = kernel.cpus()
    if not allowed:
        return None
    quota = kernel.cgroup_cpus()
    now: float = len(allowed) if quota is None else min(len(allowed), round(quota, 2))
    return Seen(now, load.workers, None, now >= load.workers)


def nodes(kernel: Kernel, load: Load) -> Seen | None:
    count = len(read_nodes(kernel.root / "sys/devices/system", kernel.cpus()))
    if not count:
        return None
    return Seen(f"{count} with CPUs", f"workers.count >= {count}", None, load.workers >= count)


def huge_pages(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.chosen("sys/kernel/mm/transparent_hugepage/enabled")
    return None if now is None else Seen(now, "madvise", None, now != "always")


def clock(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if not now:
        return None
    quick = now in CLOCKS_WITHOUT_A_CALL
    return Seen(now, now if quick else "tsc", None, quick)


def io_uring(kernel: Kernel, load: Load) -> Seen | None:
    disabled = kernel.number("proc/sys/kernel/io_uring_disabled")
    refused = kernel.io_uring()
    if not refused:
        return Seen("available", "available")
    reason = errno.errorcode.get(refused, str(refused))
    now = f"{reason}, io_uring_disabled {disabled}" if disabled else reason
    return Seen(now, "available", None, False)


def reuseport_program(kernel: Kernel, load: Load) -> Seen | None:
    refused = kernel.reuseport_program()
    now = errno.errorcode.get(refused, str(refused)) if refused else "available"
    return Seen(now, "available", None, not refused)


def ktls(kernel: Kernel, load: Load) -> Seen | None:
    now = kernel.text("proc/sys/net/ipv4/tcp_available_ulp")
    return None if now is None else Seen(now or "none", "tls", None, "tls" in now.split())


def _words(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
