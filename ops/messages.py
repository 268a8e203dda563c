"""`publish` and `subscribe`: one message in, messages out."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from gateway.errors import TidegateError
from ops.command import Connect, instance_options
from ops.output import Exit, Output

if TYPE_CHECKING:
    from gateway.client import AsyncClient, Gap, Message, Position


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


@click.command()
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0.001),
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
    channel, epoch, offset, data (b64data if it is no JSON) and tags, on a line of its own.
    """
    if since and len(channels) > 1:
        raise click.UsageError("--since is for a single channel")
    if address is None:
        with connect() as control:
            address = control.call("status")["endpoints"]["tcp"]
    printer = Printer(output, count)
    return asyncio.run(_subscribe(address, channels, _position(since), wait_s, printer))


@dataclass(slots=True)
class Printer:
    """Prints messages until there were enough of them."""

    output: Output
    count: int | None
    printed: int = 0
    gaps: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    def message(self, message: Message) -> None:
        if self.enough.is_set():
            return
        if self.output.as_json:
            self.output.data(_as_map(message))
        else:
            shown = message.data.decode(errors="replace")
            self.output.line(f"{message.channel}  {message.epoch}:{message.offset}  {shown}")
        self.printed += 1
        if self.printed == self.count:
            self.enough.set()

    def gap(self, gap: Gap) -> None:
        self.gaps += 1
        self.output.note(
            f"{gap.channel}: messages after {gap.since.epoch}:{gap.since.offset} are lost, the next"
            f" come after {gap.top.epoch}:{gap.top.offset}"
        )

    @property
    def verdict(self) -> Exit:
        """Whether everything came that was asked for."""
        short = self.count is not None and self.printed < self.count
        return Exit.NO if short or self.gaps else Exit.OK


async def _subscribe(
    address: str,
    channels: Sequence[str],
    since: Position | None,
    wait_s: float | None,
    printer: Printer,
) -> Exit:
    from gateway.client import AsyncClient

    async with AsyncClient(address, name="tidegate subscribe") as client:
        tasks = [
            asyncio.create_task(_print_channel(client, channel, since, printer))
            for channel in dict.fromkeys(channels)
        ]
        tasks.append(asyncio.create_task(_until(printer, wait_s)))
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()
    return printer.verdict


async def _print_channel(
    client: AsyncClient, channel: str, since: Position | None, printer: Printer
) -> None:
    from gateway.client import Gap

    async for event in await client.subscribe(channel, since=since):
        if isinstance(event, Gap):
            printer.gap(event)
        else:
            printer.message(event)


async def _until(printer: Printer, wait_s: float | None) -> None:
    try:
        async with asyncio.timeout(wait_s):
            await printer.enough.wait()
    except TimeoutError:
        return


def _position(since: str | None) -> Position | None:
    from gateway.client import Position

    if since is None:
        return None
    epoch, _, offset = since.rpartition(":")
    if not epoch or not offset.isdecimal():
        raise click.UsageError(f"--since {since}: write EPOCH:OFFSET, as messages are printed with")
    return Position(epoch, int(offset))


def _as_map(message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "channel": message.channel,
        "epoch": message.epoch,
        "offset": message.offset,
    }
    if message.binary:
        shown["b64data"] = base64.b64encode(message.data).decode()
    else:
        shown["data"] = message.value
    return shown | ({"tags": message.tags} if message.tags else {})


COMMANDS = [publish, subscribe]
