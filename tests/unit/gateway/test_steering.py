"""Programs that choose a listener: as they are written, and as the kernel runs them."""

from __future__ import annotations

import os
import select
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from gateway import steering
from gateway.steering import Instruction
from gateway.topology import Node, place

CPUS = 8


def chosen(program: Sequence[Instruction], cpu: int, random: int) -> int:
    """What the program returns, by the rules of linux/filter.h."""
    accumulator, at = 0, 0
    while True:
        code, true, false, value = program[at]
        at += 1
        match code:
            case steering.LOAD:
                accumulator = {steering.CPU: cpu, steering.RANDOM: random}[value]
            case steering.MODULO:
                accumulator %= value
            case steering.MULTIPLY:
                accumulator *= value
            case steering.ADD:
                accumulator += value
            case steering.JUMP:
                at += value
            case steering.JUMP_IF_AT_LEAST:
                at += true if accumulator >= value else false
            case steering.JUMP_IF_ABOVE:
                at += true if accumulator > value else false
            case steering.RETURN:
                return value
            case steering.RETURN_ACCUMULATOR:
                return accumulator
            case _:
                raise AssertionError(f"unknown code {code:#x}")


def choices(program: Sequence[Instruction], cpu: int) -> set[int]:
    return {chosen(program, cpu, random) for random in range(1000)}


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("slots", [1, 2, 7, 8, 54, 128])
@pytest.mark.parametrize("pin", ["cpu", "node"])
def test_a_cpu_gets_every_slot_that_may_run_there_and_no_other(
    nodes: int, slots: int, pin: str
) -> None:
    machine = [Node(n, tuple(range(n * CPUS, (n + 1) * CPUS)), True) for n in range(nodes)]
    cpus = [place(slot, machine, pin).cpus for slot in range(slots)]  # type: ignore[arg-type]
    program = steering.by_cpu(cpus)
    for cpu in range(nodes * CPUS):
        wanted = {slot for slot in range(slots) if cpu in cpus[slot]}
        assert choices(program, cpu) == (wanted or set(range(slots))), f"CPU {cpu}"
    # One that came online later.
    assert choices(program, 9999) == set(range(slots))


def test_the_largest_machine_has_a_program_that_the_kernel_takes() -> None:
    cpus = [(slot * 7 % 512,) for slot in range(128)]
    assert len(steering.by_cpu(cpus)) <= steering.INSTRUCTIONS_MAX


def test_slots_that_are_not_evenly_spaced_are_refused() -> None:
    with pytest.raises(ValueError, match="evenly"):
        steering.by_cpu([(0,), (0,), (1,), (0,)])


# ---- the kernel


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """Four that share a port."""
    with ExitStack() as stack:
        shared: list[socket.socket] = []
        for _ in range(4):
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(shared[0].getsockname() if shared else ("127.0.0.1", 0))
            listener.listen(64)
            shared.append(listener)
        yield shared


def arrivals(listeners: Sequence[socket.socket], connections: int) -> Counter[int]:
    """How many connections came to each of them."""
    counts: Counter[int] = Counter()
    for _ in range(connections):
        with socket.create_connection(listeners[0].getsockname()):
            (ready, *_), _, _ = select.select(listeners, [], [], 60)
            ready.accept()[0].close()
            counts[listeners.index(ready)] += 1
    return counts


def test_the_kernel_gives_connections_to_the_slots_of_the_cpu_that_receives(
    listeners: list[socket.socket],
) -> None:
    allowed = os.sched_getaffinity(0)
    first, *others = sorted(allowed)
    # Slots 1 and 3 run where we do not.
    elsewhere = others[0] if others else first + 1
    steering.attach(listeners[0], steering.by_cpu([(first,), (elsewhere,)] * 2))
    try:
        os.sched_setaffinity(0, {first})
        assert set(arrivals(listeners, 40)) == {0, 2}
        if others:
            os.sched_setaffinity(0, {elsewhere})
            assert set(arrivals(listeners, 40)) == {1, 3}
    finally:
        os.sched_setaffinity(0, allowed)


def test_handshakes_can_be_kept_from_the_last_slots_and_let_to_them_again(
    listeners: list[socket.socket],
) -> None:
    steering.attach(listeners[0], steering.at_random(2))
    assert set(arrivals(listeners, 60)) == {0, 1}
    steering.detach(listeners[0])
    assert set(arrivals(listeners, 200)) == {0, 1, 2, 3}


def test_to_detach_where_nothing_is_attached_is_no_error(listeners: list[socket.socket]) -> None:
    steering.detach(listeners[0])
