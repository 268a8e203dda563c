"""How a gateway ends: who is told first, who waits for whom, and what bounds it.

The API first (nothing new comes in), then the workers (what came in goes out, and each connection
is closed with its reason), then the publisher (it takes what the others still handed over).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from gateway.children import Child
from gateway.fleet import GRACE_S, Fleet
from gateway.processes import Worker

FAST_STOP_S = 2.0
"""Enough to send each connection its close frame; too short for clients to answer it."""
API_STOP_MIN_S = 1.0
API_STOP_MAX_S = 6.0
"""gunicorn gives running requests 5 s; they get less where that is needed to drain the workers."""
WORKERS_MARGIN_S = 2.0
"""What the workers need beside stop.spread_s, for the last close frames and their own end."""
PROGRESS_INTERVAL_S = 0.5

Tell = Callable[[str, int, int, float], None]
"""Phase, done, total, seconds that remain at most."""


def graceful_stop(fleet: Fleet, tell: Tell) -> Iterator[None]:
    """Yields until all processes are dead; at the latest after stop.timeout_s it kills them."""
    stop = fleet.runtime.config.stop
    deadline = time.monotonic() + stop.timeout_s
    _hold_back_restarts(fleet)
    if (api := fleet.api.retire()) is not None:
        left_s = stop.timeout_s - stop.spread_s - WORKERS_MARGIN_S
        fleet.tell_to_stop(api, min(API_STOP_MAX_S, max(API_STOP_MIN_S, left_s)))
    yield from _until_dead(fleet.api.children, "api", tell, deadline)
    connections = fleet.connections()
    for _ in list(fleet.slots):
        fleet.remove_slot(stop.spread_s)
    workers = [child for child in fleet.children if isinstance(child, Worker)]
    told_at = 0.0
    while any(worker.alive for worker in workers) and time.monotonic() < deadline:
        if time.monotonic() - told_at >= PROGRESS_INTERVAL_S:
            told_at = time.monotonic()
            left = min(connections, fleet.connections())
            tell("connections", connections - left, connections, deadline - told_at + GRACE_S)
        yield
    yield from _finish(fleet, tell, deadline)


def fast_stop(fleet: Fleet, tell: Tell) -> Iterator[None]:
    """Yields until all processes are dead: everybody is told at once and has FAST_STOP_S."""
    deadline = time.monotonic() + FAST_STOP_S
    _hold_back_restarts(fleet)
    others = [child for child in fleet.children if child is not fleet.publisher.current]
    for service in (fleet.api, *(slot.service for slot in fleet.slots)):
        service.retire()
    for child in others:
        fleet.tell_to_stop(child, FAST_STOP_S)
    yield from _until_dead(others, "processes", tell, deadline)
    yield from _finish(fleet, tell, time.monotonic() + FAST_STOP_S)


def _hold_back_restarts(fleet: Fleet) -> None:
    """From now on a death is an end; the publisher alone is still replaced while others drain."""
    for service in (fleet.api, *(slot.service for slot in fleet.slots)):
        service.stopped = True


def _finish(fleet: Fleet, tell: Tell, deadline: float) -> Iterator[None]:
    """The publisher's end, once nobody publishes any more; then whatever is left is killed."""
    for child in fleet.children:
        if isinstance(child, Worker):
            child.kill()
    if (publisher := fleet.publisher.retire()) is not None:
        fleet.tell_to_stop(publisher, max(GRACE_S, deadline - time.monotonic()))
    yield from _until_dead(fleet.children, "publisher", tell, deadline + GRACE_S)
    for child in fleet.children:
        child.kill()
    while fleet.children:
        yield


def _until_dead(children: list[Child], phase: str, tell: Tell, deadline: float) -> Iterator[None]:
    tell(phase, 0, len(children), max(0.0, deadline - time.monotonic()) + GRACE_S)
    while any(child.alive for child in children) and time.monotonic() < deadline:
        yield
