"""`publish` and `subscribe`: one message in, messages out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from gateway.errors import TidegateError
from ops.command import Connect, Seconds, instance_options
from ops.output import Exit, Output

OFFSET_DIGITS_MAX = 19
"""Any number of so many digits is below 2^64."""


@click.command()
@click.argument("channel")
@click.argument("data")
@instance_options()
def publish(connect: Connect, output: Output, channel: str, data: str) -> None:
    """Publish DATA to CHANNEL.

    \b
    Examples:
      tidegate publish public:news '{"text": "hello"}'
      tidegate publish public:news '"just a text"'
      date +%s | tidegate publish public:clock -

    DATA is a JSON document; `-` reads it from stdin. Prints the offset and the epoch it got.
    """
    value = _document(data)
    with connect() as control:
        published = control.call("publish", channel=channel, data=value)
    if output.as_json:
        output.data({"channel": channel, **published})
    else:
        output.line(f"{channel}  offset {published['offset']}  epoch {published['epoch']}")


@click.command()
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option(
    "--wait",
    "wait_s",
    type=Seconds(0.001),
    metavar="SECONDS",
    help="End after so long; the exit status is 1 if --count was not reached.",
)
@click.option(
    "--since",
    metavar="EPOCH:OFFSET",
    help="First recover what came after that message; for a single channel.",
)
@click.option(
    "--address", metavar="HOST:PORT", help="Port for TCP clients; the running gateway's if absent."
)
@instance_options()
def subscribe(
    connect: Connect,
    output: Output,
    channels: Sequence[str],
    count: int | None,
    wait_s: float | None,
    since: str | None,
    address: str | None,
) -> Exit:
    """Print the messages of CHANNELs as they come.

    \b
    Examples:
      tidegate subscribe public:news public:weather
      tidegate subscribe public:news --count 1 --wait 10
      tidegate subscribe public:news --since 5f3a9c01:17 --json | jq .data

    A client like any other: it connects to the port for TCP clients, and again whenever the
    connection is lost, recovering what it missed. With --json each message is an object with
    channel, epoch, offset, data (b64data if it is no JSON) and tags, on a line of its own; where
    messages are lost for good, there is one with channel and gap. The exit status is 1 then.
    """
    import asyncio

    from ops.subscriber import Printer, print_channels

    position = _position(since)
    if position and len(channels) > 1:
        raise click.UsageError("--since is for a single channel")
    if address is None:
        with connect() as control:
            address = control.call("status")["endpoints"]["tcp"]
    return asyncio.run(print_channels(address, channels, position, wait_s, Printer(output, count)))


def _document(data: str) -> Any:
    """DATA as a value. Not by `json`, which takes NaN and numbers that no JSON can hold."""
    import msgspec

    written = os.fsencode(data)
    if data == "-":
        written = sys.stdin.buffer.read() if sys.stdin else b""
    try:
        return msgspec.json.decode(written)
    except (ValueError, RecursionError) as error:
        raise TidegateError(
            f"DATA is not JSON ({error})",
            remedy="a text needs quotes of its own: '\"hello\"'",
            code="bad_request",
        ) from error


def _position(since: str | None) -> tuple[str, int] | None:
    if since is None:
        return None
    epoch, _, offset = since.rpartition(":")
    if not epoch or not offset.isdecimal() or len(offset) > OFFSET_DIGITS_MAX:
        raise click.UsageError(f"--since {since}: write EPOCH:OFFSET, as messages are printed with")
    return epoch, int(offset)


COMMANDS = [publish, subscribe]
