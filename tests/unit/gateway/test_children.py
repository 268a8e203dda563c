"""Children as the supervisor holds them: real processes on real links."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.carrying import Inherited, Kept
from gateway.children import Child, Process, State
from gateway.loop import Loop
from tests.support.waiting import wait_for

HEAD = """
import os, signal, sys
from workers import child
from workers.link import named_descriptors
link = child.begin()
"""


class Nursery:
    """One child at a time, of the code that a test gives, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.folder = folder
        self.said: list[str] = []
        self.deaths: list[Child] = []
        self.child: Child | None = None

    def start(self, code: str) -> Child:
        (self.folder / "a_child.py").write_text(HEAD + code)
        process = Process.start("a_child", "a child")
        self.child = Child(self.loop, process, "a child", self._message, self.deaths.append)
        return self.child

    def forget(self) -> Process:
        """Lets go of the loop and of the child's link, and leaves the child itself alone."""
        assert self.child is not None
        process = self.child._process
        assert process.popen is not None
        process.popen.returncode = 0  # or it would be waited for by whoever collects garbage
        process.link.close()
        os.close(process.pidfd)
        self.loop.close()
        self.loop = Loop()
        return process

    def turn_until(self, condition: Callable[[], Any], what: str) -> None:
        def turned() -> bool:
            self.loop.turn()
            return bool(condition())

        wait_for(turned, what)

    def end(self) -> None:
        if self.child is not None and self.child.alive:
            self.child.kill()
            self.turn_until(lambda: self.deaths, "the child's death")
        self.loop.close()

    def _message(
        self, child: Child, type_: str, message: dict[str, Any], descriptors: dict[str, int]
    ) -> None:
        assert not self.deaths, "everything that a child said comes before its death"
        self.said.append(str(message.get("text", type_)))


@pytest.fixture
def nursery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    # The child's interpreter leaves out the working directory (-P), not this.
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    monkeypatch.setenv("PYTHONPATH", path)
    made = Nursery(tmp_path)
    yield made
    made.end()


def test_all_that_a_child_said_comes_before_its_death(nursery: Nursery) -> None:
    child = nursery.start(
        """
for n in range(100):
    link.send({"type": "note", "text": str(n)})
link.send({"type": "failed", "code": "broken", "message": "is out of order"})
os._exit(3)
"""
    )
    nursery.turn_until(lambda: nursery.deaths, "the child's death")
    assert nursery.said == [str(n) for n in range(100)] + ["failed"]
    assert child.state is State.DEAD
    assert child.exit_status == 3
    assert child.failure["code"] == "broken"
    assert child.how_it_ended() == "is out of order"


def test_messages_to_a_child_that_does_not_read_wait_and_arrive_in_order(
    nursery: Nursery,
) -> None:
    child = nursery.start(
        """
signal.signal(signal.SIGTERM, lambda *_: None)
link.send({"type": "ready"})
signal.pause()
for n in range(2000):
    message, fds = link.recv()
    named = named_descriptors(message, fds)
    assert message["number"] == n
    os.write(named["pipe"], b"+")
    for fd in fds:
        os.close(fd)
link.send({"type": "note", "text": "all"})
link.recv()
"""
    )
    nursery.turn_until(lambda: nursery.said == ["ready"], "a child that sleeps")
    reader, writer = os.pipe()
    for number in range(2000):
        child.send("count", {"pipe": writer}, number=number)
    # The caller may close what it passed, also while the message still waits.
    os.close(writer)
    child.kill(signal.SIGTERM)
    nursery.turn_until(lambda: nursery.said == ["ready", "all"], "the last message")
    assert len(os.read(reader, 4096)) == 2000
    os.close(reader)


def test_a_child_that_is_never_ready_is_killed_with_a_reason(nursery: Nursery) -> None:
    child = nursery.start("signal.pause()\n")
    child.kill_after_start(0.3)
    nursery.turn_until(lambda: nursery.deaths, "the child's death")
    assert child.exit_status == -signal.SIGKILL
    assert not child.served
    assert child.how_it_ended() == "did not say that it is ready within 0.3 s"


