"""Which slot gets a new connection: classic BPF programs for the group of a port's listeners.

With SO_REUSEPORT the kernel spreads handshakes over all listeners of a port by a hash. A program
that is attached to the group (SO_ATTACH_REUSEPORT_CBPF, socket(7)) chooses instead: what it returns
is a listener's place in the group, which is the order of listen(2), and so the slot's number. A
place that does not exist falls back to the hash. It decides for handshakes that begin from then on.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import socket
import struct
from collections.abc import Iterator, Sequence

# Not in the module socket: asm-generic/socket.h.
SO_ATTACH_REUSEPORT_CBPF = 51
SO_DETACH_REUSEPORT_BPF = 68

# linux/filter.h: code of each instruction; the accumulator is what they work on.
LOAD = 0x20
MULTIPLY = 0x24
ADD = 0x04
MODULO = 0x94
JUMP = 0x05
JUMP_IF_AT_LEAST = 0x35
JUMP_IF_ABOVE = 0x25
RETURN = 0x06
RETURN_ACCUMULATOR = 0x16
# What LOAD gives at these offsets: the CPU that runs the program, which is the one that received
# the packet, and a random number.
CPU = 0xFFFF_F000 + 36
RANDOM = 0xFFFF_F000 + 56
INSTRUCTIONS_MAX = 4096
"""BPF_MAXINSNS."""

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, value: struct sock_filter."""


def _step(code: int, value: int = 0, true: int = 0, false: int = 0) -> Instruction:
    return code, true, false, value


def at_random(count: int) -> list[Instruction]:
    """Any of the first `count` slots."""
    return _any_of(range(count))


def by_cpu(slots_cpus: Sequence[Sequence[int]]) -> list[Instruction]:
    """A slot that may run on the CPU which received the packet; any slot where none may.

    `slots_cpus` has the CPUs of each slot, by its number; those of a CPU must be evenly spaced, as
    they are where slots go round CPUs (`topology.place`). Raises ValueError otherwise, or where the
    kernel would take no program of that length.
    """
    slots_of: dict[int, list[int]] = {}
    for slot, cpus in enumerate(slots_cpus):
        for cpu in cpus:
            slots_of.setdefault(cpu, []).append(slot)
    # One block for each set of slots, and before them one test for each run of CPUs that share it.
    blocks: dict[range, list[Instruction]] = {}
    runs = []
    for first, last, slots in _runs(slots_of):
        blocks.setdefault(slots, _any_of(slots))
        runs.append((first, last, slots))
    otherwise = at_random(len(slots_cpus))
    starts = dict(
        zip(
            blocks,
            itertools.accumulate((len(block) for block in blocks.values()), initial=0),
            strict=False,
        )
    )
    program = [_step(LOAD, CPU)]
    for number, (first, last, slots) in enumerate(runs):
        to_block = 3 * (len(runs) - number - 1) + len(otherwise) + starts[slots]
        program += [
            _step(JUMP_IF_AT_LEAST, first, true=0, false=2),
            _step(JUMP_IF_ABOVE, last, true=1, false=0),
            _step(JUMP, to_block),
        ]
    program += otherwise
    for block in blocks.values():
        program += block
    if len(program) > INSTRUCTIONS_MAX:
        raise ValueError(f"{len(program)} instructions, the kernel takes {INSTRUCTIONS_MAX}")
    return program


def _any_of(slots: range) -> list[Instruction]:
    if len(slots) == 1:
        return [_step(RETURN, slots[0])]
    scaled = [_step(MULTIPLY, slots.step), _step(ADD, slots.start)]
    return [
        _step(LOAD, RANDOM),
        _step(MODULO, len(slots)),
        *(scaled if slots != range(len(slots)) else ()),
        _step(RETURN_ACCUMULATOR),
    ]


def _runs(slots_of: dict[int, list[int]]) -> Iterator[tuple[int, int, range]]:
    """First and last of CPUs in a row that have the same slots."""
    cpus = sorted(slots_of)
    begin = 0
    for index, cpu in enumerate(cpus):
        following = cpus[index + 1] if index + 1 < len(cpus) else -1
        if following != cpu + 1 or slots_of[following] != slots_of[cpu]:
            yield cpus[begin], cpu, _spaced(slots_of[cpu])
            begin = index + 1


def _spaced(slots: list[int]) -> range:
    step = slots[1] - slots[0] if len(slots) > 1 else 1
    spaced = range(slots[0], slots[-1] + 1, step)
    if list(spaced) != slots:
        raise ValueError(f"slots {slots} of one CPU are not evenly spaced")
    return spaced


def attach(listener: socket.socket, program: Sequence[Instruction]) -> None:
    """From now on the program chooses, for the whole group of the listener. Raises OSError."""
    instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    text = ctypes.create_string_buffer(instructions)
    filter_ = struct.pack("HL", len(program), ctypes.addressof(text))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, filter_)


def detach(listener: socket.socket) -> None:
    """From now on the kernel's hash chooses. Raises OSError."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
    except OSError as error:
        # There was no program.
        if error.errno != errno.ENOENT:
            raise
