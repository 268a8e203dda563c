"""A service: something of which exactly one process must always serve.

starting -> serving -> (death) -> backing_off -> starting ...
               |
               +-> replaced: a successor starts beside it, serves, and it drains and ends
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from gateway.carrying import Keep
from gateway.children import Child, State
from gateway.errors import ChildError, TidegateError
from gateway.loop import Loop, Timer
from gateway.restarts import RestartPolicy, Restarts

logger = logging.getLogger("tidegate.service")

NewChild = Callable[["Service"], Child]
SameChild = Callable[["Service", dict[str, Any]], Child]
"""Makes a child again of its carried state."""


class Service:
    """Keeps one process serving. What kind of process is `new_child`'s knowledge.

    `on_message` gets what is not the service's own business; `on_death` every death, after which
    the dead one's resources are free.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        new_child: NewChild,
        *,
        policy: RestartPolicy,
        on_message: Callable[[Child, str, dict[str, Any]], None],
        on_death: Callable[[Child, bool], None],
    ) -> None:
        self.name = name
        self.current: Child | None = None
        """The process that serves, or is on its way to."""
        self.successor: Child | None = None
        """Starting beside the current one, to replace it."""
        self.standby: Child | None = None
        """Replaced by the current one on probation, and there to replace it in turn."""
        self.retiring: list[Child] = []
        """Told to end, not dead yet."""
        self.stopped = False
        """No process is wanted any more."""
        self.failure = ""
        """How the last process that died unasked came to its end."""
        self.cannot_start = False
        """Whether the last failure was one to start, of its own and not by a signal."""
        self.restarts = Restarts(policy)
        self._loop = loop
        self._new_child = new_child
        self._on_message = on_message
        self._on_death = on_death
        self._restart: Timer | None = None
        self._restart_at = 0.0
        self._vacant_since = time.monotonic()
        """Since when no process serves, while none does."""

    def carried(self, keep: Keep) -> dict[str, Any]:
        """What `take_up` needs, of a service in which nothing is being replaced."""
        return {
            "child": self.current.carried(keep) if self.current is not None else None,
            "failure": self.failure,
            "cannot_start": self.cannot_start,
            "restarts": self.restarts.carried(),
            "restart_at": self._restart_at if self._restart is not None else 0.0,
            "vacant_since": self._vacant_since,
        }

    def take_up(self, state: dict[str, Any], same_child: SameChild) -> None:
        """Goes on where `carried` left off, instead of `start`."""
        self.failure, self.cannot_start = state["failure"], state["cannot_start"]
        self.restarts = Restarts.restore(state["restarts"], self.restarts.policy)
        self._vacant_since = state["vacant_since"]
        if state["child"] is not None:
            self.current = same_child(self, state["child"])
        elif state["restart_at"]:
            self._start_after(max(0.0, state["restart_at"] - time.monotonic()))

    @property
    def settled(self) -> bool:
        """Whether nothing is being replaced, and nobody stands by or has yet to end."""
        return self.successor is None and self.standby is None and not self.retiring

    @property
    def serving(self) -> bool:
        return self.current is not None and self.current.state is State.SERVING

    @property
    def state(self) -> str:
        """The state's name, as `status` shows it."""
        if self.current is not None:
            return "replacing" if self.successor is not None else self.current.state.value
        if self.retiring:
            return "draining"
        return "stopped" if self.stopped else "backing_off"

    @property
    def children(self) -> list[Child]:
        """Every process of this service that is not dead."""
        present = [self.current, self.successor, self.standby, *self.retiring]
        return [child for child in present if child is not None]

    def start(self) -> None:
        """Starts the process; if that cannot be, tries again later, as after a death."""
        self._restart = None
        try:
            self.current = self._new_child(self)
        except (TidegateError, OSError) as error:
            self.failure, self.cannot_start = str(error), True
            self._try_again(0.0)

    def start_successor(self) -> Child:
        """Starts the next process beside the current one, or in place of one that waits to start.

        Raises TidegateError or OSError.
        """
        self._cancel_restart()
        self.successor = self._new_child(self)
        return self.successor

    def promote(self) -> Child | None:
        """The successor serves from now on; returns the one that it replaces, yet to be told."""
        before, self.current, self.successor = self.current, self.successor, None
        if before is not None:
            self.retiring.append(before)
        return before

    def keep(self, child: Child) -> None:
        """A predecessor is not to end yet, but to stand by."""
        self.retiring.remove(child)
        self.standby = child
        child.become(State.STANDBY)

    def recall(self) -> Child:
        """The process that stands by becomes the successor, and serves; returns it.

        Raises ChildError where none stands by.
        """
        if self.standby is None:
            raise ChildError(f"{self.name}: no process stands by", code="no_standby")
        child, self.standby = self.standby, None
        self.successor = child
        child.become(State.SERVING)
        child.send("resume")
        return child

    def dismiss(self) -> Child | None:
        """Nobody needs to stand by any more; returns the one that did, yet to be told."""
        child, self.standby = self.standby, None
        if child is not None:
            self.retiring.append(child)
        return child

    def discard_successor(self) -> None:
        """The replacement is called off: the current process goes on."""
        if self.successor is not None:
            child, self.successor = self.successor, None
            self.retiring.append(child)
            child.kill()

    def vacate(self) -> Child | None:
        """Lets the process end before the next one starts; returns it, yet to be told."""
        self._cancel_restart()
        self.discard_successor()
        child, self.current = self.current, None
        if child is not None:
            self.retiring.append(child)
            self._vacant_since = time.monotonic()
        return child

    def retire(self) -> Child | None:
        """No process is wanted any more; returns the one to be told, if there is one."""
        self.stopped = True
        self.dismiss()
        return self.vacate()

    # ---- what the children say

    def message(
        self, child: Child, type_: str, message: dict[str, Any], descriptors: dict[str, int]
    ) -> None:
        if type_ == "ready" and child.state is State.STARTING:
            child.no_deadline()
            child.become(State.SERVING)
            if child is self.current:
                vacant_ms = round((time.monotonic() - self._vacant_since) * 1000)
                logger.info(
                    f"{self.name} serves", extra={"child": child.pid, "after_ms": vacant_ms}
                )
        self._on_message(child, type_, message)

    def died(self, child: Child) -> None:
        """Frees what the dead one held, then replaces it if nobody asked for the death."""
        asked = child in self.retiring
        if asked:
            self.retiring.remove(child)
        elif child is self.successor:
            self.successor = None
        elif child is self.standby:
            self.standby = None
        elif child is self.current:
            self.current = None
            if self.standby is not None and self.successor is None and not self.stopped:
                self.recall()
        child.reclaim()
        self._on_death(child, asked)
        if asked:
            return
        self.failure = child.how_it_ended()
        self.cannot_start = not child.served and (
            bool(child.failure) or (child.exit_status or 0) >= 0
        )
        logger.error(f"{child.name} {self.failure}", extra={"child": child.pid})
        if self.current is None and not self.stopped:
            self._vacant_since = time.monotonic()
            if self.successor is not None:
                self.promote()
            else:
                self._try_again(child.lived_s)

    def _cancel_restart(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None

    def _try_again(self, lived_s: float) -> None:
        now = time.monotonic()
        delay_s = self.restarts.after_death(now, lived_s)
        if self.restarts.in_crash_loop(now):
            logger.error(
                f"{self.name} is in a crash loop ({self.failure}): next start in {delay_s:g} s",
                extra={"deaths": self.restarts.total},
            )
        elif delay_s:
            logger.warning(f"{self.name} starts again in {delay_s:g} s")
        self._start_after(delay_s)

    def _start_after(self, delay_s: float) -> None:
        self._restart_at = time.monotonic() + delay_s
        self._restart = self._loop.after(delay_s, self.start)

    @property
    def crash_looping(self) -> bool:
        """Whether the brake is on and nothing serves because of it."""
        return self.current is None and self.restarts.in_crash_loop(time.monotonic())
