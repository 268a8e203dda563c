"""Segments of POSIX shared memory (shm_overview(7)): made, found, removed, and whose they are.

Every segment of an instance is named `/tidegate-<instance>-<part>` and carries, in its header, the
process that owns it by pid and start time. So what a dead instance left behind is told from what a
living one uses, even after its pid was given to another process.
"""

import errno
import fcntl
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import posix_ipc

from shm import _ring

# Where Linux shows POSIX shared memory (shm_overview(7)).
DIRECTORY = Path("/dev/shm")

PARTS = re.compile(r"log|channels|history|presence|stats|(uplink|keep)-[0-9]+")


class SegmentError(Exception):
    """A segment cannot be made or used. `code` is stable; `message` and `remedy` are for people."""

    code = "segment"

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(f"{message}: {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy


class NoRoom(SegmentError):
    """Memory for the segment cannot be reserved."""

    code = "no_room"


class InUse(SegmentError):
    """The segment belongs to a process that is alive."""

    code = "in_use"


class NotFound(SegmentError):
    """No segment has that name."""

    code = "not_found"


class UnknownFormat(SegmentError):
    """The segment was not made by this version."""

    code = "unknown_format"


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start: int
    """Clock ticks from boot to the start of the process: field 22 of /proc/PID/stat (proc(5))."""

    @classmethod
    def this_process(cls) -> Self:
        pid = os.getpid()
        return cls(pid, process_start(pid) or 0)

    def is_alive(self) -> bool:
        return process_start(self.pid) == self.start


class Segment:
    """A segment that is open in this process; closing it leaves it to others, unlinking ends it."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unlink(self) -> None:
        """Remove the name and close; processes that mapped the segment keep it until they end."""
        _unlink(self.name)
        self.close()


def segment_name(instance: str, part: str) -> str:
    """`part` is "log", "channels", "history", "presence", "stats", "uplink-<id>" or "keep-<id>"."""
    if not PARTS.fullmatch(part):
        raise ValueError(f"{part!r} is no part of an instance")
    return f"/tidegate-{instance}-{part}"


def create(
    name: str,
    size_bytes: int,
    fill: Callable[[int], None],
    *,
    key: str,
    reserved_bytes: int | None = None,
) -> Segment:
    """Make a segment, reserve its memory and let `fill(fd)` format it (`_ring.format_*`).

    `key` is the configuration key that decides the size; it is named where there is no room. Of
    the memory only `reserved_bytes` are reserved, if that is given: the rest is its writer's to.
    Raises InUse where the name is taken, NoRoom, and what `fill` raises; nothing is left then.
    """
    try:
        # Only the owner's processes get in; they receive the descriptor anyway.
        memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.ExistentialError as error:
        raise InUse(
            f"shared memory {name} exists already",
            remedy="stop the instance that uses it, or give this one another gateway.name",
        ) from error
    segment = Segment(name, memory.fd)
    try:
        # Held while the segment has no owner in it yet: `sweep` sees that somebody is at work.
        fcntl.flock(segment.fd, fcntl.LOCK_EX)
        os.ftruncate(segment.fd, size_bytes)
        _reserve(segment, size_bytes if reserved_bytes is None else reserved_bytes, key)
        fill(segment.fd)
        fcntl.flock(segment.fd, fcntl.LOCK_UN)
    except BaseException:
        segment.unlink()
        raise
    return segment


def attach(name: str) -> Segment:
    """Open a segment by its name. Raises NotFound, and InUse where it is another user's."""
    try:
        return Segment(name, posix_ipc.SharedMemory(name).fd)
    except posix_ipc.ExistentialError as error:
        raise NotFound(
            f"there is no shared memory {name}",
            remedy="check that the instance runs on this host (`tidegate status`)",
        ) from error
    except posix_ipc.PermissionsError as error:
        raise InUse(
            f"shared memory {name} belongs to another user"
            f" ({(DIRECTORY / name.lstrip('/')).stat().st_uid})",
            remedy="give this instance another gateway.name, or become that user",
        ) from error


def sweep(instance: str) -> list[str]:
    """Remove what a dead instance of that name left behind; returns the names removed.

    Raises InUse (with the pid) where a segment's owner lives, UnknownFormat where a segment is
    not ours to judge; nothing is removed then.
    """
    prefix = f"tidegate-{instance}-"
    names = [
        f"/{path.name}"
        for path in sorted(DIRECTORY.glob(f"{prefix}*"))
        if PARTS.fullmatch(path.name.removeprefix(prefix))
    ]
    stale = [name for name in names if _is_stale(name)]
    for name in stale:
        _unlink(name)
    return stale


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 2, the command, may hold blanks and parentheses: count from its closing one (proc(5)).
    fields = stat.rpartition(")")[2].split()
    # A zombie has a start time but runs no more.
    return None if fields[0] in "ZX" else int(fields[19])


def _reserve(segment: Segment, size_bytes: int, key: str) -> None:
    try:
        # Without this a full /dev/shm would be a SIGBUS at some later write (posix_fallocate(3)).
        os.posix_fallocate(segment.fd, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
        free = os.statvfs(DIRECTORY)
        raise NoRoom(
            f"shared memory {segment.name} needs {size_bytes} bytes, and {DIRECTORY} has"
            f" {free.f_bavail * free.f_frsize} bytes free",
            remedy=f"lower {key}, or enlarge {DIRECTORY} (mount -o remount,size=...)",
        ) from error


def _is_stale(name: str) -> bool:
    try:
        segment = attach(name)
    except NotFound:
        return False
    try:
        header = _ring.inspect(segment.fd)
        if header is None:
            _refuse_unfinished(segment)
            return True
        owner = Owner(header["owner_pid"], header["owner_start"])
    except _ring.FormatError as error:
        raise UnknownFormat(
            f"shared memory {name} has a format that this version does not know",
            remedy=f"if no gateway uses it, remove {DIRECTORY}{name}",
        ) from error
    finally:
        segment.close()
    if owner.is_alive():
        raise InUse(
            f"shared memory {name} belongs to the running process {owner.pid}",
            remedy="stop it, or give this instance another gateway.name",
        )
    return True


def _refuse_unfinished(segment: Segment) -> None:
    """A segment without an owner: somebody makes it right now, or died while doing so."""
    try:
        fcntl.flock(segment.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUse(
            f"shared memory {segment.name} is being made by another process",
            remedy="give this instance another gateway.name",
        ) from error


def _unlink(name: str) -> None:
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return  # Somebody removed it before us: what was wanted.
