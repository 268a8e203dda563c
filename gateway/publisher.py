"""The publisher's process: the only writer of the log.

Everything it does per message is Rust (`shm._ring.Sequencer`). This shell boots it and turns the
supervisor's messages into attached and detached readers and uplinks.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from shm import _ring
from workers import child, log
from workers.link import Link, LinkClosed, LinkError, close_all, named_descriptors

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherSettings:
    """Everything the publisher needs to know besides its descriptors."""

    stats_row: int
    """Row in the statistics segment."""
    generation: int
    """Counts the publishers of this instance: 1, 2, ..."""
    lag_budget_ms: int
    """How long a batch waits for lagging readers before the slowest is evicted."""
    history: Sequence[_ring.HistoryRule]
    """Which namespaces keep how much of what was published to their channels."""
    log_format: log.Format
    log_level: str
    log_file: str
    """Path, or "" for standard error."""

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> PublisherSettings:
        """Take what the link brought. Raises KeyError, TypeError, ValueError where it is amiss."""
        taken = {field.name: values[field.name] for field in fields(cls)}
        taken["history"] = tuple(
            (str(namespace), int(size), float(ttl_s)) for namespace, size, ttl_s in taken["history"]
        )
        return cls(**taken)

    def as_map(self) -> dict[str, Any]:
        return asdict(self)


def main() -> int:
    """Serve until the supervisor says stop, or is gone. Returns the exit status."""
    link = child.begin()
    try:
        sequencer = _boot(link)
        if sequencer is None:
            return EXIT_FAILED
        link.send({"type": "ready"})
        _serve(link, sequencer)
    except LinkClosed:
        # The supervisor is gone: nobody would take the requests that are still in flight.
        return EXIT_FAILED
    except LinkError as error:
        logger.error("the link to the supervisor is broken", extra={"reason": error})
        return EXIT_FAILED
    except (_ring.RingError, OSError) as error:
        # Its successor takes over from shared memory, as after any other death.
        logger.exception("the publisher cannot go on")
        link.send({"type": "failed", "code": _code(error), "message": str(error)})
        return EXIT_FAILED
    return EXIT_OK


def _boot(link: Link) -> _ring.Sequencer | None:
    message, fds = link.recv()
    if message["type"] == "stop":
        close_all(fds)
        return None
    named = named_descriptors(message, fds)
    settings = PublisherSettings.from_map(message["settings"])
    log.configure(
        "publisher", form=settings.log_format, level=settings.log_level, path=settings.log_file
    )
    try:
        return _ring.Sequencer(
            named["log"],
            named["channels"],
            named["history"],
            named["presence"],
            named["stats"],
            named["wake"],
            settings,
            message["uplinks"],
        )
    except (_ring.RingError, OSError) as error:
        logger.error("the publisher cannot start", extra={"reason": error})
        link.send({"type": "failed", "code": _code(error), "message": str(error)})
        return None
    finally:
        close_all(fds)


def _serve(link: Link, sequencer: _ring.Sequencer) -> None:
    link.setblocking(False)
    while True:
        for uplink in sequencer.run(link.fileno()):
            logger.error("uplink dropped: its producer damaged it", extra={"uplink": uplink})
            link.send({"type": "uplink_detached", "id": uplink})
        while (received := _receive(link)) is not None:
            message, fds = received
            try:
                if message["type"] == "stop":
                    sequencer.drain()
                    return
                _handle(link, sequencer, message, fds)
            finally:
                close_all(fds)


def _receive(link: Link) -> tuple[dict[str, Any], list[int]] | None:
    try:
        return link.recv()
    except BlockingIOError:
        return None


def _handle(
    link: Link, sequencer: _ring.Sequencer, message: dict[str, Any], fds: list[int]
) -> None:
    match message:
        case {"type": "attach_reader", "seat": int(seat)}:
            sequencer.attach_reader(seat, named_descriptors(message, fds)["wake"])
        case {"type": "detach_reader", "seat": int(seat)}:
            sequencer.detach_reader(seat)
        case {"type": "attach_uplink", "id": int(uplink)}:
            named = named_descriptors(message, fds)
            try:
                sequencer.attach_uplink(uplink, named["uplink"], named["reply_wake"])
            except (_ring.RingError, OSError) as error:
                # One producer's broken segment is no reason to stop serving the others, nor to go
                # on waiting for it.
                logger.warning("uplink refused", extra={"uplink": uplink, "reason": error})
                sequencer.detach_uplink(uplink)
                link.send({"type": "uplink_detached", "id": uplink})
        case {"type": "detach_uplink", "id": int(uplink)}:
            sequencer.detach_uplink(uplink)
            link.send({"type": "uplink_detached", "id": uplink})
        case {"type": "reopen_logs"}:
            log.reopen()
        case _:
            logger.warning("unknown message on the link", extra={"type": message["type"]})


def _code(error: Exception) -> str:
    return error.code if isinstance(error, _ring.RingError) else "system"


if __name__ == "__main__":
    sys.exit(main())
