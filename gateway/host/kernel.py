"""What this kernel says about itself and about one process: /proc, /sys, and two probes.

Nothing here judges, and nothing raises: what a kernel, a container or a lack of rights does not
show is None. All paths are below `root`, so that a tree of files can stand for any machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.topology import parse_cpu_list

CGROUP_UNLIMITED = 1 << 60
"""Version 1 says "no limit" as the largest multiple of a page below 2^63."""

IO_URING_SETUP = 425
"""Number of the system call: the same on every architecture that Tidegate runs on."""
IO_URING_PARAMS_BYTES = 120
"""struct io_uring_params (io_uring_setup(2))."""
SO_ATTACH_REUSEPORT_CBPF = 51
"""asm-generic/socket.h; the socket module has no name for it."""


def probe_io_uring() -> int:
    """The errno with which io_uring_setup(2) refuses a ring; 0 where it gives one."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    parameters = ctypes.create_string_buffer(IO_URING_PARAMS_BYTES)
    descriptor = call(IO_URING_SETUP, 1, parameters)
    if descriptor < 0:
        return ctypes.get_errno()
    os.close(descriptor)
    return 0


def probe_reuseport_program() -> int:
    """The errno with which SO_ATTACH_REUSEPORT_CBPF is refused (socket(7)); 0 where it works."""
    # One instruction, BPF_RET | BPF_K 0: the first socket of the group.
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    program = struct.pack("@HP", 1, ctypes.addressof(instruction))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def free_bytes(path: Path) -> int | None:
    """What a file system has left for unprivileged users."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


@dataclass(frozen=True, slots=True)
class Kernel:
    """The view of one process (`process`: its pid, or "self")."""

    root: Path = Path("/")
    process: str = "self"
    io_uring: Callable[[], int] = probe_io_uring
    reuseport_program: Callable[[], int] = probe_reuseport_program
    free_bytes: Callable[[Path], int | None] = free_bytes

    def text(self, path: str) -> str | None:
        try:
            return (self.root / path).read_text().strip()
        except (OSError, ValueError):
            return None

    def number(self, path: str) -> int | None:
        return _number(self.text(path))

    def numbers(self, path: str) -> list[int] | None:
        """The numbers of a file such as tcp_mem, which has three."""
        text = self.text(path)
        if text is None or not re.fullmatch(r"\d+(\s+\d+)*", text):
            return None
        return [int(word) for word in text.split()]

    def chosen(self, path: str) -> str | None:
        """The word in brackets, as in "always [madvise] never"."""
        found = re.search(r"\[(\w+)\]", self.text(path) or "")
        return found[1] if found else None

    def release(self) -> tuple[int, int] | None:
        """Version of the kernel, as (6, 18)."""
        found = re.match(r"(\d+)\.(\d+)", self.text("proc/sys/kernel/osrelease") or "")
        return (int(found[1]), int(found[2])) if found else None

    def memory_bytes(self) -> int | None:
        found = re.search(r"^MemTotal:\s+(\d+) kB", self.text("proc/meminfo") or "", re.MULTILINE)
        return int(found[1]) * 1024 if found else None

    def limit(self, name: str) -> int | None:
        """The process's hard limit, named as /proc/PID/limits does; 2^63 - 1 for "unlimited"."""
        for line in (self.text(f"proc/{self.process}/limits") or "").splitlines():
            # Columns of fixed width: the names hold blanks (proc_pid_limits(5)).
            if line[:26].strip() == name:
                hard = line[26:].split()[1]
                return (1 << 63) - 1 if hard == "unlimited" else _number(hard)
        return None

    def cpus(self) -> list[int] | None:
        """The CPUs that the process may use (cpuset, affinity)."""
        status = self.text(f"proc/{self.process}/status") or ""
        found = re.search(r"^Cpus_allowed_list:\s+([\d,-]+)$", status, re.MULTILINE)
        return parse_cpu_list(found[1]) if found else None

    # ---- cgroups (cgroups(7)): a limit of any ancestor binds

    def cgroup_memory_bytes(self) -> int | None:
        """The least memory limit over the process's cgroups; None without one."""
        return min(
            (
                limit
                for text in self._cgroup_files("memory", "memory.max", "memory.limit_in_bytes")
                if (limit := _number(text)) is not None and limit < CGROUP_UNLIMITED
            ),
            default=None,
        )

    def cgroup_pids(self) -> int | None:
        """The least limit of tasks (processes and threads); None without one."""
        files = self._cgroup_files("pids", "pids.max", "pids.max")
        return min((limit for text in files if (limit := _number(text)) is not None), default=None)

    def cgroup_cpus(self) -> float | None:
        """The least CPU quota, in CPUs; None without one."""
        quotas = [text.split() for text in self._cgroup_files("cpu", "cpu.max", "cpu.cfs_quota_us")]
        periods = [text.split() for text in self._cgroup_files("cpu", "", "cpu.cfs_period_us")]
        pairs = [quota for quota in quotas if len(quota) == 2]
        pairs += [
            [*quota, *period]
            for quota, period in zip((q for q in quotas if len(q) == 1), periods, strict=False)
        ]
        return min(
            (int(q) / int(p) for q, p in pairs if q.isdigit() and p.isdigit() and int(p)),
            default=None,
        )

    def _cgroup_files(self, controller: str, v2: str, v1: str) -> Iterator[str]:
        """The texts of a limit file, of the process's cgroup and all its ancestors.

        Where a container shows the host's path but mounts its own cgroup as root, the long paths do
        not exist and the root's file has the limit: missing files are passed over.
        """
        for line in (self.text(f"proc/{self.process}/cgroup") or "").splitlines():
            hierarchy, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if hierarchy == "0" and not controllers and v2:
                # With both versions mounted ("hybrid"), version 2 is below `unified`.
                mounts, name = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], v2
            elif controller in controllers.split(","):
                mounts, name = [f"sys/fs/cgroup/{controller}"], v1
            else:
                continue
            parts = [part for part in path.split("/") if part and part != ".."]
            for depth in range(len(parts), -1, -1):
                for mount in mounts:
                    text = self.text("/".join([mount, *parts[:depth], name]))
                    if text is not None:
                        yield text


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
