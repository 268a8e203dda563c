"""Long verbs: reload, scale, drain, each written as the steps it takes, one after the other.

How connections are moved meanwhile is in `moves.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from gateway.children import Child, State
from gateway.config import Config, differing_keys, reread
from gateway.errors import ChildError, ConfigError, ControlError, TidegateError
from gateway.fleet import GRACE_S, Fleet
from gateway.moves import Moved, Progress, into_successor, out_of_slot
from gateway.processes import Worker
from gateway.service import Service
from gateway.slot import Slot
from gateway.steps import Condition, Report, Steps

logger = logging.getLogger("tidegate.operations")

PROGRESS_INTERVAL_S = 1.0
"""Progress comes at least so often, so that a client can tell a long verb from a lost one."""
FIXED_KEYS = frozenset(
    {
        "gateway.name",
        "gateway.run_dir",
        "client.address",
        "client.http_port",
        "client.tcp_port",
        "log.capacity_bytes",
        "log.channels_max",
        "api.address",
        "api.port",
        "api.socket",
        "workers.count",
    }
)
"""What listeners and segments were made with: a reload keeps both."""


class Operation:
    """A long verb under way. `on_end(result, None)` or `on_end(None, error)` is called once."""

    def __init__(
        self,
        name: str,
        requester: str,
        steps: Callable[[Report], Steps],
        on_progress: Report,
        on_end: Callable[[dict[str, Any] | None, TidegateError | None], None],
    ) -> None:
        self.name = name
        self.requester = requester
        self.started = time.monotonic()
        self.done = False
        self._on_progress = on_progress
        self._on_end = on_end
        self._last_progress: dict[str, Any] = {"phase": name}
        self._reported_at = self.started
        self._steps = steps(self._report)
        self._awaited: Condition | None = None
        logger.info(f"{name} begins", extra={"requester": requester})

    def advance(self) -> None:
        """Takes the steps that can be taken now; cheap when there is none."""
        if self.done:
            return
        try:
            while self._awaited is None or self._awaited():
                self._awaited = next(self._steps)
        except StopIteration as end:
            self._finish({**end.value, "duration_s": round(self._elapsed_s, 3)}, None)
        except TidegateError as error:
            self._finish(None, error)
        else:
            if time.monotonic() - self._reported_at >= PROGRESS_INTERVAL_S:
                self._report(self._last_progress)

    def cancel(self, reason: str) -> None:
        """Ends it where it is: what was replaced stays, what was not stays too."""
        if not self.done:
            self._steps.close()
            self._finish(None, ControlError(f"{self.name} was given up: {reason}", code="aborted"))

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "requester": self.requester,
            "elapsed_s": round(self._elapsed_s, 3),
            **self._last_progress,
        }

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def _report(self, progress: dict[str, Any]) -> None:
        self._last_progress = progress
        self._reported_at = time.monotonic()
        self._on_progress({**progress, "elapsed_s": round(self._elapsed_s, 3)})

    def _finish(self, result: dict[str, Any] | None, error: TidegateError | None) -> None:
        self.done = True
        extra = {"requester": self.requester, "duration_s": round(self._elapsed_s, 3)}
        if error is not None:
            logger.error(f"{self.name} failed: {error}", extra=extra)
        else:
            logger.info(f"{self.name} is done", extra=extra)
        self._on_end(result, error)


class Operations:
    """Runs one operation at a time; a second is refused, neither queued nor piled on the first."""

    def __init__(self, on_progress: Callable[[], None]) -> None:
        """`on_progress` is called whenever `describe` has something new to tell."""
        self._tell = on_progress
        self.current: Operation | None = None
        self.closed = "the gateway is starting"
        """Why none may begin now; empty: one may."""

    def begin(
        self,
        name: str,
        requester: str,
        steps: Callable[[Report], Steps],
        on_progress: Report,
        on_end: Callable[[dict[str, Any] | None, TidegateError | None], None],
    ) -> None:
        """Starts an operation. Raises ControlError, naming the one that is under way."""
        if self.closed:
            raise ControlError(
                f"{name} is refused: {self.closed}",
                remedy="try again when it serves (`tidegate status`)",
                code="busy",
            )
        if self.current is not None:
            since = time.monotonic() - self.current.started
            raise ControlError(
                f"{name} is refused: {self.current.requester} began {self.current.name} "
                f"{since:.1f} s ago, and it is not done",
                remedy="wait for it (`tidegate status` tells how far it is)",
                code="busy",
            )

        def progress(values: dict[str, Any]) -> None:
            on_progress(values)
            self._tell()

        self.current = Operation(name, requester, steps, progress, on_end)
        self.advance()

    def advance(self) -> None:
        """Called once a turn."""
        if self.current is not None:
            self.current.advance()
            if self.current.done:
                self.current = None

    def close(self, reason: str) -> None:
        """Gives up the one under way; none begins any more."""
        self.closed = reason
        if self.current is not None:
            self.current.cancel(reason)
            self.current = None

    def describe(self) -> dict[str, Any] | None:
        """What is under way, for `status`."""
        return None if self.current is None else self.current.describe()


def reload(fleet: Fleet, report: Report, spread_s: float | None = None) -> Steps:
    """Replaces every process by one of the code and configuration that are there now.

    Workers first, one slot at a time: if the first successor cannot start, nothing has changed.
    Then the publisher, whose rings wait for it; then the API, whose predecessor serves meanwhile.
    """
    before = fleet.pids()
    config_before, generation_before = fleet.runtime.config, fleet.runtime.generation
    changed = _take_new_config(fleet)
    spread = fleet.runtime.config.reload.spread_s if spread_s is None else spread_s
    total = max(len(fleet.slots), fleet.wanted) + 2
    slots: list[Moved] = []
    try:
        for index, slot in enumerate(list(fleet.slots)):
            phase = {"phase": f"slot {slot.number}", "done": index, "total": total}
            slots.append((yield from _replace_worker(fleet, slot, spread, report, phase)))
        for number in range(len(fleet.slots), fleet.wanted):
            report({"phase": f"slot {number}", "done": number, "total": total})
            yield from _start_slot(fleet)
        report({"phase": "publisher", "done": total - 2, "total": total})
        yield from _replace_publisher(fleet)
        report({"phase": "api", "done": total - 1, "total": total})
        timeout_s = fleet.runtime.config.stop.timeout_s
        yield from _replace(fleet.api, lambda api: fleet.tell_to_stop(api, timeout_s), "the API")
    except TidegateError as error:
        # Who starts from now on, after a death, starts as those that are still there did.
        fleet.runtime.generation = generation_before
        fleet.use_config(config_before)
        if slots:
            replaced = ", ".join(f"slot {each.slot}" for each in slots)
            error.message += f" (replaced before that: {replaced})"
        raise
    report({"phase": "done", "done": total, "total": total})
    return {
        "before": before,
        "after": fleet.pids(),
        "changed": changed,
        "slots": [each.as_map() for each in slots],
    }


def scale(fleet: Fleet, report: Report, count: int, slots_max: int) -> Steps:
    """Makes the number of slots `count`; the workers of those that go give up their connections."""
    if not 1 <= count <= slots_max:
        raise ControlError(
            f"scale to {count}: the number of workers is 1 to {slots_max}",
            remedy="for more, set workers.count and restart: the log's seats are made at start",
            code="out_of_range",
        )
    before = {"workers": len(fleet.slots)}
    steps = abs(count - len(fleet.slots))
    fleet.wanted = count
    done = 0
    left: list[Moved] = []
    while len(fleet.slots) < count:
        report({"phase": f"slot {len(fleet.slots)}", "done": done, "total": steps})
        yield from _start_slot(fleet)
        done += 1
    while len(fleet.slots) > count:
        phase = {"phase": f"slot {len(fleet.slots) - 1}", "done": done, "total": steps}
        report(phase)
        spread_s = fleet.runtime.config.reload.spread_s
        slot = fleet.take_out_slot()
        left.append((yield from out_of_slot(fleet, slot, spread_s, report, phase)))
        done += 1
    report({"phase": "done", "done": done, "total": steps})
    return {
        "before": before,
        "after": {"workers": len(fleet.slots)},
        "slots": [each.as_map() for each in left],
    }


def drain(fleet: Fleet, report: Report, spread_s: float | None = None) -> Steps:
    """Ends every client connection, paced, and refuses new ones; the gateway itself goes on.

    For taking a host out of rotation. A reload or a scale makes it serve clients again.
    """
    spread = fleet.runtime.config.stop.spread_s if spread_s is None else spread_s
    connections = fleet.connections()
    before = {"workers": len(fleet.slots), "connections": connections}
    services = [fleet.remove_slot(spread).service for _ in list(fleet.slots)]

    def progress() -> bool:
        left = fleet.connections()
        if left != progress_seen[0]:
            progress_seen[0] = left
            done = max(0, connections - left)
            report({"phase": "connections", "done": done, "total": connections})
        return not any(service.children for service in services)

    progress_seen = [-1]
    yield progress
    return {"before": before, "after": {"workers": 0, "connections": fleet.connections()}}


def _take_new_config(fleet: Fleet) -> list[str]:
    """Reads the configuration again; returns the keys that changed. The old one stays on errors."""
    try:
        config: Config = reread(fleet.runtime.config)
    except ConfigError as error:
        raise ControlError(
            f"the configuration was not taken, the old one stays\n{error.message}",
            remedy="correct it and reload again (`tidegate check-config` shows the same)",
            code="config",
        ) from error
    changed = differing_keys(fleet.runtime.config, config)
    if fixed := [key for key in changed if key in FIXED_KEYS]:
        raise ControlError(
            f"a reload cannot change {', '.join(fixed)}",
            remedy="restart the gateway for that, take it back, or use `tidegate scale` for "
            "workers.count",
            code="restart_needed",
        )
    try:
        fleet.use_config(config)
    except OSError as error:
        raise ControlError(
            f"gateway.log_file = {config.gateway.log_file}: {error.strerror}; the old "
            "configuration stays",
            remedy="name a file that this user may write",
            code="config",
        ) from error
    fleet.runtime.generation += 1
    return changed


def _replace_worker(
    fleet: Fleet, slot: Slot, spread_s: float, report: Report, phase: dict[str, Any]
) -> Generator[Condition, None, Moved]:
    """A slot's successor takes the connections over; what cannot move is closed over `spread_s`."""
    report(phase)
    moved = Moved(slot.number)
    predecessor = slot.service.current
    handoff = fleet.runtime.config.reload.handoff
    yield from _replace(
        slot.service,
        lambda worker: fleet.retire_worker(worker, spread_s),
        slot.service.name,
        into_successor(fleet, slot, moved, Progress(report, phase)) if handoff else None,
    )
    if isinstance(predecessor, Worker):
        moved.closed, moved.lost = predecessor.closed, moved.lost + predecessor.connections_lost
    return moved


