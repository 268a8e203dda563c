"""The supervisor replaces itself: same process, new code, and nobody who depends on it notices.

1. The new code is tried out: a child gets a copy of all that would be carried over, restores itself
   from it and reads the configuration. Whatever is wrong refuses the upgrade; nothing has changed.
2. The supervisor executes the new code (execve(2)): pid, children, descriptors and file locks stay.
   So do the children: their parent death signal is raised by the end of a thread, not by its exec.
3. The new code restores itself and goes on with the upgrade: an ordinary reload replaces the rest.

What is carried over is one map (`carrying.py`), versioned: version n reads n - 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gateway.carrying import Inherited, Keep, Kept, read_record, write_record
from gateway.errors import ControlError, TidegateError

if TYPE_CHECKING:
    from gateway.loop import Loop
    from gateway.steps import Condition

UPGRADE_STATE_VERSION = 1
VERSIONS_READ = range(max(1, UPGRADE_STATE_VERSION - 1), UPGRADE_STATE_VERSION + 1)

PROGRAMS = ("gateway.supervisor", "gateway.publisher", "gateway.api.server", "workers.__main__")
"""What runs after an upgrade: importing these finds what cannot be run at all."""
EXIT_REFUSED = 3
"""The check found something to refuse, and says what as JSON on its last line."""
EXIT_FAILED = 1
WATCHDOG_INTERVAL_S = 5.0

logger = logging.getLogger("tidegate.upgrade")

Carried = Callable[[Keep], dict[str, Any]]
"""The state of the supervisor; notes the descriptors in it."""


# ---- before: the old code


def try_out(carried: Carried, loop: Loop, timeout_s: float) -> Generator[Condition, None, None]:
    """Lets the new code restore itself in a process of its own. Raises ControlError."""
    from gateway.loop import Phase

    with ExitStack() as held:
        with _system_errors_refuse():
            kept = Kept()
            record = _record(carried, kept)
            held.callback(os.close, record)
            output = os.memfd_create("tidegate-check", os.MFD_CLOEXEC)
            held.callback(os.close, output)
            # The same interpreter and options as `execute`: what is found here is what would run.
            process = subprocess.Popen(
                _command("--check", record),
                pass_fds=[*kept.fds, record],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
            held.callback(process.wait)
            held.callback(process.kill)
            # So that the loop turns at its end, and not a second later.
            pidfd = os.pidfd_open(process.pid)
            held.callback(os.close, pidfd)
            loop.watch(pidfd, Phase.DEATHS, lambda events: loop.unwatch(pidfd))
            held.callback(loop.unwatch, pidfd)
        deadline = time.monotonic() + timeout_s
        yield lambda: process.poll() is not None or time.monotonic() >= deadline
        if process.poll() is None:
            raise _refused(f"it was not checked within {timeout_s:g} s")
        _judge(process.returncode, os.pread(output, os.fstat(output).st_size, 0))


def execute(carried: Carried) -> None:
    """Becomes the new code; returns never. Raises ControlError where the kernel refuses.

    In the main thread, alone: the parent death signal of the children belongs to it (prctl(2)).
    """
    with _system_errors_refuse(), ExitStack() as held:
        kept = Kept()
        record = kept(_record(carried, kept))
        held.callback(os.close, record)
        kept.inheritable(True)
        held.callback(kept.inheritable, False)
        logger.info("the supervisor executes the new code")
        os.execve(sys.executable, _command("--resume", record), os.environ)


@contextlib.contextmanager
def _system_errors_refuse() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(f"it cannot be executed ({error.strerror})") from error


def _record(carried: Carried, kept: Kept) -> int:
    record = {"version": UPGRADE_STATE_VERSION, "pid": os.getpid(), "state": carried(kept)}
    return write_record({**record, "fds": kept.fds})


def _command(option: str, record: int) -> list[str]:
    return [sys.executable, "-P", "-m", "gateway.upgrade", option, str(record)]


def _judge(status: int, output: bytes) -> None:
    """Raises what the check found, if it found anything."""
    text = output.decode(errors="replace").rstrip()
    *before, last = text.splitlines() or [""]
    if status == EXIT_REFUSED:
        # Written by code that we do not know: it may be anything.
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(last)
            raise _refused(*(str(found[key]) for key in ("message", "remedy", "code")))
    if status != 0:
        print(text, file=sys.stderr, flush=True)
        raise _refused(last or f"its check ended with status {status}")
    for line in (*before, last):
        if line:
            logger.info("the check of the new code said", extra={"line": line})


def _refused(why: str, remedy: str = "", code: str = "") -> ControlError:
    return ControlError(
        f"the new code is refused: {why}; the gateway runs on as it was",
        remedy=remedy or "see the log; correct what is installed and upgrade again",
        code=code or "upgrade_refused",
    )


# ---- after: the new code


def _check(fd: int) -> None:
    """Does all that `_resume` does, but to serve. Raises what is wrong."""
    record = read_record(fd, VERSIONS_READ)
    from gateway.reload import new_config
    from gateway.run import configure_log
    from gateway.supervisor import Supervisor
    from workers import child

    child.die_with_the_parent(record["pid"])
    configure_log(record["state"]["parts"]["config"]["gateway"])
    for program in PROGRAMS:
        importlib.import_module(program)
    held = ExitStack()
    supervisor = Supervisor.restore(record["state"], Inherited(record["fds"]), held)
    held.pop_all()
    new_config(supervisor.config)


def _resume(fd: int) -> int:
    """Goes on where the old code left off; returns the exit status, at the gateway's end."""
    held = ExitStack()
    try:
        record = read_record(fd, VERSIONS_READ)
        inherited = Inherited([*record["fds"], fd])
        from gateway.run import configure_log
        from gateway.supervisor import Supervisor

        configure_log(record["state"]["parts"]["config"]["gateway"])
        supervisor = Supervisor.restore(record["state"], inherited, held)
    except Exception as error:
        # Nobody may give back what the children use.
        held.pop_all()
        return _hold_out(fd, error)
    inherited.close()
    logger.info("the new code has taken over")
    with held:
        return supervisor.run()


