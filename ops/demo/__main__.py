"""`make demo`: the whole path on real input, checked, bounded in time; exit 0 if nothing was lost.

A gateway and two processes of subscribers are started; a day of flights is replayed through the
HTTP API into a channel per airport and per carrier; half-way all workers are replaced. Each
subscriber checks order, gaps and repeats by offset, and recovers what it missed while it had no
connection.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import click
from cent import AsyncClient

from gateway.errors import TidegateError
from ops.demo import flights
from ops.demo.board import Board
from ops.demo.crowd import Size, subscribers
from ops.demo.gateway import Gateway, running
from ops.demo.replay import Replay
from ops.demo.tally import Counts, Latencies
from ops.output import Exit, Output, table

REPLAY_S = 60.0
"""Default; the day takes about 23 hours, so that is a speed-up of some 1,400."""
DEADLINE_S = 180.0
"""For everything beside the replay; afterwards it is a failure, and all is taken down."""


async def reload_half_way(gateway: Gateway, replay_s: float, board: Board) -> float:
    """Replaces all workers; returns how long that took, in seconds."""
    await asyncio.sleep(replay_s / 2)
    board.phase("replacing all workers, one after the other")
    start = time.monotonic()
    await gateway.call("reload")
    took_s = time.monotonic() - start
    board.phase(f"all workers replaced in {took_s:.1f} s")
    return took_s


async def demonstrate(size: Size, replay_s: float, output: Output) -> Exit:
    movements = flights.movements()
    with Board(flights.carriers(), len(movements)) as board:
        board.phase("starting a gateway")
        async with running() as gateway:
            board.phase(f"gateway serves: clients {gateway.http} and {gateway.tcp}")
            async with subscribers(size, gateway, movements, board) as crowd:
                await crowd.connected()
                board.phase(f"{size.total:,} subscribers connected; the day begins")
                api = AsyncClient(f"http://{gateway.api}/api", api_key=gateway.api_key)
                try:
                    replay = Replay(api, movements, replay_s)
                    _, reload_s = await asyncio.gather(
                        replay.run(board.moved), reload_half_way(gateway, replay_s, board)
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
    # Offsets of a channel are contiguous, so they tell if an attempt that failed had succeeded.
    published_twice = sum(replay.tops.values()) - replay.published
    rows = [
        ("subscribers", f"{counts.subscribers:,}"),
        ("published", f"{replay.published:,}"),
        ("published twice", f"{published_twice:,}"),
        ("expected", f"{expected:,}"),
        ("delivered", f"{counts.delivered:,}"),
        ("  of them recovered (WebSocket)", f"{counts.recovered:,}"),
        ("lost", f"{lost:,}"),
        ("repeated", f"{counts.repeated:,}"),
        ("reconnects (WebSocket)", f"{counts.reconnects:,}"),
        ("latency p50", f"{latencies.percentile_ms(50):.1f} ms"),
        ("latency p99", f"{latencies.percentile_ms(99):.1f} ms"),
        ("rolling reload", f"{reload_s:.1f} s"),
    ]
    output.show(table(("FROM PUBLISH TO RECEIPT", ""), rows))
    wrong = lost + counts.repeated + published_twice + abs(expected - counts.delivered)
    return Exit.NO if wrong else Exit.OK


async def bounded(size: Size, replay_s: float, output: Output) -> Exit:
    deadline_s = replay_s + DEADLINE_S
    _end_by_signals()
    try:
        async with asyncio.timeout(deadline_s):
            return await demonstrate(size, replay_s, output)
    except TimeoutError:
        output.note(f"the demonstration did not end within {deadline_s:g} s")
    except TidegateError as error:
        output.error(error)
    return Exit.ERROR


def _end_by_signals() -> None:
    """A closed terminal and a kill take everything down, as ^C does."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


@click.command()
@click.option("--websocket", default=2000, show_default=True, help="WebSocket subscribers.")
@click.option("--tcp", default=1000, show_default=True, help="TCP subscribers.")
@click.option(
    "--seconds", default=REPLAY_S, show_default=True, help="Time for which the day is replayed."
)
def main(websocket: int, tcp: int, seconds: float) -> None:
    """Replay a day of flights to many subscribers, with a rolling reload half-way."""
    try:
        status = asyncio.run(bounded(Size(websocket, tcp), seconds, Output(as_json=False)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = Exit.INTERRUPTED
    raise SystemExit(int(status))


if __name__ == "__main__":
    main()
