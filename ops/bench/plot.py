"""Distributions of times as pictures: bars for a terminal, lines for a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from gateway.errors import TidegateError
from ops.bench.result import Curve, Result

BAR_COLUMNS = 48
SHOWN = (50.0, 90.0, 99.0, 99.9, 100.0)
"""Percentages that get a bar."""


def bars(curves: Sequence[Curve]) -> list[str]:
    """A line for each percentage of each curve; lengths are logarithms, the same for all curves."""
    times = [ms for curve in curves for percent, ms in curve.points if percent in SHOWN and ms > 0]
    if not times:
        return []
    least, most = math.log10(min(times)) - 0.1, math.log10(max(times))
    lines = []
    for curve in curves:
        lines.append(curve.label)
        for percent, ms in curve.points:
            if percent in SHOWN and ms > 0:
                share = (math.log10(ms) - least) / (most - least)
                bar = "█" * max(1, round(BAR_COLUMNS * share))
                lines.append(f"  {percent:>5g} %  {bar} {ms:,.3g} ms")
    return lines


def draw(result: Result, path: Path) -> None:
    """Writes a PNG. Raises TidegateError where there is nothing to draw, or nothing to draw with.

    The percentages are drawn by how few exceed them, so that the tail has its room.
    """
    if not result.curves:
        raise TidegateError(f"{result.benchmark} has no distribution to draw", code="plot")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TidegateError(
            "--plot needs matplotlib", remedy="pip install tidegate[bench]", code="plot"
        ) from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for curve in result.curves:
        points = [(1 / (1 - percent / 100), ms) for percent, ms in curve.points if percent < 100]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=curve.label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    marks = (0.0, 50.0, 90.0, 99.0, 99.9)
    axes.set_xticks([1 / (1 - percent / 100) for percent in marks], [f"{m:g} %" for m in marks])
    axes.set_xlabel("share of messages")
    axes.set_ylabel("publish to receipt within, ms")
    axes.set_title(f"{result.benchmark}, {result.date}")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise TidegateError(f"{path} cannot be written ({error.strerror})", code="plot") from error
