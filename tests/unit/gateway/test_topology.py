"""Placement of workers, on sysfs trees of machines that we do not have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.topology import Node, Placement, parse_cpu_list, place, read_nodes


def sysfs(root: Path, nodes: Mapping[int, str], online: str, has_memory: str | None = None) -> Path:
    """A tree as the kernel shows it: `nodes` maps a node's number to its cpulist."""
    (root / "cpu").mkdir()
    (root / "cpu" / "online").write_text(online + "\n")
    if nodes:
        (root / "node").mkdir()
    for number, cpus in nodes.items():
        (root / "node" / f"node{number}").mkdir()
        (root / "node" / f"node{number}" / "cpulist").write_text(cpus + "\n")
    if has_memory is not None:
        (root / "node" / "has_memory").write_text(has_memory + "\n")
    return root


def test_slots_go_round_the_nodes(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {0: "0-3", 1: "4-7"}, "0-7", "0-1")
    nodes = read_nodes(root, range(8))
    assert nodes == [Node(0, (0, 1, 2, 3), True), Node(1, (4, 5, 6, 7), True)]
    placed = [place(slot, nodes, "node") for slot in range(4)]
    assert [each.memory_node for each in placed] == [0, 1, 0, 1]
    assert placed[0].cpus == placed[2].cpus == (0, 1, 2, 3)


def test_pinned_to_cpus_slots_use_each_cpu_once_before_any_twice(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"}, "0-7", "0-1")
    nodes = read_nodes(root, range(8))
    placed = [place(slot, nodes, "cpu") for slot in range(9)]
    assert [each.cpus for each in placed[:8]] == [
        (0,), (2,), (1,), (3,), (4,), (6,), (5,), (7,)
    ]  # fmt: skip
    assert placed[8] == placed[0]
    assert all(each.cpus[0] in nodes[each.memory_node].cpus for each in placed), (
        "a worker's memory is that of its CPU's node"
    )


def test_without_pinning_a_slot_gets_nothing(tmp_path: Path) -> None:
    nodes = read_nodes(sysfs(tmp_path, {0: "0-3"}, "0-3", "0"), range(4))
    assert place(0, nodes, "none") == Placement((), -1)


def test_a_node_with_memory_alone_gets_no_worker(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {0: "0-1", 1: "2-3", 2: ""}, "0-3", "0-2")
    assert [node.number for node in read_nodes(root, range(4))] == [0, 1]


def test_a_node_without_memory_is_no_memory_preference(tmp_path: Path) -> None:
    nodes = read_nodes(sysfs(tmp_path, {0: "0-1", 1: "2-3"}, "0-3", "0"), range(4))
    assert place(1, nodes, "node") == Placement((2, 3), -1)


def test_holes_in_the_numbers_of_nodes_and_cpus_are_respected(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {10: "32-33", 2: "8,10"}, "8,10,32-33", "2,10")
    assert read_nodes(root, [8, 10, 32, 33]) == [
        Node(2, (8, 10), True),
        Node(10, (32, 33), True),
    ]


def test_offline_and_forbidden_cpus_are_left_out(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {0: "0-3", 1: "4-7"}, "0-1,4-7", "0-1")
    nodes = read_nodes(root, {1, 2, 3, 5})
    assert nodes == [Node(0, (1,), True), Node(1, (5,), True)]


def test_a_node_whose_cpus_are_all_offline_gets_no_worker(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {0: "0-1", 1: "2-3"}, "0-1", "0-1")
    assert [node.number for node in read_nodes(root, range(4))] == [0]


def test_a_kernel_without_numa_is_one_node_without_a_number(tmp_path: Path) -> None:
    nodes = read_nodes(sysfs(tmp_path, {}, "0-3"), range(4))
    assert nodes == [Node(-1, (0, 1, 2, 3), False)]
    assert place(3, nodes, "node") == Placement((0, 1, 2, 3), -1)
    assert place(3, nodes, "cpu") == Placement((3,), -1)


def test_this_machine_is_read_and_its_cpus_are_ours() -> None:
    cpus = [cpu for node in read_nodes() for cpu in node.cpus]
    assert sorted(cpus) == sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8,10-11\n", [0, 1, 2, 3, 8, 10, 11]), ("5", [5]), ("\n", []), ("", [])],
)
def test_the_kernels_lists_are_understood(text: str, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == cpus
