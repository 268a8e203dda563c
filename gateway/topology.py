"""Which CPUs and which memory each worker slot gets: read from sysfs, spread over NUMA nodes.

Facts (Documentation/ABI/stable/sysfs-devices-node): `node/nodeN/cpulist` lists a node's CPUs, on
some kernels offline ones too; a node may have memory and no CPU (CXL) or CPUs and no memory; node
and CPU numbers may have holes; without CONFIG_NUMA there is no `node` directory at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SYSFS = Path("/sys/devices/system")

Pin = Literal["node", "cpu", "none"]


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node that can run workers: its usable CPUs, and whether memory is near them."""

    number: int
    cpus: tuple[int, ...]
    has_memory: bool


@dataclass(frozen=True, slots=True)
class Placement:
    """What one slot gets. No CPUs: run anywhere. Memory node -1: no preference."""

    cpus: tuple[int, ...] = ()
    memory_node: int = -1


def read_nodes(root: Path = SYSFS, allowed: Iterable[int] | None = None) -> list[Node]:
    """The nodes with usable CPUs: online, and in `allowed` (default: this process's affinity)."""
    usable = set(os.sched_getaffinity(0) if allowed is None else allowed)
    if online := _read_list(root / "cpu" / "online"):
        usable &= set(online)
    # Before 4.x kernels and without CONFIG_MEMORY the file is missing: then every node has memory.
    with_memory = _read_list(root / "node" / "has_memory")
    nodes = []
    for path in sorted((root / "node").glob("node[0-9]*"), key=_number):
        cpus = tuple(cpu for cpu in _read_list(path / "cpulist") if cpu in usable)
        if cpus:
            number = _number(path)
            nodes.append(Node(number, cpus, not with_memory or number in with_memory))
    placed = {cpu for node in nodes for cpu in node.cpus}
    if stray := tuple(sorted(usable - placed)):
        # No NUMA in this kernel, or CPUs that no node claims: one node without a number.
        nodes.append(Node(-1, stray, has_memory=False))
    return nodes


def place(slot: int, nodes: Sequence[Node], pin: Pin) -> Placement:
    """The placement of one slot; depends on nothing but its number, so that others may come and go.

    Slots go round the nodes, so that two slots use the memory channels of two nodes. With `cpu`, a
    node's slots go round its CPUs, first the cores and then, by the kernel's numbering, their
    siblings.
    """
    if pin == "none" or not nodes:
        return Placement()
    node = nodes[slot % len(nodes)]
    memory_node = node.number if node.has_memory else -1
    if pin == "node":
        return Placement(node.cpus, memory_node)
    return Placement((node.cpus[slot // len(nodes) % len(node.cpus)],), memory_node)


def parse_cpu_list(text: str) -> list[int]:
    """The kernel's list format: "0-3,8,10-11" (cpuset(7)). Raises ValueError."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus += range(int(first), int(last or first) + 1)
    return cpus


def _read_list(path: Path) -> list[int]:
    try:
        return parse_cpu_list(path.read_text())
    except (OSError, ValueError):
        return []


def _number(path: Path) -> int:
    digits = re.search(r"\d+$", path.name)
    return int(digits[0]) if digits else -1
