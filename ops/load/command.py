"""`tidegate load`: clients by the thousand, and whether they get every message, and how soon."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.errors import TidegateError
from ops.command import Connect, Count, Number, Seconds, instance_options
from ops.output import Exit, Output, duration, table
from ops.start import config_option, load_config, set_option

if TYPE_CHECKING:
    from ops.load.run import Outcome

CONNECTIONS_MAX = 10_000_000
"""More than loopback addresses of one test, and any machine's memory, hold."""
RATE_MAX = 1_000_000.0
ENDPOINTS = {"websocket": "http", "centrifuge": "http", "sse": "http", "tcp": "tcp"}
"""The gateway's endpoint for each dialect."""
PATTERNS = ("all", "own", "shard:K", "mixed:K")


Pattern = str | dict[str, int]
"""As a plan of swarms has it."""


def _pattern(ctx: click.Context, param: click.Parameter, value: str) -> Pattern:
    word, colon, number = value.partition(":")
    if not colon and word in ("all", "own"):
        return word
    if word in ("shard", "mixed") and number.isdecimal() and 0 < int(number) < 1 << 32:
        return {word: int(number)}
    raise click.BadParameter(f"{value}: write one of {', '.join(PATTERNS)}")


def _percent(name: str, help: str, most: float = 100.0) -> Callable[[Any], Any]:
    return click.option(
        name,
        type=Number(0.0, most),
        default=0.0,
        metavar="PERCENT",
        help=help,
    )


@click.command()
@click.option(
    "-n", "--connections", type=Count(1, CONNECTIONS_MAX), default=1000, show_default=True
)
@click.option(
    "--address", metavar="HOST:PORT", help="Client port; the running gateway's if absent."
)
@click.option(
    "--dialect",
    type=click.Choice(list(ENDPOINTS)),
    default="websocket",
    show_default=True,
    help="websocket and sse are one-way; centrifuge is what the SDKs speak.",
)
@click.option("--tokens", is_flag=True, help="Each with a token, by the HMAC secret of -c.")
@config_option
@set_option
@click.option("--channel", default="public:load", show_default=True, help="Base of their names.")
@click.option(
    "--subscribe",
    callback=_pattern,
    default="all",
    show_default=True,
    metavar="PATTERN",
    help="all: one channel; own: one each; shard:K: one of K; mixed:K: all, and every K-th own.",
)
@click.option(
    "--connect-rate",
    type=Number(0.0, RATE_MAX),
    default=0.0,
    metavar="PER_S",
    help="New connections a second; without it as fast as --handshakes allows.",
)
@click.option("--handshakes", type=Count(1, 65536), default=2048, help="In flight at most.")
@click.option("--processes", type=Count(1, 1024), help="Without it as many as are useful.")
@click.option("--duration", "duration_s", type=Seconds(0.1), default=10.0, show_default=True)
@click.option(
    "--rate",
    type=Number(0.0, RATE_MAX),
    default=0.0,
    metavar="PER_S",
    help="Publish so many messages a second, to the channels in turn.",
)
@click.option("--size", type=Count(64, 16 << 20), default=128, help="Bytes of a message.")
@click.option("--api", metavar="URL", help="Publish over HTTP; without it through shared memory.")
@click.option("--api-key", envvar="TIDEGATE_API_KEY", default="", help="Or TIDEGATE_API_KEY.")
@click.option("--reconnect/--no-reconnect", default=True, help="Come back after a close.")
@_percent("--churn", "So many clients leave and come back, each minute.", 6000.0)
@_percent("--stall", "So many never read.")
@_percent("--misbehave", "So many do what no client should.")
@click.option("--agents", default="", metavar="HOST:PORT,...", help="Machines to connect from.")
@click.option("--agent", "serve_at", metavar="HOST:PORT", help="Be an agent, for others' tests.")
@click.option("--agent-key", envvar="TIDEGATE_LOAD_KEY", default="", help="Or TIDEGATE_LOAD_KEY.")
@instance_options()
def load(connect: Connect, output: Output, serve_at: str | None, **options: Any) -> Exit:
    """Put load on a gateway, and check what its clients get.

    \b
    Examples:
      tidegate load -n 10000 --rate 10
      tidegate load -n 5000 --subscribe own --rate 2000 --duration 60
      tidegate load -n 20000 --dialect tcp --churn 50 --stall 1 --misbehave 1 --rate 5
      tidegate load -n 10000 --dialect centrifuge --tokens -c tidegate.toml --rate 10
      tidegate load --address gateway:8000 --api http://gateway:8002/api --rate 10
      tidegate load --agent 10.0.0.7:7000         on other machines; then here:
      tidegate load -n 200000 --agents 10.0.0.7:7000,10.0.0.8:7000 --rate 5

    Every client checks the order of what it gets, by offset; latencies are from publish to receipt,
    by the time in each message. An interrupt ends the test early, and it is told what was seen; a
    second one ends the wait for messages under way. Exit status: 0 all is well, 1 something was
    lost, repeated, refused or closed, or a client is absent in the end.

    SDKs are let in by a token unless the gateway has client.allow_anonymous: see --tokens.

    An agent opens connections for whoever knows its key, and learns the secret of tokens: keep its
    port to machines of your own.
    """
    if serve_at is not None:
        return _serve(output, serve_at, options["agent_key"])
    outcome = _run(connect, output, **options)
    if output.as_json:
        output.data(outcome.as_map())
    else:
        _show(output, outcome)
    return Exit.NO if outcome.faults else Exit.OK


def _serve(output: Output, address: str, key: str) -> Exit:
    from ops.load.agent import AgentServer

    server = AgentServer(address, key)
    said = {"address": server.address, "key": server.key}
    if output.as_json:
        output.data(said)
    else:
        output.line(f"an agent at {server.address}, its key is {server.key}")
    try:
        server.serve()
    finally:
        server.close()
    return Exit.OK


