"""Publishing through shared memory: from one Python process, and from as many as there are CPUs.

There are no subscribers: what is measured is the way into the log. Producers do not wait for
answers; each one's last message is answered, and with it all before are in the log.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from gateway.errors import TidegateError
from gateway.producer import Producer
from ops.bench.result import Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds
from ops.load.stream import PAYLOAD_BYTES, payload

CHANNEL = "public:produce"
WORKERS = 2
ANSWER_TIMEOUT_S = 60.0
"""Of a producer: from its start until it is ready, and for all of its messages."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    messages: int = 200_000
    """Of each producer."""
    runs: int = 5


QUICK = Size(messages=20_000, runs=1)


@dataclass(frozen=True, slots=True)
class Span:
    """What one producer did: seconds of CLOCK_MONOTONIC, and of its own CPU."""

    began_s: float
    ended_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """What some producers did together."""

    per_s: float
    producer_us: float
    """CPU of a producer, per message."""
    gateway_us: float


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    several = os.cpu_count() or 1
    rounds: dict[int, list[Round]] = {count: [] for count in dict.fromkeys((1, several))}
    with (
        Subject(workers=WORKERS) as subject,
        _producers(several, subject.control_path) as producers,
    ):
        for number in range(size.runs):
            for count, done in rounds.items():
                done.append(_round(subject, producers[:count], size.messages))
            shown = (f"{done[-1].per_s:,.0f}/s from {count}" for count, done in rounds.items())
            say(f"run {number + 1}: {', '.join(shown)}")
    return _result(rounds, size)


def _round(subject: Subject, producers: list[Connection], messages: int) -> Round:
    before_s = cpu_seconds(subject.pids)
    for producer in producers:
        producer.send(messages)
    spans: list[Span] = [_answer(producer) for producer in producers]
    spent_s = cpu_seconds(subject.pids) - before_s
    lasted_s = max(each.ended_s for each in spans) - min(each.began_s for each in spans)
    whole = messages * len(producers)
    own_s = sum(each.cpu_s for each in spans)
    return Round(whole / lasted_s, own_s * 1e6 / whole, spent_s * 1e6 / whole)


@contextmanager
def _producers(count: int, control_path: Path) -> Iterator[list[Connection]]:
    """Processes that publish as many messages as they are told to; by pipe."""
    # Not forked: a child would have the descriptors of everything that is open here.
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for number in range(count):
            ours, theirs = context.Pipe()
            arguments = (control_path, f"{CHANNEL}-{number}", theirs)
            process = context.Process(target=_produce, args=arguments, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            _answer(pipe)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _answer(pipe: Connection) -> Span:
    if not pipe.poll(ANSWER_TIMEOUT_S):
        raise TidegateError("a producer does not answer", code="bench")
    try:
        span: Span = pipe.recv()
    except EOFError:
        raise TidegateError("a producer failed", code="bench") from None
    return span


def _produce(control_path: Path, channel: str, pipe: Connection) -> None:
    """The life of one producer: until its pipe ends."""
    data = payload()
    with Producer(control_path) as producer:
        producer.publish(channel, data)
        pipe.send(Span(0.0, 0.0, 0.0))
        while True:
            try:
                messages = pipe.recv()
            except EOFError:
                return
            began_s, cpu_s = time.monotonic(), time.process_time()
            for _ in range(messages - 1):
                producer.publish_nowait(channel, data)
            producer.publish(channel, data)
            pipe.send(Span(began_s, time.monotonic(), time.process_time() - cpu_s))


def _result(rounds: dict[int, list[Round]], size: Size) -> Result:
    measures: list[Measure] = []
    for count, done in rounds.items():
        who = "one Python process" if count == 1 else f"{count} processes"
        measures += [
            Measure(
                f"{'—' if measures else 'Publishes through shared memory'} from {who}",
                "/s",
                tuple(each.per_s for each in done),
            ),
            Measure(
                "— CPU per message of the producer, most of it Python's own",
                "µs",
                tuple(each.producer_us for each in done),
            ),
            Measure(
                "— CPU per message of the gateway, all its processes",
                "µs",
                tuple(each.gateway_us for each in done),
            ),
        ]
    return Result(
        benchmark="produce",
        parameters={
            "messages": size.messages,
            "producers": max(rounds),
            "workers": WORKERS,
            "payload_bytes": PAYLOAD_BYTES,
        },
        measures=tuple(measures),
    )