def _hold_out(fd: int, error: Exception) -> int:
    """The new code cannot go on, though its check had passed: keeps the processes that serve.

    They serve as long as this process, their parent, lives. USR2 tries again with what is installed
    by then. It cannot replace a process: the first death ends all, as do TERM, INT and QUIT.
    """
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
    waited = (*ends, signal.SIGUSR2, signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    what = f"the new supervisor cannot take over ({error}): the gateway serves on without one"
    remedy = "correct what is installed and send USR2; the first death of a process ends all"
    logger.critical(f"{what}; {remedy}", exc_info=error)
    _tell_requesters(fd, ControlError(what, remedy=remedy, code="upgrade_failed"))
    while os.waitpid(-1, os.WNOHANG) == (0, 0):
        _tell_manager(fd, f"serves without a supervisor, USR2 tries again ({error})")
        received = signal.sigtimedwait(waited, WATCHDOG_INTERVAL_S)
        if received is not None and received.si_signo in ends:
            return EXIT_FAILED
        if received is not None and received.si_signo == signal.SIGUSR2:
            with contextlib.suppress(OSError):
                os.execve(sys.executable, _command("--resume", fd), os.environ)
    logger.critical("a process died, and nobody replaces it: the gateway ends")
    return EXIT_FAILED


def _tell_requesters(fd: int, error: TidegateError) -> None:
    """Answers the request for the upgrade, as far as the new code can."""
    with contextlib.suppress(Exception):
        from gateway.control.wire import send_frame

        for client in read_record(fd, VERSIONS_READ)["state"]["control"]["clients"]:
            if client["request"] is not None:
                with socket.socket(fileno=os.dup(client["socket"])) as connection:
                    answer = {"id": client["request"].get("id"), "error": error.as_map()}
                    send_frame(connection, answer)


def _tell_manager(fd: int, status: str) -> None:
    """As far as the new code can."""
    with contextlib.suppress(Exception):
        from gateway.notify import ServiceManager

        record = read_record(fd, VERSIONS_READ)
        manager = ServiceManager.restore(record["state"]["parts"]["manager"])
        manager.status(status)
        manager.watchdog()
        manager.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="gateway.upgrade",
        description="The new code of a supervisor. It starts this itself: use `tidegate upgrade`.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    for option in ("--check", "--resume"):
        what.add_argument(option, type=int, metavar="FD")
    options = parser.parse_args()
    if options.resume is not None:
        return _resume(options.resume)
    try:
        _check(options.check)
    except TidegateError as error:
        print(json.dumps(error.as_map()), flush=True)
        return EXIT_REFUSED
    # Not by the usual way: this is a copy of what another process uses, and owns nothing.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
