"""`make demo`: the whole path on real input, checked, bounded in time; exit 0 if nothing was lost.

A gateway and two processes of subscribers are started; a day of flights is replayed through the
HTTP API into a channel per airport and per carrier; half-way all workers are replaced. Each
subscriber checks order, gaps and repeats by offset, and recovers what it missed while it had no
connection.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cent import AsyncClient

from gateway.errors import TidegateError
from ops.demo import flights
from ops.demo.board import Board
from ops.demo.crowd import SUBSCRIBERS, plans, subscribers
from ops.demo.gateway import Gateway, running
from ops.demo.replay import Replay
from ops.demo.tally import Counts, Latencies
from ops.output import Exit, Output, table

REPLAY_S = 60.0
"""The day takes about 23 hours: a speed-up of some 1,400."""
DEADLINE_S = 240.0
"""For everything together; afterwards it is a failure, and all is taken down."""


async def reload_half_way(gateway: Gateway, board: Board) -> float:
    """Replaces all workers; returns how long that took, in seconds."""
    await asyncio.sleep(REPLAY_S / 2)
    board.phase("replacing all workers, one after the other")
    start = time.monotonic()
    await gateway.call("reload")
    took_s = time.monotonic() - start
    board.phase(f"all workers replaced in {took_s:.1f} s; subscribers are coming back")
    return took_s


async def demonstrate(output: Output) -> Exit:
    movements = flights.movements()
    with Board(flights.carriers(), len(movements)) as board:
        board.phase("starting a gateway")
        async with running() as gateway:
            board.phase(f"gateway serves: clients {gateway.http} and {gateway.tcp}")
            async with subscribers(plans(gateway, movements), board) as crowd:
                await crowd.connected()
                board.phase(f"{SUBSCRIBERS:,} subscribers connected; the day begins")
                api = AsyncClient(f"http://{gateway.api}/api", api_key=gateway.api_key)
                try:
                    replay = Replay(api, movements, REPLAY_S)
                    _, reload_s = await asyncio.gather(
                        replay.run(board.moved), reload_half_way(gateway, board)
                    )
                finally:
                    await api.close()
                board.phase("the day is over; waiting for what is under way")
                reports = await crowd.report(replay.tops)
    return summarize(output, replay, reports, reload_s)


def summarize(
    output: Output, replay: Replay, reports: list[dict[str, Any]], reload_s: float
) -> Exit:
    counts, latencies = Counts(), Latencies()
    for report in reports:
        counts.add(Counts(**report["counts"]))
        buckets = {int(bucket): count for bucket, count in report["latencies"].items()}
        latencies.add(Latencies(buckets))
    expected = sum(report["expected"] for report in reports)
    lost = sum(report["lost"] for report in reports)
    rows = [
        ("subscribers", f"{counts.subscribers:,}"),
        ("published", f"{replay.published:,}"),
        ("expected", f"{expected:,}"),
        ("delivered", f"{counts.delivered:,}"),
        ("of them by recovery", f"{counts.recovered:,}"),
        ("lost", f"{lost:,}"),
        ("repeated", f"{counts.repeated:,}"),
        ("reconnects", f"{counts.reconnects:,}"),
        ("latency p50", f"{latencies.percentile_ms(50):.1f} ms"),
        ("latency p99", f"{latencies.percentile_ms(99):.1f} ms"),
        ("rolling reload", f"{reload_s:.1f} s"),
    ]
    output.show(table(("FROM PUBLISH TO RECEIPT", ""), rows))
    whole = lost == 0 and counts.repeated == 0 and counts.delivered == expected
    return Exit.OK if whole else Exit.NO


async def bounded(output: Output) -> Exit:
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await demonstrate(output)
    except TimeoutError:
        output.note(f"the demonstration did not end within {DEADLINE_S:g} s")
    except TidegateError as error:
        output.error(error)
    return Exit.ERROR


def main() -> None:
    output = Output(as_json=False)
    try:
        status = asyncio.run(bounded(output))
    except KeyboardInterrupt:
        status = Exit.INTERRUPTED
    raise SystemExit(int(status))


if __name__ == "__main__":
    main()
