"""What processes and the kernel use, read from /proc."""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_LIBC = ctypes.CDLL(None)

SETTLE_TIMEOUT_S = 20.0
SETTLE_INTERVAL_S = 0.5


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes so far, all threads, also those that have ended, to the
    nanosecond: clock_getcpuclockid(3), where proc(5) `stat` counts in ticks of 10 ms.
    """
    return sum(time.clock_gettime(_cpu_clock(pid)) for pid in pids)


def _cpu_clock(pid: int) -> int:
    clock = ctypes.c_int()
    if error := _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error), f"process {pid}")
    return clock.value


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def alive(pids: Iterable[int]) -> list[int]:
    """Those of them that have not ended, whether or not somebody has waited for their end."""
    left = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                left.append(pid)
    return left


def pss_bytes(pid: int) -> int:
    """Proportional set size of anonymous and shared memory: proc(5) `smaps_rollup`.

    Pages of files (program text) are left out: the share of each process changes as others with
    the same libraries come and go, which would count as somebody's cost.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return (_kib(rollup, "Pss_Anon") + _kib(rollup, "Pss_Shmem")) * 1024


def own_bytes(pid: int, segment: str) -> int:
    """As `pss_bytes`, but of shared memory only what has `segment` in its name (proc(5) `smaps`).

    Other segments are reserved in full when an instance starts: that a process looks at more of
    them takes nothing from anybody.
    """
    others_kib, is_other = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":
            is_other = "/dev/shm/" in line and segment not in line
        elif is_other and line.startswith("Pss:"):
            others_kib += int(line.split()[1])
    return pss_bytes(pid) - others_kib * 1024


def whole_pss_bytes(pid: int) -> int:
    """Proportional set size with all pages, those of files too (proc(5) `smaps_rollup`)."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss") * 1024


def available_bytes() -> int:
    """What could still be given out without swapping (proc(5) `meminfo`)."""
    return _kib(Path("/proc/meminfo").read_text(), "MemAvailable") * 1024


def tcp_buffer_bytes() -> int:
    """What TCP has for buffers, of all sockets (proc(5) `net/sockstat`; its unit is a page)."""
    sockstat = Path("/proc/net/sockstat").read_text()
    found = re.search(r"^TCP: .* mem (\d+)", sockstat, re.MULTILINE)
    return int(found[1]) * os.sysconf("SC_PAGE_SIZE") if found else 0


def busy_cpu_seconds() -> float:
    """What all CPUs did for anybody since boot."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def slab_bytes() -> int:
    """The kernel's slab memory, where sockets and epoll entries live (proc(5) `meminfo`)."""
    return _kib(Path("/proc/meminfo").read_text(), "Slab") * 1024


def _kib(text: str, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"{key} is not among:\n{text}")
    return int(found[1])


def shared_memory_bytes(instance: str) -> int:
    """What an instance's segments take: blocks, not sizes (shm_overview(7): they are files)."""
    segments = Path("/dev/shm").glob(f"tidegate-{instance}-*")
    return sum(segment.stat().st_blocks * 512 for segment in segments)


def settled(read: Callable[[], int]) -> int:
    """The value once two readings in a row agree to a thousandth, or the last one read."""
    pause = threading.Event()
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    value = read()
    while time.monotonic() < deadline:
        pause.wait(SETTLE_INTERVAL_S)
        previous, value = value, read()
        if abs(value - previous) * 1000 <= value:
            break
    return value
