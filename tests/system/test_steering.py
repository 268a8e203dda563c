"""`workers.steer`: which worker of a real gateway gets a connection."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.support.command_line import tidegate
from tests.support.gateway import Gateway
from tests.support.raw_websocket import RawWebSocket
from tests.support.waiting import wait_for

CONNECTIONS = 12

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to choose from"
)


def connect_from(cpu: int, gateway: Gateway, clients: ExitStack) -> None:
    """Loopback's packets are received by the CPU that sends them."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        for _ in range(CONNECTIONS):
            clients.enter_context(RawWebSocket(gateway.http_port)).connect("public:steering")
    finally:
        os.sched_setaffinity(0, allowed)


def by_cpu(gateway: Gateway) -> dict[int, int]:
    """Connections of the workers on each CPU."""
    counts: dict[int, int] = {}
    for worker in gateway.status()["workers"]:
        (cpu,) = worker["cpus"]
        counts[cpu] = counts.get(cpu, 0) + worker["connections"]
    return counts


@pytest.mark.parametrize("workers", [2, 4])
def test_a_connection_comes_to_a_worker_of_the_cpu_that_received_it(
    start_gateway: Callable[..., Gateway], workers: int
) -> None:
    gateway = start_gateway({"workers": {"count": workers, "pin": "cpu", "steer": "cpu"}})
    one, other = sorted(os.sched_getaffinity(0))[:2]
    with ExitStack() as clients:
        connect_from(one, gateway, clients)
        assert by_cpu(gateway) == {one: CONNECTIONS, other: 0}
        connect_from(other, gateway, clients)
        assert by_cpu(gateway) == {one: CONNECTIONS, other: CONNECTIONS}


def test_steering_follows_the_number_of_workers(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway({"workers": {"count": 2, "pin": "cpu", "steer": "cpu"}})
    one, other = sorted(os.sched_getaffinity(0))[:2]
    with ExitStack() as clients:
        gateway.control("scale", count=1)
        # Nobody is on that CPU any more: any worker will do.
        connect_from(other, gateway, clients)
        assert by_cpu(gateway) == {one: CONNECTIONS}
        gateway.control("scale", count=2)
        connect_from(other, gateway, clients)
        assert by_cpu(gateway) == {one: CONNECTIONS, other: CONNECTIONS}


def test_a_reload_turns_steering_on_and_off(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway({"workers": {"count": 2, "pin": "cpu"}})
    one, _ = sorted(os.sched_getaffinity(0))[:2]
    gateway.sections["workers"]["steer"] = "cpu"
    gateway.write_config()
    gateway.control("reload")
    with ExitStack() as clients:
        connect_from(one, gateway, clients)
        assert by_cpu(gateway)[one] == CONNECTIONS
    gateway.sections["workers"]["steer"] = "hash"
    gateway.write_config()
    gateway.control("reload")
    wait_for(lambda: sum(gateway.connections()) == 0, "all have left")
    with ExitStack() as clients:
        for _ in range(3):
            connect_from(one, gateway, clients)
        # By the hash; that all of 36 should come to one of two has a chance of 1 in 2^35.
        assert all(by_cpu(gateway).values())


def test_steering_without_pinning_is_refused_with_a_remedy() -> None:
    settings = ("--set", "workers.steer=cpu", "--set", "workers.pin=none")
    ran = tidegate("check-config", *settings)
    assert ran.status == 2
    assert "workers.steer = cpu" in ran.err
    assert "workers.pin" in ran.err
