"""What crosses an exec: the record, the descriptors, and the parts that are made of them again."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import upgrade
from gateway.carrying import Inherited, Keep, Kept, read_record, write_record
from gateway.errors import ControlError, ProtocolError
from gateway.restarts import RestartPolicy, Restarts

ROOT = Path(__file__).resolve().parents[3]
POLICY = RestartPolicy(0.1, 2.0, 10.0, 3, 60.0)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def open_descriptors() -> int:
    gc.collect()  # or what tests before have left would go in between
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_record_is_sealed_and_read_as_it_was_written() -> None:
    fd = write_record({"version": 1, "state": {"a": [1, b"\xff", None, 2.5]}})
    try:
        with pytest.raises(OSError) as caught:
            os.pwrite(fd, b"x", 0)
        assert caught.value.errno == errno.EPERM
        assert read_record(fd, range(1, 2))["state"] == {"a": [1, b"\xff", None, 2.5]}
    finally:
        os.close(fd)


@pytest.mark.parametrize("version", [0, 3, None, "1"])
def test_a_record_of_another_version_is_refused_by_name(version: object) -> None:
    fd = write_record({"version": version})
    try:
        with pytest.raises(ProtocolError, match=f"version {version!r}.*reads 1 to 2"):
            read_record(fd, range(1, 3))
    finally:
        os.close(fd)


def test_this_code_reads_its_own_version_and_the_one_before() -> None:
    version = upgrade.UPGRADE_STATE_VERSION
    assert set(upgrade.VERSIONS_READ) == {max(1, version - 1), version}


def test_what_came_along_stays_until_all_is_taken(pipe: tuple[int, int]) -> None:
    reader, writer = (os.dup(end) for end in pipe)
    inherited = Inherited([reader, writer])
    taken = inherited(reader)
    assert taken != reader
    assert not os.get_inheritable(taken)
    with pytest.raises(ProtocolError, match="did not come along"):
        inherited(max(reader, writer) + 100)
    os.fstat(reader)
    inherited.close()
    for gone in (reader, writer):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(gone)
    os.write(pipe[1], b"x")
    assert os.read(taken, 1) == b"x"
    os.close(taken)


def test_a_refused_exec_leaves_everything_as_it_was(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def carried(keep: Keep) -> dict[str, int]:
        return {"pipe": keep(pipe[0])}

    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    before = open_descriptors()
    with pytest.raises(ControlError, match="No such file or directory"):
        upgrade.execute(carried)
    (tmp_path / "no-python").touch(mode=0o600)
    with pytest.raises(ControlError, match="Permission denied"):
        upgrade.execute(carried)
    assert not os.get_inheritable(pipe[0])
    assert open_descriptors() == before


def test_descriptors_are_inheritable_only_for_the_exec(pipe: tuple[int, int]) -> None:
    kept = Kept()
    assert kept(pipe[0]) == kept(pipe[0]) == pipe[0]
    assert kept.fds == [pipe[0]]
    kept.inheritable(True)
    assert os.get_inheritable(pipe[0])
    kept.inheritable(False)
    assert not os.get_inheritable(pipe[0])


# In a process of its own: a mask is a thread's, and whoever runs these tests may have another one,
# to which the kernel would deliver what this one holds back.
HELD_SIGNALS = """
import os, signal
from gateway.signals import SignalQueue
from tests.support.waiting import wait_for

queue = SignalQueue()
os.kill(os.getpid(), signal.SIGHUP)
wait_for(queue.carried, "the first signal")
queue.hold()
os.kill(os.getpid(), signal.SIGTERM)
state = queue.carried()
# As exec does: handlers and queue are gone, the mask and what is pending stay.
queue.close()
successor = SignalQueue.restore(state)
seen = []
wait_for(lambda: seen.extend(successor.read()) or len(seen) == 2, "both signals")
assert seen == [signal.SIGHUP, signal.SIGTERM], seen
"""


def test_signals_that_come_meanwhile_are_obeyed_afterwards() -> None:
    subprocess.run([sys.executable, "-c", HELD_SIGNALS], cwd=ROOT, timeout=60, check=True)


def test_deaths_are_remembered_across_an_exec() -> None:
    restarts = Restarts(POLICY)
    for now in (1.0, 2.0):
        restarts.after_death(now, 0.5)
    again = Restarts.restore(restarts.carried(), POLICY)
    assert again.total == 2
    assert not again.in_crash_loop(2.5)
    assert again.after_death(3.0, 0.5) == POLICY.delay_max_s
    assert again.in_crash_loop(3.0)


def test_a_socket_that_crosses_is_still_the_same(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        inherited = Inherited([fd := ours.detach()])
        with socket.socket(fileno=inherited(fd)) as taken:
            inherited.close()
            theirs.sendall(b"here")
            assert taken.recv(4) == b"here"


@pytest.mark.parametrize("said", ["", "no JSON", "3", '{"code": "x"}'])
def test_whatever_a_failed_check_says_is_a_refusal(
    said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for status in (1, upgrade.EXIT_REFUSED, -9):
        with pytest.raises(ControlError, match="the new code is refused") as caught:
            upgrade._judge(status, said.encode() + b"\xff\n")
        assert caught.value.code == "upgrade_refused"
    assert said in capfd.readouterr().err
