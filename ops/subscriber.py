"""What `tidegate subscribe` does once its options are read: a client that prints what comes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gateway.client import AsyncClient, Gap, Message, Position
from ops.output import Exit, Output


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
        if self.output.as_json:
            places = {"since": asdict(gap.since), "top": asdict(gap.top)}
            self.output.data({"channel": gap.channel, "gap": places})
        self.output.note(
            f"{gap.channel}: messages after {gap.since.epoch}:{gap.since.offset} are lost, the next"
            f" come after {gap.top.epoch}:{gap.top.offset}"
        )

    @property
    def verdict(self) -> Exit:
        """Whether everything came that was asked for."""
        short = self.count is not None and self.printed < self.count
        return Exit.NO if short or self.gaps else Exit.OK


async def print_channels(
    address: str,
    channels: Sequence[str],
    since: tuple[str, int] | None,
    wait_s: float | None,
    printer: Printer,
) -> Exit:
    """Prints until the printer has enough or `wait_s` is over; `since` is an (epoch, offset).

    Raises TidegateError where the gateway cannot be reached or refuses a channel.
    """
    position = Position(*since) if since else None
    async with AsyncClient(address, name="tidegate subscribe") as client:
        tasks = [
            asyncio.create_task(_print_channel(client, channel, position, printer))
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