def test_an_end_is_told_in_words(nursery: Nursery) -> None:
    child = nursery.start("os.kill(os.getpid(), signal.SIGSEGV)\n")
    nursery.turn_until(lambda: nursery.deaths, "the child's death")
    assert child.how_it_ended() == "was killed by SIGSEGV"


def test_a_child_that_breaks_its_link_is_killed(nursery: Nursery) -> None:
    child = nursery.start(
        """
os.write(link.fileno(), b"no message")
signal.pause()
"""
    )
    nursery.turn_until(lambda: nursery.deaths, "the child's death")
    assert child.exit_status == -signal.SIGKILL


def test_a_child_that_breaks_its_link_at_its_end_has_ended_by_itself(nursery: Nursery) -> None:
    child = nursery.start('os.write(link.fileno(), b"no message")\nos._exit(4)\n')
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    nursery.turn_until(lambda: nursery.deaths, "the child's death")
    assert child.exit_status == 4


def test_a_dead_child_is_told_nothing_and_stays_dead(nursery: Nursery) -> None:
    child = nursery.start("os._exit(0)\n")
    nursery.turn_until(lambda: nursery.deaths, "the child's death")
    child.become(State.DRAINING)
    child.send("leave")
    child.kill_after(0.0, "did not leave")
    nursery.loop.turn()
    assert child.state is State.DEAD
    assert child.how_it_ended() == "exited with status 0"


def test_a_child_that_closes_its_link_is_waited_for_without_spinning(nursery: Nursery) -> None:
    nursery.start(
        """
signal.signal(signal.SIGTERM, lambda *_: None)
link.send({"type": "ready"})
link.close()
signal.pause()
"""
    )
    nursery.turn_until(lambda: nursery.said == ["ready"], "the last word")
    over: list[bool] = []
    nursery.loop.after(0.3, lambda: over.append(True))
    turns = 0
    while not over:
        nursery.loop.turn()
        turns += 1
    assert turns < 10, "a closed link must not wake the loop again and again"
    assert nursery.child is not None
    nursery.child.kill(signal.SIGTERM)
    nursery.turn_until(lambda: nursery.deaths, "the child's death")


def test_nothing_is_left_open_by_children_that_died(nursery: Nursery) -> None:
    def open_descriptors() -> int:
        gc.collect()  # or what tests before have left would go in between
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_descriptors()
    for count in range(1, 11):
        child = nursery.start("os._exit(0)\n")
        child.kill_after_start(20)
        nursery.turn_until(lambda count=count: len(nursery.deaths) == count, "its death")
    assert open_descriptors() == before


def test_a_child_that_died_while_nobody_looked_is_noticed(nursery: Nursery) -> None:
    """As by an exec: the child stays, whoever watched it is gone, and its death waits for us."""
    child = nursery.start('link.send({"type": "ready"})\nlink.recv()\n')
    nursery.turn_until(lambda: nursery.said, "the child's word")
    state = child.carried(Kept())
    for each in ("link", "pidfd"):
        state["process"][each] = os.dup(state["process"][each])
    inherited = Inherited(state["process"][each] for each in ("link", "pidfd"))
    process = nursery.forget()
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    again = Child(
        nursery.loop,
        Process.restore(state["process"], inherited),
        state["name"],
        nursery._message,
        nursery.deaths.append,
    )
    again.take_up(state, inherited)
    inherited.close()
    assert (again.pid, again.lived_s > 0) == (process.pid, True)
    nursery.child = again
    nursery.turn_until(lambda: nursery.deaths, "the child's death")
    assert (again.exit_status, nursery.deaths) == (-signal.SIGKILL, [again])


def test_a_deadline_goes_on_in_the_next_code(nursery: Nursery) -> None:
    child = nursery.start("link.recv()\n")
    child.kill_after(0.3, "was too slow")
    kept = Kept()
    state = child.carried(kept)
    child.no_deadline()
    child.take_up(state, Inherited(kept.fds))
    nursery.turn_until(lambda: nursery.deaths, "the child's death")
    assert child.how_it_ended() == "was too slow"
