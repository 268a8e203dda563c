"""Segments: names, memory, owners, and what a dead instance leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm import _ring, segment
from shm.segment import Owner, Segment, segment_name

# Makes the log of the instance named in argv and dies without a word.
ABANDON = """
import os, signal, sys
from shm import _ring, segment
owner = segment.Owner.this_process()
segment.create(
    segment.segment_name(sys.argv[1], sys.argv[2]),
    _ring.log_size(65536, 1, 1),
    lambda fd: _ring.format_log(fd, 65536, 1, 1, (1, owner.pid, owner.start)),
    key="log.capacity_bytes",
)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def instance() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    for path in segment.DIRECTORY.glob(f"tidegate-{name}*"):
        path.unlink()


def make_log(instance: str, part: str = "log", owner: Owner | None = None) -> Segment:
    owner = owner or Owner.this_process()
    return segment.create(
        segment_name(instance, part),
        _ring.log_size(65536, 1, 1),
        lambda fd: _ring.format_log(fd, 65536, 1, 1, (7, owner.pid, owner.start)),
        key="log.capacity_bytes",
    )


def abandon(instance: str, part: str) -> None:
    subprocess.run([sys.executable, "-c", ABANDON, instance, part], check=False)
    assert (segment.DIRECTORY / f"tidegate-{instance}-{part}").exists()


def test_a_segment_is_found_by_its_name_and_tells_its_owner(instance: str) -> None:
    made = make_log(instance)
    found = segment.attach(made.name)
    header = _ring.inspect(found.fd)
    assert header is not None
    assert (header["kind"], header["generation"]) == ("log", 7)
    assert Owner(header["owner_pid"], header["owner_start"]) == Owner.this_process()
    assert header["size"] == found.size_bytes == _ring.log_size(65536, 1, 1)
    assert not os.get_inheritable(made.fd)
    assert not os.get_inheritable(found.fd)
    made.unlink()
    found.close()
    with pytest.raises(segment.NotFound) as caught:
        segment.attach(made.name)
    assert made.name in caught.value.message


def test_a_name_is_given_out_once(instance: str) -> None:
    made = make_log(instance)
    with pytest.raises(segment.InUse):
        make_log(instance)
    made.unlink()


def test_no_room_is_an_error_that_names_the_key_and_leaves_nothing(instance: str) -> None:
    free = os.statvfs(segment.DIRECTORY)
    wanted = free.f_frsize * free.f_blocks * 2
    with pytest.raises(segment.NoRoom) as caught:
        segment.create(
            segment_name(instance, "log"), wanted, lambda fd: None, key="log.capacity_bytes"
        )
    assert str(wanted) in caught.value.message
    assert "log.capacity_bytes" in caught.value.remedy
    assert not list(segment.DIRECTORY.glob(f"tidegate-{instance}*"))


def test_a_format_that_fails_leaves_nothing(instance: str) -> None:
    with pytest.raises(_ring.FormatError):
        segment.create(
            segment_name(instance, "log"),
            65536,
            lambda fd: _ring.format_log(fd, 3000, 1, 1, (1, 1, 1)),
            key="log.capacity_bytes",
        )
    assert not list(segment.DIRECTORY.glob(f"tidegate-{instance}*"))


def test_what_a_dead_instance_left_is_swept(instance: str) -> None:
    for part in ("log", "uplink-12"):
        abandon(instance, part)
    assert segment.sweep(instance) == [
        segment_name(instance, "log"),
        segment_name(instance, "uplink-12"),
    ]
    assert not list(segment.DIRECTORY.glob(f"tidegate-{instance}*"))


def test_a_living_owner_is_named_and_nothing_is_removed(instance: str) -> None:
    abandon(instance, "channels")
    made = make_log(instance)
    with pytest.raises(segment.InUse) as caught:
        segment.sweep(instance)
    assert str(os.getpid()) in caught.value.message
    assert len(list(segment.DIRECTORY.glob(f"tidegate-{instance}*"))) == 2
    made.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_users_segment_is_told_so(instance: str) -> None:
    made = make_log(instance)
    code = (
        "import os, sys; from shm import segment; os.setresuid(54321, 54321, 54321)\n"
        "try: segment.sweep(sys.argv[1])\n"
        "except segment.InUse as error: print(error)"
    )
    command = [sys.executable, "-c", code, instance]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "belongs to another user (0)" in ran.stdout
    assert "gateway.name" in ran.stdout
    made.unlink()


def test_a_pid_that_was_given_to_another_process_is_no_owner(instance: str) -> None:
    this = Owner.this_process()
    make_log(instance, owner=Owner(this.pid, this.start + 1)).close()
    assert segment.sweep(instance) == [segment_name(instance, "log")]


def test_segments_of_other_instances_are_left_alone(instance: str) -> None:
    longer = f"{instance}-two"
    abandon(longer, "log")
    assert segment.sweep(instance) == []
    assert segment.sweep(longer) == [segment_name(longer, "log")]


def test_a_segment_that_died_in_the_making_is_swept_and_one_being_made_is_not(
    instance: str,
) -> None:
    def look(fd: int) -> None:
        assert _ring.inspect(fd) is None
        with pytest.raises(segment.InUse):
            segment.sweep(instance)
        raise KeyError

    with pytest.raises(KeyError):
        segment.create(segment_name(instance, "log"), 65536, look, key="log.capacity_bytes")
    (segment.DIRECTORY / f"tidegate-{instance}-log").touch()
    (segment.DIRECTORY / f"tidegate-{instance}-stats").write_bytes(bytes(8192))
    assert len(segment.sweep(instance)) == 2


def test_a_segment_of_another_format_is_reported_and_not_removed(instance: str) -> None:
    path = segment.DIRECTORY / f"tidegate-{instance}-log"
    path.write_bytes(b"x" * 8192)
    with pytest.raises(segment.UnknownFormat) as caught:
        segment.sweep(instance)
    assert str(path) in caught.value.remedy
    assert path.exists()


def test_only_known_parts_have_names() -> None:
    for part in ("", "logs", "uplink-", "uplink-x", "log/../x"):
        with pytest.raises(ValueError, match="no part"):
            segment_name("default", part)


def test_a_zombie_and_a_missing_process_do_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists()
    assert segment.process_start(child.pid) is None
    child.wait()
    assert segment.process_start(child.pid) is None
    assert segment.process_start(os.getpid()) == segment.process_start(os.getpid())
