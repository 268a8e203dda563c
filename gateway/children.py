"""One exec'ed child: its process, its link, its death as the kernel tells it (pidfd_open(2))."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gateway.carrying import Keep, Take
from gateway.errors import ChildError
from gateway.loop import Loop, Phase, Timer
from workers.link import Link, LinkClosed, LinkError, close_all, named_descriptors

MESSAGES_PER_TURN_MAX = 64
"""A chattering child waits for the next turn."""
OUTBOX_MESSAGES_MAX = 16_384
"""More than every attach that a new publisher can need (two for each uplink and seat)."""

logger = logging.getLogger("tidegate.children")


class State(Enum):
    """Where a child is in its life."""

    STARTING = "starting"
    """Exec'ed and told what to do; it has not said `ready` yet."""
    SERVING = "serving"
    STANDBY = "standby"
    """Replaced on probation: without clients, and ready to take them back."""
    DRAINING = "draining"
    """It closes its connections, or finishes its requests, and then ends by itself."""
    KILLED = "killed"
    """SIGKILL is sent: its death will be seen any moment."""
    DEAD = "dead"


@dataclass(slots=True)
class Process:
    """A process of ours that nobody has waited for yet, and our end of its link."""

    pid: int
    pidfd: int
    """Readable at its death, and never another process."""
    link: Link
    started: float = field(default_factory=time.monotonic)
    popen: subprocess.Popen[bytes] | None = None
    """Of one that this program started itself: it would reap it in our place if it were let go."""

    @classmethod
    def start(cls, module: str, name: str) -> Process:
        """Starts `python -P -m <module> --link FD`. Raises ChildError where that is impossible."""
        link, theirs = Link.pair()
        try:
            # A fresh interpreter runs the code that is installed now; -P keeps the working
            # directory off its path. Its own process group: a terminal's ^C is for us alone.
            popen = subprocess.Popen(
                [sys.executable, "-P", "-m", module, "--link", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            link.close()
            raise ChildError(f"cannot start {name} ({error.strerror})", code="spawn") from error
        finally:
            theirs.close()
        return cls(popen.pid, os.pidfd_open(popen.pid), link, popen=popen)

    def wait(self) -> int:
        """Reaps it: its exit status, or the signal that ended it as a negative number."""
        if self.popen is not None:
            return self.popen.wait()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def carried(self, keep: Keep) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "pidfd": keep(self.pidfd),
            "link": keep(self.link.fileno()),
            "started": self.started,
        }

    @classmethod
    def restore(cls, state: dict[str, Any], take: Take) -> Process:
        link = Link.inherited(take(state["link"]))
        return cls(state["pid"], take(state["pidfd"]), link, state["started"])


class Child:
    """A running child. `on_message(child, type, message, descriptors)`, then `on_death(child)`.

    Every message that the child sent is delivered before its death is.
    """

    def __init__(
        self,
        loop: Loop,
        process: Process,
        name: str,
        on_message: Callable[[Child, str, dict[str, Any], dict[str, int]], None],
        on_death: Callable[[Child], None],
    ) -> None:
        self.name = name
        self.state = State.STARTING
        self.pid, self.started = process.pid, process.started
        self.failure: dict[str, str] = {}
        """What the child said in `failed` before it ended: code and message."""
        self.exit_status: int | None = None
        self.served = False
        """Whether it ever said `ready`."""
        self._loop = loop
        self._on_message = on_message
        self._on_death = on_death
        self._outbox: deque[tuple[dict[str, Any], list[int]]] = deque()
        self._deadline: Timer | None = None
        self._deadline_at, self._deadline_reason = 0.0, ""
        self._process = process
        self._link = process.link
        self._link.setblocking(False)
        self._pidfd = process.pidfd
        loop.watch(self._pidfd, Phase.DEATHS, self._dead)
        loop.watch(self._link.fileno(), Phase.LINKS, self._ready_link)

    def carried(self, keep: Keep) -> dict[str, Any]:
        """What `take_up` needs; kinds of children add theirs. Times are CLOCK_MONOTONIC."""
        return {
            "process": self._process.carried(keep),
            "name": self.name,
            "state": self.state.value,
            "served": self.served,
            "failure": self.failure,
            "outbox": [[message, [keep(fd) for fd in fds]] for message, fds in self._outbox],
            "deadline_at": self._deadline_at if self._deadline is not None else 0.0,
            "deadline_reason": self._deadline_reason,
        }

    def take_up(self, state: dict[str, Any], take: Take) -> None:
        """Goes on where `carried` left off; for a child that was made of its process again."""
        self.state = State(state["state"])
        self.served, self.failure = state["served"], state["failure"]
        for message, fds in state["outbox"]:
            self._outbox.append((message, [take(fd) for fd in fds]))
        if self._outbox:
            self._loop.rewatch(self._link.fileno(), select.EPOLLIN | select.EPOLLOUT)
        if state["deadline_at"]:
            left_s = max(0.0, state["deadline_at"] - time.monotonic())
            self.kill_after(left_s, state["deadline_reason"])

    @property
    def lived_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def alive(self) -> bool:
        return self.state is not State.DEAD

    def become(self, state: State) -> None:
        """Notes a transition, from death none; only transitions are logged, never states."""
        if self.alive and state is not self.state:
            before, self.state = self.state, state
            self.served = self.served or state is State.SERVING
            logger.info(
                f"{self.name} is {state.value}", extra={"child": self.pid, "before": before.value}
            )

    def send(self, type_: str, fds: dict[str, int] | None = None, **values: Any) -> None:
        """Sends one message, now or when the child reads on; descriptors stay the caller's.

        Steps that wait may find that the child died meanwhile: a dead one is told nothing.
        """
        if not self.alive:
            return
        message = {"type": type_, **values}
        if fds:
            message["fds"] = list(fds)
        numbers = list((fds or {}).values())
        if self._outbox:
            self._keep(message, numbers)
        elif not self._sent(message, numbers):
            self._keep(message, numbers)
            self._loop.rewatch(self._link.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signals the process, unless it is dead: by pidfd, so never another one."""
        if self.alive:
            if number == signal.SIGKILL:
                self.become(State.KILLED)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_after(self, delay_s: float, reason: str) -> None:
        """Kills the child unless it ends, or another deadline replaces this one, before."""

        def expire() -> None:
            logger.warning(f"{self.name} is killed: {reason}", extra={"child": self.pid})
            self.failure.setdefault("code", "timeout")
            self.failure.setdefault("message", reason)
            self.kill()

        self.no_deadline()
        if not self.alive:
            return
        self._deadline_at, self._deadline_reason = time.monotonic() + delay_s, reason
        self._deadline = self._loop.after(delay_s, expire)

    def kill_after_start(self, start_timeout_s: float) -> None:
        """Kills the child unless it says `ready` in time."""
        self.kill_after(
            start_timeout_s, f"did not say that it is ready within {start_timeout_s:g} s"
        )

    def no_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def reclaim(self) -> None:
        """Takes back what this kind of child was given; called once, after its death."""

    def how_it_ended(self) -> str:
        """The end in words, for the log and for error messages."""
        if self.failure:
            return self.failure.get("message", "failed")
        status = self.exit_status or 0
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    # ---- what the loop calls

    def _ready_link(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if events & ~select.EPOLLOUT:
            self._receive(MESSAGES_PER_TURN_MAX)

    def _receive(self, messages_max: int) -> None:
        for _ in range(messages_max):
            try:
                message, fds = self._link.recv()
                descriptors = named_descriptors(message, fds)
            except BlockingIOError:
                return
            except LinkClosed:
                # Its death follows; until then the closed end would be reported without pause.
                self._loop.unwatch(self._link.fileno())
                return
            except LinkError as error:
                logger.error(f"{self.name} broke its link: {error}", extra={"child": self.pid})
                self._loop.unwatch(self._link.fileno())
                self.kill()
                return
            if message["type"] == "failed":
                self.failure = {
                    "code": str(message.get("code", "")),
                    "message": str(message.get("message", "")),
                }
            self._on_message(self, message["type"], message, descriptors)

    def _dead(self, events: int) -> None:
        self._loop.unwatch(self._pidfd)
        # A child sends at most one window of messages before it ends; all are here by now.
        self._receive(OUTBOX_MESSAGES_MAX)
        # Not before: who broke its link in its last message is killed by it once more.
        os.close(self._pidfd)
        self.exit_status = self._process.wait()
        self.no_deadline()
        self._loop.unwatch(self._link.fileno())
        self._link.close()
        while self._outbox:
            close_all(self._outbox.popleft()[1])
        self.become(State.DEAD)
        self._on_death(self)

    def _flush(self) -> None:
        while self._outbox:
            message, fds = self._outbox[0]
            if not self._sent(message, fds):
                return
            self._outbox.popleft()
            close_all(fds)
        self._loop.rewatch(self._link.fileno(), select.EPOLLIN)

    def _sent(self, message: dict[str, Any], fds: Sequence[int]) -> bool:
        """Whether the message needs no further care: sent, or never to be read."""
        try:
            self._link.send(message, fds)
        except LinkClosed:
            return True
        except OSError as error:
            # ETOOMANYREFS: too many descriptors under way (unix(7)); it reads them in time.
            if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS):
                return False
            raise
        return True

    def _keep(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        if len(self._outbox) >= OUTBOX_MESSAGES_MAX:
            logger.error(f"{self.name} does not read its link", extra={"child": self.pid})
            self.kill()
            return
        self._outbox.append((message, [os.dup(fd) for fd in fds]))
