"""`publish` and `subscribe`: one message in, messages out."""

from __future__ import annotations

import json
import sys

import click

from gateway.errors import TidegateError
from ops.command import Connect, instance_options
from ops.output import Output


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
    text = sys.stdin.read() if data == "-" else data
    try:
        value = json.loads(text)
    except ValueError as error:
        raise TidegateError(
            f"DATA is not JSON ({error})",
            remedy="a text needs quotes of its own: '\"hello\"'",
            code="bad_request",
        ) from error
    with connect() as control:
        published = control.call("publish", channel=channel, data=value)
    if output.as_json:
        output.data({"channel": channel, **published})
    else:
        output.line(f"{channel}  offset {published['offset']}  epoch {published['epoch']}")


COMMANDS = [publish]
