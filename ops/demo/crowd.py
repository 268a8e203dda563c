"""The subscriber processes, seen from the parent: who subscribes to what, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from gateway.errors import TidegateError
from ops.demo import flights
from ops.demo.board import Board
from ops.demo.gateway import Gateway
from ops.demo.tally import Counts

PROCESSES = 2
CONNECT_TIMEOUT_S = 90.0
REPORT_TIMEOUT_S = 60.0
HOME_AIRPORTS = ("EWR", "JFK", "LGA")


@dataclass(frozen=True, slots=True)
class Size:
    """How many subscribers there are, by transport."""

    websocket: int
    tcp: int

    @property
    def total(self) -> int:
        return self.websocket + self.tcp


class Crowd:
    """All subscribers: what they saw so far, and at the end."""

    def __init__(
        self, processes: list[asyncio.subprocess.Process], size: Size, board: Board
    ) -> None:
        self.size = size
        self._processes = processes
        self._board = board
        self._counts = [Counts() for _ in processes]
        self._reports: dict[int, dict[str, Any]] = {}
        self._readers = [asyncio.create_task(self._read(index)) for index in range(len(processes))]

    @property
    def counts(self) -> Counts:
        total = Counts()
        for counts in self._counts:
            total.add(counts)
        return total

    async def connected(self) -> None:
        """Returns when all subscribers are connected. Raises TidegateError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                while self.counts.connected < self.size.total:
                    self._check()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise TidegateError(
                f"only {self.counts.connected} of {self.size.total} subscribers are connected after"
                f" {CONNECT_TIMEOUT_S:g} s",
                code="not_connected",
            ) from None

    async def report(self, tops: dict[str, int]) -> list[dict[str, Any]]:
        """What each process reports once everything up to `tops` came. Raises TidegateError."""
        for process in self._processes:
            assert process.stdin is not None
            # Of one that is dead its end of the pipe tells; `_check` says so below.
            with contextlib.suppress(ConnectionError):
                process.stdin.write(json.dumps(tops).encode() + b"\n")
                await process.stdin.drain()
        try:
            await asyncio.wait_for(asyncio.gather(*self._readers), REPORT_TIMEOUT_S)
        except TimeoutError:
            raise TidegateError(
                f"the subscribers did not report within {REPORT_TIMEOUT_S:g} s", code="no_report"
            ) from None
        self._check()
        return list(self._reports.values())

    async def _read(self, index: int) -> None:
        stdout = self._processes[index].stdout
        assert stdout is not None
        async for line in stdout:
            message = json.loads(line)
            if "counts" in message:
                self._counts[index] = Counts(**message["counts"])
                self._board.counted(self.counts)
            else:
                self._reports[index] = message["report"]
                return

    def _check(self) -> None:
        for index, process in enumerate(self._processes):
            if process.returncode is not None and index not in self._reports:
                raise TidegateError(
                    f"subscriber process {index} ended with status {process.returncode}",
                    code="subscribers",
                )


def plans(size: Size, gateway: Gateway, movements: list[flights.Movement]) -> list[dict[str, Any]]:
    """Who subscribes to what: a passenger an airport, a planner a carrier, some of them both."""
    chance = random.Random(flights.DAY)
    away = sorted({movement.destination for movement in movements})
    carriers = sorted({movement.carrier for movement in movements})

    def channels() -> list[str]:
        airport = chance.choice(HOME_AIRPORTS if chance.random() < 0.7 else away)
        carrier = chance.choice(carriers)
        both = [f"airport:{airport}", f"carrier:{carrier}"]
        return chance.choices((both[:1], both[1:], both), weights=(6, 3, 1))[0]

    websocket = [channels() for _ in range(size.websocket)]
    tcp = [channels() for _ in range(size.tcp)]
    host, _, port = gateway.tcp.rpartition(":")
    return [
        {
            "websocket_url": f"ws://{gateway.http}/connection/uni_websocket",
            "tcp_host": host.strip("[]"),
            "tcp_port": int(port),
            "websocket": websocket[index::PROCESSES],
            "tcp": tcp[index::PROCESSES],
        }
        for index in range(PROCESSES)
    ]


@contextlib.asynccontextmanager
async def subscribers(
    size: Size, gateway: Gateway, movements: list[flights.Movement], board: Board
) -> AsyncIterator[Crowd]:
    """The subscriber processes for the length of the block."""
    processes: list[asyncio.subprocess.Process] = []
    try:
        for plan in plans(size, gateway, movements):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ops.demo.subscribers"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 20,
            )
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps(plan).encode() + b"\n")
        yield Crowd(processes, size, board)
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
