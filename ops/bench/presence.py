"""Who is in a large channel: how long it takes to be told how many, beside a small one.

Statistics of a channel are kept, not counted: their call must not take longer the more there are.
"""

from __future__ import annotations

import json
import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import TidegateError
from ops.bench.caller import Caller
from ops.bench.result import Goal, Measure, Result
from ops.bench.subject import Subject
from ops.load.crowd import Crowd

NAMESPACE = {
    "name": "crowd",
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "presence": True,
}
SMALL, LARGE = "crowd:small", "crowd:large"
CONNECT_TIMEOUT_S = 120.0
MEMBERS_PER_WORKER = 14_000
"""As many as a worker's descriptors hold, even where they lie unevenly."""
SETTINGS = {
    "channel.namespaces": json.dumps([NAMESPACE]),
    "presence.memory_bytes": str(64 << 20),
    # What may wait for each client decides how many there may be: nothing waits here.
    "limits.queue_soft_bytes": "16384",
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    members: int = 100_000
    few: int = 100
    calls: int = 400
    runs: int = 5


QUICK = Size(members=2_000, calls=50, runs=1)


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    key = secrets.token_hex(16)
    workers = max(2, -(-size.members // MEMBERS_PER_WORKER))
    small: list[float] = []
    large: list[float] = []
    with (
        Subject(workers=workers, settings=SETTINGS | {"api.key": key}) as subject,
        Caller(subject.api_address, key, 1) as caller,
        Crowd(address=subject.address, connections=size.few, channel=SMALL) as few,
        Crowd(address=subject.address, connections=size.members, channel=LARGE) as many,
    ):
        for crowd in (few, many):
            seen = crowd.wait_settled(CONNECT_TIMEOUT_S, lambda _: None)
            if seen.sums["connected"] != crowd.connections:
                raise TidegateError(f"not all members came: {dict(seen.failures)}", code="bench")
        requests = [_request(caller, LARGE, size.members), _request(caller, SMALL, size.few)]
        for number in range(size.runs):
            for found, us in zip((large, small), _call_us(caller, requests, size), strict=True):
                found.append(us)
            say(f"run {number + 1}: {large[-1]:.0f} µs of {size.members:,}, {small[-1]:.0f} of few")
    return _result(small, large, size, workers)


def _request(caller: Caller, channel: str, members: int) -> bytes:
    """To be told the statistics of a channel. Raises TidegateError where they are wrong."""
    request = caller.request("presence_stats", json.dumps({"channel": channel}).encode())
    answer = caller.ask(request)
    if answer["num_clients"] != members:
        raise TidegateError(f"{answer} instead of {members:,} members", code="bench")
    return request


def _call_us(caller: Caller, requests: list[bytes], size: Size) -> list[float]:
    """Of one call of each request, at the median. In turns, so that both meet the same weather."""
    times_us: list[list[float]] = [[] for _ in requests]
    for _ in range(size.calls):
        for times, request in zip(times_us, requests, strict=True):
            began_s = time.monotonic()
            caller.call(request, 1)
            times.append((time.monotonic() - began_s) * 1e6)
    return [statistics.median(each) for each in times_us]


def _result(small: list[float], large: list[float], size: Size, workers: int) -> Result:
    return Result(
        benchmark="presence",
        parameters={
            "members": size.members,
            "few_members": size.few,
            "calls": size.calls,
            "workers": workers,
        },
        measures=(
            Measure(
                f"A call of presence_stats with {size.members:,} members, against {size.few}",
                "x",
                tuple(one / other for one, other in zip(large, small, strict=True)),
                Goal("at most", 1.5),
            ),
            Measure(f"— with {size.members:,}, over HTTP", "µs", tuple(large)),
            Measure(f"— with {size.few}", "µs", tuple(small)),
        ),
    )
