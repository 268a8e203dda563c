"""Many swarms as one crowd: it splits the clients, passes commands on, and adds up the answers."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from gateway.errors import TidegateError
from ops.load.agent import Agent
from ops.load.latencies import Latencies
from ops.load.programs import STOP_TIMEOUT_S, Swarm, build, clients_max

CLIENTS_PER_SWARM = 18_000
"""At most, also where descriptors would allow more: a swarm has one thread."""
CLIENTS_PER_SWARM_MIN = 1_000
"""Fewer are not worth a process of their own, even where a CPU is free for it."""
HANDSHAKES_MAX = 2048
"""In flight, of the whole crowd: below the backlog of a single worker, so that no SYN is lost."""
RUN_S_MAX = 86_400.0
"""A swarm ends with its conductor's connection; this is for when its end is not told."""
POLL_S = 0.2
ANSWER_TIMEOUT_S = 60.0
"""Of a swarm with a whole burst to take before it reads its commands."""

FAULTS = ("repeats", "gaps", "unrecovered", "foreign")
"""Counts that are 0 where the gateway keeps its promises."""
_SUMS = (
    "connected",
    "pending",
    "absent",
    "deliveries",
    "recovered",
    *FAULTS,
    "undated",
    "pings",
    "reconnects",
    "churned",
    "bytes_received",
)
_TALLIES = ("closes", "failures", "misdeeds")

