"""The swarm of subscribers against a real gateway, and the benchmarks in their quick form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.producer import Producer
from ops.bench import nginx, plot
from ops.bench.result import Curve, Result
from ops.load.programs import ROOT, Swarm
from tests.support.gateway import Gateway, running_gateway
from tests.support.tokens import SECRET
from tests.support.waiting import wait_for

RUN_S_MAX = 90.0
BENCHMARK_TIMEOUT_S = 200.0
CONNECTIONS = 30
TRANSPORTS = ("websocket", "centrifuge", "sse", "tcp")
FAULTS = ("gaps", "repeats", "unrecovered", "foreign")
ANONYMOUS = {"client": {"allow_anonymous": True}}
PUBLIC = {
    "name": "public",
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
}
KEPT = {
    **PUBLIC,
    "name": "kept",
    "history_size": 100,
    "history_ttl_s": 300.0,
}
TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """One whose channels `kept:` have a history, and that needs no tokens."""
    with running_gateway({"channel": {"namespaces": [PUBLIC, KEPT]}, **ANONYMOUS}) as running:
        yield running


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


@pytest.mark.parametrize("transport", TRANSPORTS)
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


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_swarm_that_reconnects_misses_nothing_in_a_reload_that_closes(
    start_gateway: Callable[..., Gateway], transport: str
) -> None:
    gateway = start_gateway({"reload": {"handoff": False}, **ANONYMOUS})
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
    assert faults(report) == dict.fromkeys(FAULTS, 0)
    assert stand == {
        "subscribers": CONNECTIONS,
        "offset_min": last["offset"],
        "offset_max": last["offset"],
    }


def faults(report: dict[str, Any]) -> dict[str, int]:
    return {fault: report[fault] for fault in FAULTS}


def away(gateway: Gateway, swarm: Swarm) -> None:
    """Cut everybody off; returns when the gateway has noticed."""
    swarm.drop_off()
    wait_for(lambda: sum(gateway.connections()) == 0, "the gateway sees that they are gone")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_is_cut_off_comes_back_with_what_it_missed(gateway: Gateway, transport: str) -> None:
    channel = f"kept:cut-{transport}"
    with swarm_of(gateway, transport, channel=channel) as swarm:
        swarm.wait_ready()
        swarm.announce(6)
        gateway.publish(channel, {"n": 0})
        # Whoever has seen something has something to come back with.
        wait_for(lambda: swarm.report()["deliveries"] == CONNECTIONS, "the first message")
        away(gateway, swarm)
        for number in range(1, 5):
            gateway.publish(channel, {"n": number})
        swarm.come_back()
        wait_for(lambda: swarm.report()["connected"] == CONNECTIONS, "all are back")
        gateway.publish(channel, {"n": 5})
        swarm.wait_delivered()
        report = swarm.flawless_report()
    assert (report["recovered"], report["reconnects"]) == (4 * CONNECTIONS, CONNECTIONS)
    assert report["latency_returned"]["count"] == CONNECTIONS


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_cannot_be_caught_up_is_told_and_goes_on(gateway: Gateway, transport: str) -> None:
    channel = f"kept:lost-{transport}"
    with (
        Producer(gateway.control_path) as producer,
        swarm_of(gateway, transport, channel=channel) as swarm,
    ):
        swarm.wait_ready()
        gateway.publish(channel, {})
        wait_for(lambda: swarm.report()["deliveries"] == CONNECTIONS, "the first message")
        away(gateway, swarm)
        gateway.publish(channel, {})
        producer.history_remove(channel)
        swarm.come_back()
        wait_for(lambda: swarm.report()["connected"] == CONNECTIONS, "all are back")
        gateway.publish(channel, {})
        wait_for(lambda: swarm.report()["deliveries"] == 2 * CONNECTIONS, "the last message")
        report = swarm.report()
    assert faults(report) == dict.fromkeys(FAULTS, 0) | {"unrecovered": CONNECTIONS}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_client_shows_a_token_of_its_own(
    start_gateway: Callable[..., Gateway], transport: str
) -> None:
    gateway = start_gateway(
        {
            "tokens": {"hmac_secret": SECRET, "audience": "load"},
            "client": {"personal_channel": True, "user_connections_max": 1},
            "workers": {"count": 1},
        }
    )
    tokens = {"secret": SECRET, "user_claim": "sub", "claims": {"aud": "load"}}
    with swarm_of(gateway, transport, channel="public:users", tokens=tokens) as swarm:
        swarm.wait_ready()
        # A second connection of one user would be refused.
        assert sum(gateway.connections()) == CONNECTIONS
    for wrong in ({"secret": "x" * 32}, {"claims": {"aud": "others"}}):
        with swarm_of(gateway, transport, tokens=tokens | wrong) as swarm:
            assert swarm.expect("ready", RUN_S_MAX)["connected"] == 0
            assert swarm.report()["failures"] == {"3500": CONNECTIONS}


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


@pytest.mark.parametrize(
    "benchmark",
    [
        *("ring", "fanout", "connect", "session", "unicast", "mixed", "storm"),
        *("api", "produce", "presence", "idle", "servers"),
    ],
)
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
