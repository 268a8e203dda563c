"""`tidegate load` against real gateways: what it measures, what it finds, how it ends."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import ENVIRONMENT, TIMEOUT_S, at, command, tidegate
from tests.support.gateway import Gateway, running_gateway
from tests.support.tokens import SECRET
from tests.support.waiting import wait_for

KEY = "agents-of-this-test"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """One that knows tokens."""
    with running_gateway({"tokens": {"hmac_secret": SECRET, "issuer": "load"}}) as running:
        yield running


def figures(gateway: Gateway, *arguments: object) -> dict[str, Any]:
    """The JSON of a test that must go well."""
    ran = tidegate("load", *at(gateway), "--json", *arguments)
    assert ran.status == 0, (ran.out, ran.err)
    found: dict[str, Any] = ran.json
    return found


@pytest.mark.parametrize(
    ("dialect", "pattern"),
    [
        *(("websocket", pattern) for pattern in ("all", "own", "shard:7", "mixed:10")),
        *(("tcp", pattern) for pattern in ("all", "own", "shard:7", "mixed:10")),
        *(("centrifuge", pattern) for pattern in ("all", "shard:7")),
        *(("sse", pattern) for pattern in ("own", "mixed:10")),
    ],
)
def test_every_message_is_delivered_to_all_subscribers_of_its_channel(
    gateway: Gateway, dialect: str, pattern: str
) -> None:
    found = figures(
        gateway,
        *("-n", 60, "--dialect", dialect, "--subscribe", pattern, "--processes", 3),
        *("--channel", f"public:{dialect}-{pattern.partition(':')[0]}"),
        *("--rate", 100, "--duration", 1),
        *(("--tokens", "-c", gateway.config_path) if dialect == "centrifuge" else ()),
    )
    assert found["connections"]["connected"] == 60
    assert found["delivered"] == found["expected"] >= found["published"] > 0
    assert found["latency_us"]["count"] == found["delivered"]
    assert 0 < found["latency_us"]["min"] <= found["latency_us"]["max"]


def test_publishing_over_http_is_measured_alike(gateway: Gateway) -> None:
    found = figures(
        gateway,
        *("-n", 10, "--rate", 50, "--duration", 1),
        *("--api", gateway.api_url, "--api-key", gateway.api_key),
    )
    assert found["delivered"] == found["expected"] == 10 * found["published"] > 0


def test_a_wrong_key_of_the_api_is_told_with_a_remedy(gateway: Gateway) -> None:
    ran = tidegate(
        *("load", *at(gateway), "-n", 2, "--rate", 5, "--duration", 1),
        *("--api", gateway.api_url, "--api-key", "wrong"),
    )
    assert ran.status == 2
    assert "--api-key" in ran.err


@pytest.mark.parametrize("dialect", ["websocket", "centrifuge", "sse"])
def test_those_who_churn_stall_and_misbehave_cost_the_others_nothing(
    gateway: Gateway, dialect: str
) -> None:
    found = figures(
        gateway,
        *("-n", 200, "--churn", 1200, "--stall", 5, "--misbehave", 10),
        *("--rate", 50, "--duration", 3, "--channel", f"public:unruly-{dialect}"),
        *("--dialect", dialect, "--tokens", "-c", gateway.config_path),
    )
    # 170 are faithful; one that is away at that moment is caught up when it is back.
    assert found["delivered"] == found["expected"] == 170 * found["published"]
    assert found["churned"] > 0
    assert found["latency_returned_us"]["count"] == found["reconnects"] > 0
    kinds = {what.partition(":")[0] for what in found["misdeeds"]}
    # Whatever is said on a one-way stream, nobody listens.
    assert {"garbage", "reset", *([] if dialect == "sse" else ["bad frame"])} <= kinds


def test_clients_without_a_token_are_told_what_they_lack(gateway: Gateway) -> None:
    ran = tidegate("load", *at(gateway), "-n", 3, "--dialect", "centrifuge", "--no-reconnect")
    assert ran.status == 3
    assert "3501 (3)" in ran.err and "--tokens" in ran.err


def test_tokens_need_the_secret_of_the_gateway(gateway: Gateway) -> None:
    ran = tidegate("load", *at(gateway), "-n", 3, "--tokens")
    assert ran.status == 2
    assert "tokens.hmac_secret" in ran.err and "-c" in ran.err


def test_a_pace_of_connecting_is_kept(gateway: Gateway) -> None:
    found = figures(gateway, "-n", 100, "--connect-rate", 100, "--duration", 0.1)
    assert 0.9 <= found["connections"]["seconds"] <= 50
    assert found["delivered"] == found["published"] == 0


@contextmanager
def running_load(gateway: Gateway, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A test under way, with a channel of its own; it has ended at the end of the block."""
    arguments = (*at(gateway), "--channel", "public:under-way", *arguments)
    with subprocess.Popen(
        command("load", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as load:
        try:
            yield load
        finally:
            load.kill()


def test_closed_connections_are_found_and_status_1(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway({"reload": {"handoff": False}})
    with running_load(gateway, "-n", 50, "--rate", 20, "--duration", 600) as load:
        wait_for(lambda: gateway.totals()["deliveries_total"] > 50, "messages to 50 clients")
        gateway.control("reload")
        wait_for(lambda: sum(gateway.connections()) == 50, "50 clients again")
        load.send_signal(signal.SIGINT)
        out, _ = load.communicate(timeout=TIMEOUT_S)
    assert load.returncode == 1
    assert re.search(r"CLOSES: 3001 \(\d+\)", out)
    assert "LOST" not in out


def test_nobody_there_is_status_3() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        ran = tidegate("load", "--address", address, "-n", 3, "--no-reconnect")
    assert ran.status == 3
    assert "connection refused (3)" in ran.err


def test_an_interrupt_ends_the_test_early_and_tells_what_was_seen(gateway: Gateway) -> None:
    before = gateway.totals().get("deliveries_total", 0)
    with running_load(gateway, "-n", 20, "--rate", 20, "--duration", 600) as load:
        wait_for(
            lambda: gateway.totals().get("deliveries_total", 0) >= before + 60, "some messages"
        )
        load.send_signal(signal.SIGINT)
        out, err = load.communicate(timeout=TIMEOUT_S)
    assert load.returncode == 0, err
    assert "every client got every message once" in out
    assert "Traceback" not in err


def test_a_gateway_that_dies_ends_the_test_and_not_its_time(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    with running_load(gateway, "-n", 20, "--rate", 20, "--duration", 600) as load:
        wait_for(lambda: gateway.totals()["deliveries_total"] > 50, "messages to 20 clients")
        os.kill(gateway.pid, signal.SIGKILL)
        _, err = load.communicate(timeout=TIMEOUT_S)
    assert load.returncode == 3
    assert "is gone" in err


# ---- agents


@contextmanager
def agent(directory: Path) -> Iterator[str]:
    """An agent in a process of its own; yields its address."""
    serving = subprocess.Popen(
        command("load", "--agent", "127.0.0.1:0", "--agent-key", KEY),
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=directory,
    )
    try:
        assert serving.stdout is not None
        assert select.select([serving.stdout], [], [], TIMEOUT_S)[0], "the agent says nothing"
        said = re.search(r"agent at (\S+), its key is (\S+)", serving.stdout.readline())
        assert said is not None
        assert said[2] == KEY
        yield said[1]
    finally:
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=TIMEOUT_S)


def test_agents_latencies_and_counts_add_up(gateway: Gateway, tmp_path: Path) -> None:
    with agent(tmp_path) as one, agent(tmp_path) as other:
        found = figures(
            gateway,
            *("-n", 51, "--agents", f"{one},{other}", "--agent-key", KEY),
            *("--rate", 20, "--duration", 1),
        )
    assert found["delivered"] == found["expected"] == 51 * found["published"] > 0
    assert found["latency_us"]["count"] == found["delivered"]


def test_an_agent_refuses_who_does_not_know_its_key(gateway: Gateway, tmp_path: Path) -> None:
    with agent(tmp_path) as address:
        ran = tidegate("load", *at(gateway), "-n", 5, "--agents", address, "--agent-key", "x")
        assert ran.status == 2
        assert "key" in ran.err
        # It serves on.
        found = figures(gateway, "-n", 5, "--agents", address, "--agent-key", KEY, "--duration", 1)
    assert found["connections"]["connected"] == 5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--subscribe", "shard:0"), "shard:0"),
        (("--subscribe", "some"), "some"),
        (("--stall", "101"), "101"),
        *(((option, "nan"), "nan") for option in ("--rate", "--connect-rate", "--churn")),
        (("--address", "nowhere"), "nowhere"),
        (("--address", "a..b:1"), "a..b:1"),
        (("--agent", "a..b:1"), "a..b:1"),
        (("--agents", "nowhere", "--address", "127.0.0.1:1"), "nowhere"),
        (("--address", "127.0.0.1:1", "--rate", "1", "--api", "ftp://x"), "ftp://x"),
        (("--stall", "60", "--misbehave", "60", "--address", "127.0.0.1:1"), "over 100"),
    ],
)
def test_a_wrong_option_is_told_by_its_value(arguments: tuple[str, ...], named: str) -> None:
    ran = tidegate("load", *arguments)
    assert ran.status == 2
    assert named in ran.err
