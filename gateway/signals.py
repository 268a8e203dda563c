"""Signals of the supervisor: handlers only enqueue, the loop reads the queue as its first phase.

TERM  stop gracefully          INT, QUIT  stop fast; a second INT kills what is left
HUP   reload                   USR1       reopen the log file
TTIN  one worker more          TTOU       one worker less
USR2  upgrade
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable
from types import FrameType

HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
READ_BYTES_MAX = 256
"""One byte a signal; more than so many unread ones are repetitions."""


class SignalQueue:
    """From construction to `close`, the signals above arrive here and nowhere else."""

    def __init__(self, arrived: bytes = b"") -> None:
        """`arrived` are numbers of signals that came before."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._writer.send(arrived)
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None]
        self._before = {number: signal.signal(number, _enqueued) for number in HANDLED}
        # The interpreter's C handler writes the number itself: nothing of ours runs in a handler.
        self._fd_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # They may be held back: `hold` does so, and exec keeps the mask (signal(7)).
        self.let_go()

    def hold(self) -> None:
        """From now on signals wait in the kernel: exec resets handlers, and they would kill us."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)

    def let_go(self) -> None:
        """Takes signals again, those first that waited."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def carried(self) -> bytes:
        """The signals that arrived and were not read yet; they stay."""
        with contextlib.suppress(BlockingIOError):
            return self._reader.recv(READ_BYTES_MAX, socket.MSG_PEEK)
        return b""

    @classmethod
    def restore(cls, state: bytes) -> SignalQueue:
        return cls(state)

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> list[signal.Signals]:
        """The signals that arrived since the last call, in order."""
        with contextlib.suppress(BlockingIOError):
            numbers = self._reader.recv(READ_BYTES_MAX)
            return [signal.Signals(number) for number in numbers if number in HANDLED]
        return []

    def close(self) -> None:
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._reader.close()
        self._writer.close()


def _enqueued(number: int, frame: FrameType | None) -> None:
    """Python wants a handler; the wake-up descriptor has the signal already."""
