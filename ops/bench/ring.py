"""The log against a bare ring, between two processes on two cores.

The contest itself is `shm/ring/examples/ring_bench.rs`: both rings in one program, in turn. Here it
is run once for each pair of values, so that every one of them is kept.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import TidegateError
from ops.bench.programs import ROOT
from ops.bench.result import Goal, Measure, Result

RUN_TIMEOUT_S = 300.0
"""One pair takes some seconds; the first one may have to wait for the compiler."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    pairs: int = 5
    records: int = 8_000_000
    samples: int = 100_000


QUICK = Size(pairs=1, records=200_000, samples=2_000)


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    pairs: list[dict[str, float]] = []
    for number in range(size.pairs):
        pair = _run_once(size)
        pairs.append(pair)
        say(
            f"pair {number + 1}: log {pair['log_records_s'] / 1e6:.1f}, "
            f"bare {pair['bare_records_s'] / 1e6:.1f} million records/s; "
            f"publish to read {pair['log_p50_ns']:.0f} and {pair['bare_p50_ns']:.0f} ns"
        )

    def values(key: str, scale: float = 1.0) -> tuple[float, ...]:
        return tuple(pair[key] * scale for pair in pairs)

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
                "The log, one way between two processes, against a bare ring without checks",
                "x",
                values("throughput_ratio"),
                Goal("at least", 0.9),
            ),
            Measure("— the log, 64-byte records, million/s", "", values("log_records_s", 1e-6)),
            Measure("— bare ring, million/s", "", values("bare_records_s", 1e-6)),
            Measure(
                "Publish to read, median, spinning reader, against the bare ring",
                "x",
                values("latency_ratio"),
                Goal("at most", 1.5),
            ),
            Measure("— the log", "ns", values("log_p50_ns")),
            Measure("— bare ring", "ns", values("bare_p50_ns")),
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
    pair: dict[str, float] = json.loads(done.stdout)
    return pair