def _replace(
    service: Service,
    retire: Callable[[Child], None],
    what: str,
    move: Generator[Condition, None, None] | None = None,
) -> Generator[Condition, None, None]:
    """Starts a successor, waits until it serves, and only then retires its predecessor.

    `move` comes in between, while both serve.
    """
    with _named(what):
        successor = service.start_successor()
    try:
        yield lambda: successor.state is not State.STARTING
    except GeneratorExit:
        service.discard_successor()
        raise
    if successor.state is not State.SERVING:
        raise ChildError(
            f"{what}: the successor {successor.how_it_ended()}; the predecessor serves on",
            remedy="see the log for the successor's last words",
            code="successor_failed",
        )
    if move is not None and successor is service.successor:
        yield from move
    if successor is service.successor:
        predecessor = service.promote()
        if predecessor is not None:
            retire(predecessor)
            yield lambda: not predecessor.alive


def _replace_publisher(fleet: Fleet) -> Generator[Condition, None, None]:
    """There is one writer: the next starts when the last is dead; the rings keep what comes."""
    service = fleet.publisher
    predecessor = service.vacate()
    if predecessor is not None:
        fleet.tell_to_stop(predecessor, GRACE_S)
        yield lambda: not predecessor.alive
    service.start()
    yield from _serving(fleet, service, "the publisher")


def _start_slot(fleet: Fleet) -> Generator[Condition, None, None]:
    slot = fleet.add_slot()
    try:
        yield from _serving(fleet, slot.service, slot.service.name)
    except (ChildError, GeneratorExit):
        fleet.remove_slot(0.0)
        raise


def _serving(fleet: Fleet, service: Service, what: str) -> Generator[Condition, None, None]:
    """Waits for a service to serve; its own first death is the end of the patience."""
    deaths = service.restarts.total
    yield lambda: service.serving or service.restarts.total > deaths
    if not service.serving:
        raise ChildError(f"{what}: it {service.failure}", remedy="see the log", code="start_failed")


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Names the service in an error about starting it."""
    try:
        yield
    except (TidegateError, OSError) as error:
        raise ChildError(
            f"{what}: no successor could be started ({error})",
            remedy="the predecessor serves on; see the log",
            code="successor_failed",
        ) from error