def _run(
    connect: Connect,
    output: Output,
    *,
    address: str | None,
    dialect: str,
    subscribe: Pattern,
    connections: int,
    channel: str,
    agents: str,
    agent_key: str,
    tokens: bool,
    path: Path | None,
    overrides: tuple[str, ...],
    **options: Any,
) -> Outcome:
    from ops.load.agent import Agent
    from ops.load.crowd import Crowd
    from ops.load.run import Test, run

    if address is None:
        with connect() as control:
            endpoint = str(control.call("status")["endpoints"][ENDPOINTS[dialect]])
        address = endpoint.rpartition("//")[2]
    test = Test(
        connections=connections,
        connects_per_s=options["connect_rate"],
        duration_s=options["duration_s"],
        publish_per_s=options["rate"],
        channels=channels(channel, subscribe, connections),
    )
    with (
        _publisher(connect, options) as publish,
        Crowd(
            address=_numeric(address),
            connections=connections,
            run_s_max=test.run_s_max,
            agents=[Agent(each, agent_key) for each in agents.split(",") if each],
            processes=options["processes"] or 0,
            handshakes_max=options["handshakes"],
            connects_per_s=options["connect_rate"],
            transport=dialect,
            tokens=_tokens(path, overrides, test.run_s_max) if tokens else None,
            channel=channel,
            subscribe=subscribe,
            reconnect=options["reconnect"],
            churn_percent=options["churn"],
            stall_percent=options["stall"],
            misbehave_percent=options["misbehave"],
        ) as crowd,
        output.meter() as meter,
    ):
        return run(crowd, test, publish, meter)


def _tokens(path: Path | None, overrides: tuple[str, ...], expires_s: float) -> dict[str, Any]:
    """By what swarms make the tokens of their clients. Raises ConfigError."""
    from ops.token import common_claims, hmac_secret, user_claim

    rules = load_config(path, overrides).tokens
    return {
        "secret": hmac_secret(rules, "tokens", "give the gateway's configuration with -c"),
        "user_claim": user_claim(rules),
        "claims": common_claims(rules, int(expires_s)),
    }


def channels(base: str, subscribe: Pattern, connections: int) -> list[str]:
    """The channels of a pattern (`channels_of` in swarm/src/plan.rs), to publish to in turn."""
    if subscribe == "all":
        return [base]
    numbers = range(connections)
    if isinstance(subscribe, dict):
        if "mixed" in subscribe:
            return [base, *(f"{base}-{number}" for number in numbers[:: subscribe["mixed"]])]
        numbers = numbers[: subscribe["shard"]]
    return [f"{base}-{number}" for number in numbers]


@contextlib.contextmanager
def _publisher(
    connect: Connect, options: dict[str, Any]
) -> Iterator[Callable[[str], object] | None]:
    """Publishes a stamped message to a channel; None where nothing is to be published."""
    from ops.load.stream import HttpPublisher, payload

    size_bytes = options["size"]
    if not options["rate"]:
        yield None
    elif options["api"]:
        with contextlib.closing(HttpPublisher(options["api"], options["api_key"])) as http:
            yield lambda channel: http.publish(channel, payload(size_bytes=size_bytes))
    else:
        from gateway.producer import Producer

        with connect() as control:
            path = control.path
        with Producer(path) as producer:
            yield lambda channel: producer.publish_nowait(channel, payload(size_bytes=size_bytes))


def _numeric(address: str) -> str:
    """The address as swarms take it, an IPv4 address and a port. Raises TidegateError."""
    import socket

    from ops.load.agent import parse_address

    host, port = parse_address(address)
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise TidegateError(
            f"{host} has no IPv4 address ({error.strerror})",
            remedy="give one that has: the clients of a load test speak IPv4",
            code="address",
        ) from error
    return f"{found[0][4][0]}:{port}"


def _show(output: Output, outcome: Outcome) -> None:
    found = outcome.as_map()
    connections = found["connections"]
    rows = [
        (
            "connected",
            f"{connections['connected']:,} of {connections['wanted']:,} in "
            f"{duration(connections['seconds'])} ({connections['per_s']:,.0f}/s)",
        ),
        ("published", _published(found)),
        ("delivered", f"{found['delivered']:,} of {found['expected']:,}"),
        ("latency", _latencies(found["latency_us"])),
    ]
    if found["recovered"]:
        rows.append(("recovered", _latencies(found["latency_recovered_us"])))
    if found["reconnects"]:
        rows.append(("back within", _latencies(found["latency_returned_us"])))
    for name in ("pings", "reconnects", "churned"):
        if found[name]:
            rows.append((name, f"{found[name]:,}"))
    for what, count in sorted(found["misdeeds"].items()):
        rows.append(("misbehaviour", f"{what}: {count:,}"))
    output.show(table(("LOAD", "SEEN"), rows))
    for name, value in outcome.faults.items():
        shown = (
            ", ".join(f"{reason} ({count:,})" for reason, count in value.items())
            if isinstance(value, dict)
            else f"{value:,}"
        )
        output.show(f"{name.upper()}: {shown}")
    output.show("" if outcome.faults else "every client got every message once, in order")


def _published(found: dict[str, Any]) -> str:
    if found["published_per_s"] is None:
        return "nothing"
    return f"{found['published']:,} ({found['published_per_s']:,.0f}/s)"


def _latencies(latency: dict[str, Any]) -> str:
    if not latency["count"]:
        return "none measured"
    parts = ("min", "p50", "p90", "p99", "p999", "max")
    return "  ".join(f"{part} {latency[part] / 1e3:,.3g} ms" for part in parts)


COMMANDS = [load]
