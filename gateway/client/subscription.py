"""What an application sees of a channel, over any number of connections. No I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gateway.client.frames import CloseCode, Violation
from gateway.client.payloads import Delivery, Position, Subscribed

# No epoch is called so.
NOWHERE = Position("_", 0)


@dataclass(frozen=True, slots=True)
class Message:
    """A publication."""

    channel: str
    epoch: str
    offset: int
    data: bytes
    # Whether `data` is anything but JSON text.
    binary: bool
    tags: dict[str, str]

    @property
    def position(self) -> Position:
        """Subscribe with it to go on after this message."""
        return Position(self.epoch, self.offset)

    @property
    def value(self) -> Any:
        """The data decoded: any JSON value, or bytes if it is binary."""
        return self.data if self.binary else json.loads(self.data)


@dataclass(frozen=True, slots=True)
class Gap:
    """Publications after `since` were lost for good: fetch the state from where it is kept.

    The messages that follow come after `top`.
    """

    channel: str
    since: Position
    top: Position

    @property
    def position(self) -> Position:
        """Subscribe with it to go on after the gap."""
        return self.top


class Cursor:
    """Where a subscription is in its channel: nothing is shown twice, nothing missed in silence."""

    def __init__(self, channel: str, since: Position | None) -> None:
        self.channel = channel
        # The last publication shown, or None before the first answer.
        self.position = since

    def subscribed(self, answer: Subscribed) -> Gap | None:
        """Take the answer to SUBSCRIBE; a `Gap` if something was lost in between."""
        since, top = self.position, answer.top
        if since is not None and answer.recovered:
            self.position = Position(top.epoch, since.offset)
            return None
        self.position = top
        return None if since is None or since == top else Gap(self.channel, since, top)

    def invalidate(self) -> None:
        """The position is worth nothing any more: the next answer cannot but tell a gap."""
        if self.position is not None:
            self.position = NOWHERE

    def advance(self, delivery: Delivery) -> Message | None:
        """The message to show, or None if it has been shown already.

        Raises `Violation` 3010 if the server has left one out.
        """
        if self.position is None or delivery.offset <= self.position.offset:
            return None
        if delivery.offset != self.position.offset + 1:
            raise Violation(CloseCode.INSUFFICIENT_STATE, "insufficient state")
        epoch = self.position.epoch
        self.position = Position(epoch, delivery.offset)
        tags = _tags(delivery.tags) if delivery.tags else {}
        return Message(self.channel, epoch, delivery.offset, delivery.data, delivery.binary, tags)


def _tags(text: str) -> dict[str, str]:
    try:
        tags = json.loads(text)
    except ValueError:
        tags = None
    if not isinstance(tags, dict):
        raise Violation(CloseCode.BAD_PAYLOAD, "tags are not a JSON object")
    return tags