OnProgress = Callable[["Seen"], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """What all clients together saw since the last reset."""

    sums: Counter[str]
    """By the names of `Report` in `swarm/src/tally.rs`."""
    closes: Counter[str]
    failures: Counter[str]
    misdeeds: Counter[str]
    live: Latencies
    recovered: Latencies
    returned: Latencies
    """From attempts to come back to being open again."""

    @classmethod
    def of(cls, reports: Sequence[dict[str, Any]]) -> Seen:
        tallies = {name: Counter[str]() for name in _TALLIES}
        for report in reports:
            for name, tally in tallies.items():
                tally.update(report[name])
        return cls(
            Counter({name: sum(report[name] for report in reports) for name in _SUMS}),
            **tallies,
            live=Latencies(report["latency_live"] for report in reports),
            recovered=Latencies(report["latency_recovered"] for report in reports),
            returned=Latencies(report["latency_returned"] for report in reports),
        )

    @property
    def faults(self) -> dict[str, Any]:
        """What must not be, by name; empty where all is well."""
        counts = {name: self.sums[name] for name in (*FAULTS, "absent")}
        tallies = {"closes": dict(self.closes), "failures": dict(self.failures)}
        return {name: found for name, found in (counts | tallies).items() if found}

    def with_faults_of(self, earlier: Seen) -> Seen:
        """What was wrong before a reset stays wrong; who was absent then is not held against."""
        return replace(
            self,
            sums=self.sums + Counter({name: earlier.sums[name] for name in FAULTS}),
            closes=self.closes + earlier.closes,
            failures=self.failures + earlier.failures,
        )


class Crowd:
    """Clients in as many processes as they take, here and at agents.

    The keys of `plan` are those of `swarm/src/plan.rs`, for the whole crowd. `processes`: in all;
    0: as many as descriptors ask for, and CPUs can use. Starts to connect at once.
    """

    def __init__(
        self,
        *,
        address: str,
        connections: int,
        agents: Sequence[Agent] = (),
        processes: int = 0,
        run_s_max: float = RUN_S_MAX,
        handshakes_max: int = HANDSHAKES_MAX,
        connects_per_s: float = 0.0,
        **plan: Any,
    ) -> None:
        self.connections = connections
        shares = split(connections, processes or _processes(connections, len(agents)))
        self.swarms: list[Swarm] = []
        build()
        self.began_s = time.monotonic()
        """When the first client could begin to connect, by time.monotonic."""
        first = 0
        try:
            for number, share in enumerate(shares):
                agent = agents[number % len(agents)] if agents else None
                swarm = Swarm(
                    address=address,
                    connections=share,
                    run_s_max=run_s_max,
                    at=agent.connect(share) if agent else None,
                    first=first,
                    handshakes_max=max(1, handshakes_max // len(shares)),
                    connects_per_s=connects_per_s * share / connections,
                    **plan,
                )
                self.swarms.append(swarm)
                first += share
                if agent is not None:
                    _align(swarm)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Of the swarms on this machine."""
        return [swarm.pid for swarm in self.swarms if swarm.pid]

    def wait_settled(self, timeout_s: float, on_progress: OnProgress) -> Seen:
        """Return when every client is connected, or has failed for good. Raises TidegateError."""
        return self._wait(lambda seen: not seen.sums["pending"], "connect", timeout_s, on_progress)

    def wait_delivered(
        self, deliveries: int, timeout_s: float, on_progress: OnProgress = lambda _: None
    ) -> Seen:
        """Return when so many are counted; after the time, or where `on_progress` raises Late, all
        the same.
        """
        with contextlib.suppress(Late):
            return self._wait(
                lambda seen: seen.sums["deliveries"] >= deliveries,
                "receive",
                timeout_s,
                on_progress,
            )
        return self.seen()

    def await_share(
        self, share: Callable[[int], int], act: Callable[[], object], timeout_s: float
    ) -> None:
        """Does `act`, and returns when all have received what it sent.

        `share` tells how many deliveries that is among the first so many clients. Raises
        TidegateError where they do not come in time.
        """
        first = 0
        for swarm in self.swarms:
            deliveries = share(first + swarm.connections) - share(first)
            swarm.announce_deliveries(deliveries, timeout_s)
            first += swarm.connections
        act()
        for swarm in self.swarms:
            swarm.wait_delivered(timeout_s)

    def seen(self) -> Seen:
        return Seen.of(self._ask("report", "report"))

    def reset(self) -> Seen:
        """Count from zero; returns when everybody does, with what was seen until then."""
        for swarm in self.swarms:
            swarm.begin_reset()
        return Seen.of([swarm.expect("report", ANSWER_TIMEOUT_S) for swarm in self.swarms])

    def subscribers(self) -> Counter[str]:
        """Faithful clients of each channel, as far as they know their position in it."""
        counts: Counter[str] = Counter()
        for answer in self._ask("positions", "positions"):
            for channel, stand in answer["channels"].items():
                counts[channel] += stand["subscribers"]
        return counts

    def close(self) -> None:
        """End all swarms; each says good-bye for its clients."""
        for swarm in self.swarms:
            swarm.end()
        for swarm in self.swarms:
            swarm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, command: str, event: str) -> list[dict[str, Any]]:
        for swarm in self.swarms:
            swarm.command(command)
        return [swarm.expect(event, ANSWER_TIMEOUT_S) for swarm in self.swarms]

    def _wait(
        self, done: Callable[[Seen], bool], what: str, timeout_s: float, on_progress: OnProgress
    ) -> Seen:
        pause = threading.Event()
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self.seen()
            on_progress(seen)
            if done(seen):
                return seen
            if time.monotonic() >= deadline:
                raise Late(f"not all clients did {what} within {timeout_s:g} s: {seen.faults}")
            pause.wait(POLL_S)


class Late(TidegateError):
    """Clients did not get as far as they should in the time they had."""

    code = "late"


def split(connections: int, processes: int) -> list[int]:
    """Even shares of the clients, none of them empty."""
    processes = min(processes, connections)
    return [
        connections * (number + 1) // processes - connections * number // processes
        for number in range(processes)
    ]


def _processes(connections: int, agents: int) -> int:
    # An agent tells by itself where its descriptors are too few.
    most = CLIENTS_PER_SWARM if agents else min(CLIENTS_PER_SWARM, clients_max())
    useful = min((os.cpu_count() or 1) * max(1, agents), connections // CLIENTS_PER_SWARM_MIN)
    return max(1, useful, agents, -(-connections // most))


def _align(swarm: Swarm) -> None:
    """Tell the swarm what our clock, by which messages are stamped, is ahead of its machine's.

    As NTP does: its clock was read in the middle of the shortest of a few round trips.
    """
    best_ns: tuple[int, int] | None = None
    for _ in range(8):
        asked_ns = time.monotonic_ns()
        swarm.command("clock")
        theirs_ns = swarm.expect("clock", STOP_TIMEOUT_S)["monotonic_ns"]
        answered_ns = time.monotonic_ns()
        offset_ns = (asked_ns + answered_ns) // 2 - theirs_ns
        best_ns = min(best_ns or (1 << 62, 0), (answered_ns - asked_ns, offset_ns))
    assert best_ns
    swarm.command("align", offset_ns=best_ns[1])
