"""The log against a bare ring, between two processes on two cores.

The contest itself is `shm/ring/examples/ring_bench.rs`: both rings in one program, in turn. Here it
is run once for each round, so that every value is kept.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import TidegateError
from ops.bench.result import Goal, Measure, Result
from ops.load.programs import ROOT

RUN_TIMEOUT_S = 300.0
"""One round takes some seconds; the first one may have to wait for the compiler."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    rounds: int = 5
    records: int = 8_000_000
    samples: int = 100_000


QUICK = Size(rounds=1, records=200_000, samples=2_000)


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    rounds: list[dict[str, float]] = []
    for number in range(size.rounds):
        values = _run_once(size)
        rounds.append(values)
        say(
            f"round {number + 1}: log {values['log_records_s'] / 1e6:.1f}, bare ring "
            f"{values['bare_records_s'] / 1e6:.1f}, in batches "
            f"{values['bare_batched_records_s'] / 1e6:.1f} million records/s; "
            f"publish to read {values['log_p50_ns']:.0f} and {values['bare_p50_ns']:.0f} ns"
        )

    def of(key: str, scale: float = 1.0) -> tuple[float, ...]:
        return tuple(values[key] * scale for values in rounds)

    return Result(
        benchmark="ring",
        parameters={
            "record_bytes": 64,
            "batch_records": 32,
            "records_per_run": size.records,
            "latency_samples": size.samples,
        },
        measures=(
            Measure(
                "The log in batches of 32, one way, against a bare ring without checks one by one",
                "x",
                of("one_way_ratio"),
                Goal("at least", 0.9),
            ),
            Measure(
                "— against a bare ring in batches of 32",
                "x",
                of("one_way_batched_ratio"),
            ),
            Measure("— the log, batches of 32", "M records/s", of("log_records_s", 1e-6)),
            Measure("— bare ring, one by one", "M records/s", of("bare_records_s", 1e-6)),
            Measure(
                "— bare ring, batches of 32", "M records/s", of("bare_batched_records_s", 1e-6)
            ),
            Measure(
                "Publish to read, median, spinning reader, against the bare ring",
                "x",
                of("latency_ratio"),
                Goal("at most", 1.5),
            ),
            Measure("— the log", "ns", of("log_p50_ns")),
            Measure("— bare ring", "ns", of("bare_p50_ns")),
        ),
    )


def _run_once(size: Size) -> dict[str, float]:
    cargo = ["cargo", "run", "--release", "--locked", "--quiet", "--package", "tidegate-ring"]
    options = ["--json", "--runs", "1", "--records", size.records, "--samples", size.samples]
    command = [*cargo, "--example", "ring_bench", "--", *map(str, options)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=RUN_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise TidegateError(
            f"the ring benchmark did not end well ({error})",
            remedy="it needs a checkout, a Rust toolchain and two CPUs",
            code="bench",
        ) from error
    values: dict[str, float] = json.loads(done.stdout)
    return values
