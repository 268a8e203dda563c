"""The swarm of subscribers against a real gateway, and the benchmarks in their quick form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ops.bench import nginx, plot
from ops.bench.result import Curve, Result
from ops.load.programs import ROOT, Swarm
from tests.support.gateway import Gateway

RUN_S_MAX = 90.0
BENCHMARK_TIMEOUT_S = 200.0
CONNECTIONS = 30
TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")


def swarm_of(gateway: Gateway, transport: str, **plan: Any) -> Swarm:
    port = gateway.tcp_port if transport == "tcp" else gateway.http_port
    return Swarm(
        address=f"127.0.0.1:{port}",
        connections=CONNECTIONS,
        run_s_max=RUN_S_MAX,
        transport=transport,
        **plan,
    )


def positions(swarm: Swarm) -> dict[str, dict[str, int]]:
    swarm.command("positions")
    channels: dict[str, dict[str, int]] = swarm.expect("positions", RUN_S_MAX)["channels"]
    return channels


@pytest.mark.parametrize("transport", ["websocket", "tcp"])
def test_every_pattern_of_subscription_gets_its_messages(gateway: Gateway, transport: str) -> None:
    base = f"public:pattern-{transport}"
    with swarm_of(gateway, transport, channel=base, subscribe={"shard": 3}) as swarm:
        swarm.wait_ready()
        swarm.announce()  # A third of the clients each: one delivery to every client in sum.
        for shard in range(3):
            gateway.publish(f"{base}-{shard}", {"n": shard})
        swarm.wait_delivered()
        assert swarm.flawless_report()["undated"] == CONNECTIONS
        assert {name: each["subscribers"] for name, each in positions(swarm).items()} == {
            f"{base}-{shard}": CONNECTIONS // 3 for shard in range(3)
        }
    with swarm_of(gateway, transport, subscribe={"sets": [[f"{base}-a", f"{base}-b"]]}) as swarm:
        swarm.wait_ready()
        swarm.announce(2)
        for name in ("a", "b"):
            gateway.publish(f"{base}-{name}", {})
        swarm.wait_delivered()
        swarm.flawless_report()


@pytest.mark.parametrize("transport", ["websocket", "tcp"])
def test_a_swarm_that_reconnects_misses_nothing_in_a_reload_that_closes(
    start_gateway: Callable[..., Gateway], transport: str
) -> None:
    gateway = start_gateway({"reload": {"handoff": False}})
    channel = "public:reload"
    with swarm_of(gateway, transport, channel=channel, reconnect=True) as swarm:
        swarm.wait_ready()
        swarm.announce(10)
        for number in range(5):
            gateway.publish(channel, {"n": number})
        gateway.control("reload")
        for number in range(5):
            last = gateway.publish(channel, {"n": number})
        swarm.wait_delivered()
        report = swarm.report()
        stand = positions(swarm)[channel]
    # One slot after the other: who comes back to a slot whose turn is still to come returns twice.
    assert CONNECTIONS <= report["reconnects"] <= 2 * CONNECTIONS
    faults = ("gaps", "repeats", "unrecovered", "foreign")
    assert {fault: report[fault] for fault in faults} == dict.fromkeys(faults, 0)
    assert stand == {
        "subscribers": CONNECTIONS,
        "offset_min": last["offset"],
        "offset_max": last["offset"],
    }


def quick_result(benchmark: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "bench", benchmark, "--quick", "--json"],
        cwd=ROOT,
        check=True,
        timeout=BENCHMARK_TIMEOUT_S,
        stdout=subprocess.PIPE,
    )
    (result,) = json.loads(done.stdout)["results"]
    return dict(result)


@pytest.mark.parametrize("benchmark", ["ring", "fanout", "connect", "unicast", "mixed", "idle"])
def test_a_benchmark_runs_to_its_end(benchmark: str) -> None:
    result = quick_result(benchmark)
    assert result["benchmark"] == benchmark
    # Of "mixed" it is the faults, and there are none; of all others a cost.
    assert all(run > 0 for run in result["measures"][1]["runs"])


def test_a_distribution_is_drawn_as_a_picture(tmp_path: Path) -> None:
    curves = tuple(Curve(name, ((0.0, 0.1), (50.0, 1.0), (99.9, 7.5))) for name in ("a", "b"))
    result = Result(benchmark="unicast", parameters={}, measures=(), curves=curves)
    path = tmp_path / "plot.png"
    plot.draw(result, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    lengths = [line.count("█") for line in plot.bars(curves)]
    assert lengths == [0, lengths[1], 48, 0, lengths[1], 48]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise what the kernel allows")
def test_the_million_in_small_drops_nobody_and_leaves_the_kernel_as_it_was() -> None:
    before = TCP_MEM.read_text()
    result = quick_result("million")
    assert TCP_MEM.read_text() == before
    figures = {measure["what"]: measure["runs"] for measure in result["measures"]}
    assert figures["— connections moved"] == [result["parameters"]["connections"]]
    assert figures["— connections dropped, messages lost"] == [0]


@pytest.mark.skipif(
    nginx.find() is None, reason=f"nginx with nchan is not here: apt-get install {nginx.PACKAGES}"
)
def test_nginx_closes_every_client_where_a_reload_closes_none() -> None:
    result = quick_result("peers")
    figures: dict[str, list[float]] = {}
    for measure in result["measures"]:
        figures.setdefault(measure["what"], []).extend(measure["runs"])
    # Ours first, then nginx reloaded, then nginx upgraded: one run each.
    connections = result["parameters"]["connections"]
    assert figures["Connections closed"] == [0, connections, connections]
    assert figures["Reconnects that clients needed"] == [0, connections, connections]
    assert figures["Clients that were not back in the end"] == [0, 0, 0]
    ours_lost, *_ = figures["Messages lost, per client"]
    ours_repeated, *_ = figures["Messages repeated, per client"]
    assert (ours_lost, ours_repeated) == (0, 0)
