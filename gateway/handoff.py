"""A hand-off: live connections on their way from one worker to another, over a socket of their own.

The workers do it (`workers/HANDOFF.md`). Here it is begun, watched and given a bound: a giver waits
for a living receiver without end, so it is for us to end the one of the two that hangs.
"""

from __future__ import annotations

import itertools
import logging
import socket
import time
from typing import Any

from gateway.children import State
from gateway.keeper import Keeper
from gateway.processes import Worker
from gateway.runtime import Runtime

ALL = -1
"""As a count of connections: all that the giver has."""

COMPLETE = ("done", "full")
"""Reasons of `handed_over` that are no failure: a full receiver took what it has room for."""
REASONS = {
    "receiver_gone": "let go of the hand-off",
    "incompatible": "does not understand this version of the hand-off",
    "refused": "refused connections as it was told of them",
    "system": "was not reached: the kernel refused memory or descriptors",
    "busy": "had to wait: another hand-off is under way",
}
"""The others, in words (`workers/HANDOFF.md` defines them)."""

TOLD_S_MAX = 60.0
"""A receiver that has everything may wait until the publisher knows of it; it sets itself half."""

logger = logging.getLogger("tidegate.handoff")


class Handoff:
    """One hand-off, as both workers tell of it. Counts are of connections."""

    def __init__(
        self, runtime: Runtime, number: int, giver: Worker | Keeper, receiver: Worker
    ) -> None:
        self.number = number
        self.giver, self.receiver = giver, receiver
        self.moved = 0
        """They have another owner now."""
        self.remaining = giver.connections()
        """They are still the giver's, and wanted elsewhere."""
        self.adopted: dict[str, Any] | None = None
        """What the receiver said at its end."""
        self.over = False
        """Nobody waits for it any more, and what is said of it is not heard."""
        self._given: dict[str, Any] | None = None
        self._told_by = 0.0
        self._timeout_s = runtime.config.reload.handoff_timeout_s
        self._progressed()

    def take(self, type_: str, message: dict[str, Any]) -> None:
        """Takes what one of the two said."""
        if type_ == "adopted":
            self.adopted = message
        else:
            self.moved = int(message["moved"])
            self.remaining = int(message.get("remaining", 0))
            if type_ == "handed_over":
                self._given, self._told_by = message, time.monotonic() + TOLD_S_MAX
        self._progressed()

    def settled(self) -> bool:
        """Whether each side has said its last about it, or is dead. Ends what hangs."""
        giver_done = self._given is not None or not self.giver.alive
        receiver_done = self.adopted is not None or not self.receiver.alive
        if giver_done and receiver_done:
            return True
        if time.monotonic() - self._progressed_at < self._timeout_s:
            return False
        if not self.giver.alive or not self.receiver.alive:
            # The survivor serves what it has. Should it hang as well, its heartbeat tells.
            return True
        self._kill_the_hung_one()
        return False

    @property
    def problem(self) -> str:
        """What went wrong, in words; empty: nothing did."""
        for worker, part in ((self.giver, "gave"), (self.receiver, "took")):
            if not worker.alive:
                return f"{worker.name} {worker.how_it_ended()} while it {part} connections"
        reason = self._given["reason"] if self._given else "done"
        if reason in COMPLETE:
            return ""
        return f"{self.receiver.name} {REASONS.get(reason, f'did not take them ({reason})')}"

    @property
    def kept(self) -> int:
        """Wanted elsewhere and still the giver's, for the receiver did not take them."""
        return int(self._given["kept"]) if self._given else 0

    @property
    def lost(self) -> int:
        """Closed by the giver, because the kernel would not let it serve them on."""
        return int(self._given["lost"]) if self._given else 0

    @property
    def pause_us(self) -> dict[str, int]:
        """How long the moved ones were served by nobody: `p50`, `p99` and `max`."""
        told = self.adopted or {}
        return {part: int(told.get(f"pause_us_{part}", 0)) for part in ("p50", "p99", "max")}

    def _progressed(self) -> None:
        self._progressed_at = time.monotonic()
        self._heartbeats = self._heartbeats_now()

    def _heartbeats_now(self) -> tuple[int, int]:
        return self.giver.heartbeat(), self.receiver.heartbeat()

    def _kill_the_hung_one(self) -> None:
        """The giver only if its heart alone stands still: it is the one with more to lose."""
        now = self._heartbeats_now()
        giver, receiver = (old == new for old, new in zip(self._heartbeats, now, strict=True))
        if self._given is not None and not receiver and time.monotonic() < self._told_by:
            # It waits until the publisher has heard of all who came.
            self._progressed()
            return
        hung: Worker | Keeper = self.giver if giver and not receiver else self.receiver
        if hung.state is not State.KILLED:
            reason = f"made no progress in a hand-off for {self._timeout_s:g} s and was killed"
            logger.error(f"{hung.name} {reason}", extra={"child": hung.pid})
            hung.failure = {"code": "handoff_timeout", "message": reason}
            hung.kill()
        self._progressed()


class Handoffs:
    """Those under way. Workers name a hand-off by its number."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._numbers = itertools.count(1)
        self._under_way: dict[int, Handoff] = {}

    def begin(
        self,
        giver: Worker | Keeper,
        receiver: Worker,
        *,
        count: int = ALL,
        keep_accepting: bool = False,
        drain_queue: bool = False,
    ) -> Handoff:
        """Tells both workers; `settled` of what it returns is to be waited for, then `end` called.

        Without `keep_accepting` the giver takes no new connections from now on; with
        `drain_queue` it takes those that wait in its listeners first.
        """
        handoff = Handoff(self._runtime, next(self._numbers), giver, receiver)
        theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._under_way[handoff.number] = handoff
        with theirs[0] as giving, theirs[1] as receiving:
            receiver.send("adopt", {"handoff": receiving.fileno()}, id=handoff.number)
            giver.send(
                "hand_over",
                {"handoff": giving.fileno()},
                id=handoff.number,
                count=count,
                keep_accepting=keep_accepting,
                drain_queue=drain_queue,
            )
        logger.info(
            f"{giver.name} hands connections over to {receiver.name}",
            extra={"handoff": handoff.number, "count": handoff.remaining if count < 0 else count},
        )
        return handoff

    def take(self, child: Worker | Keeper, type_: str, message: dict[str, Any]) -> None:
        """Takes a word on a hand-off of one of the two; one that has ended interests nobody."""
        handoff = self._under_way.get(int(message["id"]))
        if handoff is not None and child in (handoff.giver, handoff.receiver):
            handoff.take(type_, message)

    def end(self, handoff: Handoff) -> None:
        """Forgets it, and logs how it went."""
        del self._under_way[handoff.number]
        handoff.over = True
        figures = {
            "handoff": handoff.number,
            "moved": handoff.moved,
            "kept": handoff.kept,
            "lost": handoff.lost,
            "pause_max_us": handoff.pause_us["max"],
        }
        if handoff.problem:
            logger.error(f"a hand-off failed: {handoff.problem}", extra=figures)
        else:
            logger.info(f"{handoff.receiver.name} has taken connections over", extra=figures)

    def givers(self) -> list[Worker | Keeper]:
        """Who gives now."""
        return [each.giver for each in self._under_way.values()]

    def given_by(self, worker: Worker) -> Handoff | None:
        """The hand-off in which the worker gives now, if it does."""
        return next((each for each in self._under_way.values() if each.giver is worker), None)
