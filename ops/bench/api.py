"""Publishing through the HTTP API: one message a request, and a hundred.

There are no subscribers: what is measured is the way into the log. The caller is one process on the
same machine, whose CPU is not counted, but has to come from somewhere.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ops.bench.caller import Caller
from ops.bench.result import Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds
from ops.load.stream import PAYLOAD_BYTES, payload

CHANNEL = "public:api"
WORKERS = 2
CONNECTIONS = 8
"""Of the caller: a request under way in each thread of a process of the API's default."""
BATCH = 100
"""Publishes of one request."""
SINGLE, IN_TURN, PARALLEL = "single", "batch in turn", "parallel batch"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    requests: int = 4_000
    batches: int = 200
    runs: int = 5


QUICK = Size(requests=300, batches=20, runs=1)


@dataclass(frozen=True, slots=True)
class Round:
    """Many requests of one kind."""

    per_s: float
    cost_us: float
    """Of the gateway's CPU, for each request."""


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    key = secrets.token_hex(16)
    publish = {"channel": CHANNEL, "data": json.loads(payload())}
    batch = {"commands": [{"publish": publish}] * BATCH}
    rounds: dict[str, list[Round]] = {}
    with (
        Subject(workers=WORKERS, settings={"api.key": key}) as subject,
        Caller(subject.api_address, key, CONNECTIONS) as caller,
    ):
        requests = {
            SINGLE: (caller.request("publish", _json(publish)), size.requests),
            IN_TURN: (caller.request("batch", _json(batch)), size.batches),
            PARALLEL: (caller.request("batch", _json(batch | {"parallel": True})), size.batches),
        }
        caller.call(requests[SINGLE][0], size.requests // 4)  # Threads and allocators warm up.
        for number in range(size.runs):
            for kind, (request, count) in requests.items():
                rounds.setdefault(kind, []).append(_round(subject, caller, request, count))
            shown = (
                f"{kind}: {done[-1].per_s:,.0f} requests/s at {done[-1].cost_us:,.0f} µs CPU"
                for kind, done in rounds.items()
            )
            say(f"run {number + 1}: {'; '.join(shown)}")
    return _result(rounds, size)


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


def _round(subject: Subject, caller: Caller, request: bytes, count: int) -> Round:
    before_s, began_s = cpu_seconds(subject.pids), time.monotonic()
    caller.call(request, count)
    lasted_s, spent_s = time.monotonic() - began_s, cpu_seconds(subject.pids) - before_s
    return Round(count / lasted_s, spent_s * 1e6 / count)


def _result(rounds: dict[str, list[Round]], size: Size) -> Result:
    def batches(kind: str, how: str) -> tuple[Measure, ...]:
        done = rounds[kind]
        return (
            Measure(
                f"— in batches of {BATCH}, {how}, publishes",
                "/s",
                tuple(each.per_s * BATCH for each in done),
            ),
            Measure("— CPU per publish", "µs", tuple(each.cost_us / BATCH for each in done)),
        )

    single = rounds[SINGLE]
    return Result(
        benchmark="api",
        parameters={
            "requests": size.requests,
            "batches": size.batches,
            "publishes_per_batch": BATCH,
            "connections": CONNECTIONS,
            "workers": WORKERS,
            "payload_bytes": PAYLOAD_BYTES,
        },
        measures=(
            Measure(
                f"Publishes through the HTTP API, one a request, {CONNECTIONS} at a time over "
                "connections that are kept",
                "/s",
                tuple(each.per_s for each in single),
            ),
            Measure(
                "— CPU per request, all processes of the gateway",
                "µs",
                tuple(each.cost_us for each in single),
            ),
            *batches(IN_TURN, "one after the other"),
            *batches(PARALLEL, "`parallel`"),
        ),
    )
