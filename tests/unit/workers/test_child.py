"""The start of a child: its link, its signals, and that it never outlives its parent."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shm.segment import process_start
from tests.support.waiting import wait_for
from workers.child import EXIT_USAGE, SIGNALS_FOR_THE_SUPERVISOR
from workers.link import Link

CHILD = """
from workers.child import begin
link = begin()
link.send({"type": "ready"})
link.recv()
"""

# Starts a child, tells its pid and waits to be killed.
PARENT = """
import subprocess, sys
from workers.link import Link
link, theirs = Link.pair()
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1], "--link", str(theirs.fileno())],
    pass_fds=[theirs.fileno()],
)
link.recv()
print(child.pid, flush=True)
child.wait()
"""


@contextmanager
def started() -> Iterator[tuple[Link, subprocess.Popen[bytes]]]:
    link, theirs = Link.pair()
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, "--link", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
    link.settimeout(20)
    try:
        assert link.recv()[0] == {"type": "ready"}
        yield link, child
    finally:
        child.kill()
        child.wait()
        link.close()


def test_signals_that_are_meant_for_the_supervisor_do_not_touch_a_child() -> None:
    with started() as (link, child):
        for number in SIGNALS_FOR_THE_SUPERVISOR:
            child.send_signal(number)
        link.send({"type": "stop"})
        assert child.wait(20) == 0


def test_a_blocked_signal_of_the_parent_is_not_blocked_in_the_child() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with started() as (_, child):
            child.terminate()
            assert child.wait(20) == -signal.SIGTERM
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_child_dies_with_its_parent_whatever_killed_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: process_start(pid) is None, "the child's end")


def test_a_child_that_nobody_started_says_what_to_do() -> None:
    for arguments in (["--link", "999"], ["--link", "0"]):
        alone = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert alone.returncode == EXIT_USAGE
        assert "tidegate run" in alone.stderr
        assert "Traceback" not in alone.stderr
