"""What crosses an exec: one map in a sealed memfd, and the descriptors that it names by number.

Each object that lives on has a `carried(keep)` and a `restore(state, take)` beside its own fields
(`take_up`, where it is made first). The order is `assembly.py`'s, the version `upgrade.py`'s.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gateway.errors import ProtocolError

Keep = Callable[[int], int]
"""Notes that a descriptor goes along; returns its number, for the map."""
Take = Callable[[int], int]
"""Gives a descriptor to its new holder, by the number in the map: a duplicate, close-on-exec."""

MEMFD_NAME = "tidegate-upgrade"
RECORD_BYTES_MAX = 64 * 1024 * 1024
"""A slot takes half a KiB; what clients of the control socket have not read yet, MiBs at worst."""
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Kept:
    """The descriptors that go along. They stay close-on-exec until `inheritable`."""

    def __init__(self) -> None:
        self._fds: set[int] = set()

    def __call__(self, fd: int) -> int:
        self._fds.add(fd)
        return fd

    @property
    def fds(self) -> list[int]:
        return sorted(self._fds)

    def inheritable(self, inheritable: bool) -> None:
        for fd in self._fds:
            os.set_inheritable(fd, inheritable)


class Inherited:
    """The descriptors that came along. They stay as they came until `close`.

    So whoever fails to restore itself from them can try again, and meanwhile no peer of theirs
    sees an end.
    """

    def __init__(self, fds: Iterable[int]) -> None:
        self._fds = set(fds)

    def __call__(self, fd: int) -> int:
        if fd not in self._fds:
            raise ProtocolError(f"descriptor {fd} did not come along")
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)

    def close(self) -> None:
        """Everybody has taken what is theirs."""
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds.clear()


def write_record(record: dict[str, Any]) -> int:
    """A sealed memfd (memfd_create(2)) with the record; close-on-exec, the caller's to close."""
    data = msgspec.msgpack.encode(record)
    fd = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_record(fd: int, versions: range) -> dict[str, Any]:
    """The record in a memfd, which stays open. Raises ProtocolError for what is none of ours."""
    size = os.fstat(fd).st_size
    if size > RECORD_BYTES_MAX:
        raise ProtocolError(f"the record of an upgrade has {size} bytes")
    try:
        record = msgspec.msgpack.decode(os.pread(fd, size, 0))
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"the record of an upgrade is not msgpack ({error})") from error
    version = record.get("version") if isinstance(record, dict) else None
    if not isinstance(version, int) or version not in versions:
        raise ProtocolError(
            f"the running supervisor writes version {version!r} of its record, the new code reads "
            f"{versions[0]} to {versions[-1]}",
            remedy="upgrade by way of a release in between, or restart the gateway",
            code="upgrade_version",
        )
    assert isinstance(record, dict)
    return record
