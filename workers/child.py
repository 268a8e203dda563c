"""How every child of the supervisor starts: its life tied to the supervisor's, its link in hand."""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from workers.link import Link, LinkError

# prctl(2), <linux/prctl.h>.
PR_SET_PDEATHSIG = 1

# A terminal sends these to the whole foreground group, and operators send them to the supervisor.
# It alone acts on them and tells its children by link.
SIGNALS_FOR_THE_SUPERVISOR = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)

# sysexits.h EX_USAGE: started by hand, or by a parent that is gone.
EXIT_USAGE = 64


def begin(arguments: Sequence[str] | None = None) -> Link:
    """Start this process as a child: returns the link named by `--link FD` of the command line.

    From here on the kernel kills this process when its parent ends. Exits with EXIT_USAGE where
    the process was not started by a supervisor.
    """
    parser = argparse.ArgumentParser(
        description="A process of a gateway. The supervisor starts it: use `tidegate run`."
    )
    parser.add_argument("--link", type=int, required=True, metavar="FD")
    fd = parser.parse_args(arguments).link
    leave_signals_to_the_supervisor()
    # exec keeps the mask of the parent, which may have blocked signals to read them one by one.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        link = Link.inherited(fd)
    except (OSError, LinkError) as error:
        _refuse(f"--link {fd} is not a link ({error}); use `tidegate run`")
    die_with_the_parent(link.peer_pid())
    return link


def leave_signals_to_the_supervisor() -> None:
    """Ignore the signals that are its to act on; again, where a library took them meanwhile."""
    for number in SIGNALS_FOR_THE_SUPERVISOR:
        signal.signal(number, signal.SIG_IGN)


def die_with_the_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `number` when the parent ends (PR_SET_PDEATHSIG, prctl(2)).

    Exits with EXIT_USAGE if the parent is no longer `parent_pid`. A fork does not inherit this.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")
    # The parent may have died before the kernel was told; then somebody else is our parent now.
    if os.getppid() != parent_pid:
        _refuse("the process that started this one is gone")


def _refuse(reason: str) -> NoReturn:
    print(f"tidegate: {reason}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)
