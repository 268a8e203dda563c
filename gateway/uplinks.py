"""Uplinks: one ring from each producer to the publisher, lent for as long as the producer lives."""

from __future__ import annotations

import itertools
import logging
import os
from dataclasses import dataclass
from typing import Any

from gateway.carrying import Keep, Take
from gateway.children import Child
from gateway.config import Config
from gateway.memory import Memory, make_uplink
from shm.segment import Owner, Segment

logger = logging.getLogger("tidegate.uplinks")


@dataclass(slots=True)
class Uplink:
    """One producer's ring. Its life: lent, then leaving, then gone when the publisher let go."""

    id: int
    segment: Segment
    reply_wake: int
    """Our copy of the eventfd that the publisher writes when the producer sleeps."""
    holder: str
    """Who publishes through it, for the log."""
    leaving: bool = False


class Uplinks:
    """All uplinks of the instance, told to whichever publisher is alive."""

    def __init__(self, memory: Memory, owner: Owner) -> None:
        self._memory = memory
        self._owner = owner
        self._ids = itertools.count(1)
        self._open: dict[int, Uplink] = {}
        self._publisher: Child | None = None

    def carried(self, keep: Keep) -> dict[str, Any]:
        """What `restore` needs; afterwards this object may still be used."""
        next_id = next(self._ids)
        self._ids = itertools.count(next_id)
        return {
            "next_id": next_id,
            "open": [
                {
                    "id": uplink.id,
                    "name": uplink.segment.name,
                    "fd": keep(uplink.segment.fd),
                    "reply_wake": keep(uplink.reply_wake),
                    "holder": uplink.holder,
                    "leaving": uplink.leaving,
                }
                for uplink in self._open.values()
            ],
        }

    @classmethod
    def restore(cls, state: dict[str, Any], take: Take, memory: Memory, owner: Owner) -> Uplinks:
        uplinks = cls(memory, owner)
        uplinks._ids = itertools.count(state["next_id"])
        for each in state["open"]:
            segment = Segment(each["name"], take(each["fd"]))
            uplinks._open[each["id"]] = Uplink(
                each["id"], segment, take(each["reply_wake"]), each["holder"], each["leaving"]
            )
        return uplinks

    def named(self, number: int) -> Uplink:
        """The open uplink of that id. Raises KeyError."""
        return self._open[number]

    def __len__(self) -> int:
        return len(self._open)

    def ids(self) -> list[int]:
        """The uplinks that `publisher_started` attaches."""
        return list(self._open)

    def open(self, config: Config, holder: str, reply_wake: int) -> Uplink:
        """Makes an uplink and attaches it. Raises InstanceError where memory is short."""
        number = next(self._ids)
        segment = make_uplink(config, self._owner, number)
        uplink = Uplink(number, segment, os.dup(reply_wake), holder)
        self._open[number] = uplink
        self._memory.row.add("uplinks_opened_total")
        self._memory.row.set("uplinks_open", len(self._open))
        if self._publisher is not None:
            self._attach(self._publisher, uplink)
        return uplink

    def reclaim(self, uplink: Uplink) -> None:
        """The producer is gone: the publisher takes what it committed, then the ring goes."""
        if uplink.leaving or uplink.id not in self._open:
            return
        uplink.leaving = True
        if self._publisher is not None:
            self._publisher.send("detach_uplink", id=uplink.id)

    def publisher_started(self, publisher: Child) -> None:
        """Attaches everything anew, the leaving ones too: what they committed is not lost."""
        self._publisher = publisher
        for uplink in self._open.values():
            self._attach(publisher, uplink)
        # Last: before the clients of one leave, it has to hear from all which of them have moved.
        for uplink in self._open.values():
            if uplink.leaving:
                publisher.send("detach_uplink", id=uplink.id)

    def publisher_stayed(self, publisher: Child) -> None:
        """It has them all already, and knows of those that leave."""
        self._publisher = publisher

    def publisher_gone(self, publisher: Child) -> None:
        if self._publisher is publisher:
            self._publisher = None

    def detached(self, number: int) -> None:
        """The publisher let go of an uplink."""
        uplink = self._open.pop(number, None)
        if uplink is None:
            return
        if not uplink.leaving:
            logger.error("the publisher refused an uplink", extra={"holder": uplink.holder})
        self._memory.row.add("uplinks_reclaimed_total")
        self._memory.row.set("uplinks_open", len(self._open))
        self._free(uplink)

    def close(self) -> None:
        """The instance ends: every ring goes, whoever still holds it."""
        for uplink in self._open.values():
            self._free(uplink)
        self._open.clear()

    def _free(self, uplink: Uplink) -> None:
        uplink.segment.unlink()
        os.close(uplink.reply_wake)

    def _attach(self, publisher: Child, uplink: Uplink) -> None:
        fds = {"uplink": uplink.segment.fd, "reply_wake": uplink.reply_wake}
        publisher.send("attach_uplink", fds, id=uplink.id)
