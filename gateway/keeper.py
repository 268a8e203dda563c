"""Keepers: what stays of a worker that dies, until its connections are in other hands.

A keeper is a tiny process beside its worker. It has the worker's descriptors and sees what the
worker puts down of each connection in their segment, the keep; what it does with them is in
`workers/engine/src/keeper.rs`. The worker makes it, and it is our child. `rescue.py` has what we
do when a worker dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.carrying import Keep, Take
from gateway.children import State
from gateway.loop import Loop, Phase
from shm.segment import Segment
from workers.link import Link, LinkClosed, LinkError, close_all

LOSSES = ("torn", "partial", "overwritten", "input", "output", "answer", "refused")
"""Why a connection cannot go on: what a keeper counts in `handed_over`."""

logger = logging.getLogger("tidegate.keeper")


@dataclass(slots=True)
class Found:
    """What a keeper has found of its dead worker's connections."""

    held: int
    """They can be given to another worker."""
    given: int
    """They were on their way to another worker when theirs died."""
    acknowledged: int
    """That worker had said so many were its own, as far as the dead one knew."""
    damaged: int
    """Nobody can go on with them."""
    unrecorded: int
    """They had just been accepted, or adopted."""


class Keeper:
    """One worker's keeper, from before it is made until it is dead."""

    def __init__(self, loop: Loop, name: str, link: Link, segment: Segment) -> None:
        self._worker = name
        self.name = f"the keeper of {name}"
        self.pid: int | None = None
        """None: it has not said yet that it is there."""
        self.found: Found | None = None
        """None: its worker lives, or it has not looked yet."""
        self.given: dict[str, Any] | None = None
        """What it said of its last giving: moved, kept, lost, reason, and each of LOSSES."""
        self.state = State.STARTING
        self.failure: dict[str, str] = {}
        self.segment = segment
        self.handoff = 0
        """Number of the hand-off that it gives in."""
        self.on_given: Any = None
        """Called with `moving` and `handed_over`, while it gives."""
        self._loop = loop
        self._link = link
        self._pidfd = -1
        link.setblocking(False)
        loop.watch(link.fileno(), Phase.LINKS, self._receive)

    def carried(self, keep: Keep) -> dict[str, Any]:
        return {
            "name": self._worker,
            "pid": self.pid,
            "pidfd": keep(self._pidfd) if self.pid is not None else -1,
            "link": keep(self._link.fileno()),
            "segment": [self.segment.name, keep(self.segment.fd)],
        }

    @classmethod
    def restore(cls, loop: Loop, state: dict[str, Any], take: Take) -> Keeper:
        name, fd = state["segment"]
        link = Link.inherited(take(state["link"]))
        keeper = cls(loop, state["name"], link, Segment(name, take(fd)))
        if state["pid"] is not None:
            keeper._is_there(state["pid"], take(state["pidfd"]))
        return keeper

    @property
    def alive(self) -> bool:
        return self.state is not State.DEAD

    def connections(self) -> int:
        """How many it has to give."""
        return self.found.held if self.found else 0

    def heartbeat(self) -> int:
        """It has none: in a hand-off it does nothing but wait for the receiver."""
        return 0

    def send(self, type_: str, fds: Mapping[str, int] | None = None, **values: Any) -> None:
        """Tells it to give what it has; the end of the hand-off's socket says to whom."""
        self.given, self.handoff = None, values.get("id", 0)
        with contextlib.suppress(LinkClosed, OSError):
            self._link.send({"type": type_}, list((fds or {}).values()))

    def dismiss(self) -> None:
        """It has nothing to do any more: ends. What it has still is closed."""
        if self._link.fileno() >= 0:
            self._loop.unwatch(self._link.fileno())
            self._link.close()
        if self.pid is None:
            self._gone()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.pid is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Ends it at once, for the gateway ends."""
        self.kill()
        self.dismiss()
        if self.alive:
            self._dead(0)

    def how_it_ended(self) -> str:
        return self.failure.get("message", "ended")

    # ---- what the loop calls

    def _receive(self, events: int) -> None:
        while self._link.fileno() >= 0:
            try:
                message, fds = self._link.recv()
                close_all(fds)
            except BlockingIOError:
                return
            except (LinkClosed, LinkError):
                # It was never made, or its end follows.
                self._loop.unwatch(self._link.fileno())
                self._link.close()
                if self.pid is None:
                    self._gone()
                return
            self._told(message)

    def _told(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "hello":
                # Nobody else reaps it, so its number is not another's.
                self._is_there(int(message["pid"]), os.pidfd_open(message["pid"]))
            case "found":
                self.found = Found(*(int(message[each]) for each in Found.__slots__))
            case "moving" if self.on_given is not None:
                self.on_given(self, "moving", message | {"id": self.handoff})
            case "handed_over":
                self.given = message
                if self.found is not None:
                    self.found.held = int(message["kept"])
                    self.found.damaged = 0
                if self.on_given is not None:
                    self.on_given(self, "handed_over", message | {"id": self.handoff})

    def _is_there(self, pid: int, pidfd: int) -> None:
        self.pid, self._pidfd, self.state = pid, pidfd, State.SERVING
        self._loop.watch(pidfd, Phase.DEATHS, self._dead)

    def _dead(self, events: int) -> None:
        self._receive(0)
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid or 0, 0)[1])
        if status < 0:
            self.failure["message"] = f"was killed by {signal.Signals(-status).name}"
        elif status > 0:
            self.failure["message"] = f"exited with status {status}"
        if self.failure and self.found is None:
            logger.error(
                f"{self._worker} has lost its keeper, which {self.how_it_ended()}: if it dies, its "
                "connections do too",
                extra={"keeper": self.pid},
            )
        if self._link.fileno() >= 0:
            self._loop.unwatch(self._link.fileno())
            self._link.close()
        self._gone()

    def _gone(self) -> None:
        if self.alive:
            self.state = State.DEAD
            self.segment.unlink()
