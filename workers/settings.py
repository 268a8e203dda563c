"""What one worker is told at its start: plain values only, so that they travel over the link.

`gateway` derives these from the configuration; `workers._engine` reads them once, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from workers import log

__all__ = ["NamespaceSettings", "WorkerSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSettings:
    """The rules of the channels whose name begins with `<name>:`."""

    name: str
    """Text before the first colon; empty: the rules of channels without a namespace."""
    allow_subscribe_for_client: bool
    """Whether a client may subscribe without a token."""
    allow_publish_for_client: bool
    """Whether a client may publish."""
    recovery: bool
    """Whether a subscription may ask for what it missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Everything a worker needs to know besides its descriptors."""

    # Who this worker is.
    instance: str
    version: str
    node: str
    """UUID of the gateway, as clients see it."""
    slot: int
    generation: int
    seat: int
    """Reader seat in the log."""
    stats_row: int
    """Row in the statistics segment."""
    cpus: tuple[int, ...]
    """CPUs to run on; empty: any."""
    memory_node: int
    """NUMA node that memory is preferred from; -1: no preference."""

    log_format: log.Format
    log_level: str
    log_file: str
    """Path, or "" for standard error."""

    # What clients may take. Bounds, each with its unit.
    connections_max: int
    message_bytes_max: int
    queue_hard_bytes: int
    queue_soft_bytes: int
    queue_soft_s: float
    channels_per_connection_max: int
    handshake_timeout_s: float
    header_bytes_max: int
    headers_max: int
    accepts_per_turn_max: int
    engine: Literal["auto", "epoll", "io_uring"]
    """What sends to clients: io_uring for many at once, where it can be; or a call for each."""
    batch_delay_us: int
    """How long publications wait for more of them, to leave together."""
    recovery_publications_max: int
    close_timeout_s: float

    # Life signs.
    websocket_ping_interval_s: float
    websocket_pong_timeout_s: float
    tcp_heartbeat_interval_s: float
    tcp_heartbeat_timeout_s: float

    # Who may do what.
    allowed_origins: tuple[str, ...]
    """Origins that browsers may come from; empty: only requests without Origin; `*`: all."""
    namespaces: tuple[NamespaceSettings, ...]

    def as_map(self) -> dict[str, Any]:
        """The settings as a map of plain values, for the link."""
        return asdict(self)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> WorkerSettings:
        """The settings of a map that `as_map` made, perhaps after a way through msgpack.

        Raises TypeError naming the keys when one is unknown or missing: supervisor and worker are
        then not of the same version.
        """
        known = {field.name for field in fields(cls)}
        if odd := known.symmetric_difference(values):
            raise TypeError(f"worker settings of another version: {', '.join(sorted(odd))}")
        return cls(
            **{
                **values,
                "cpus": tuple(values["cpus"]),
                "allowed_origins": tuple(values["allowed_origins"]),
                "namespaces": tuple(NamespaceSettings(**each) for each in values["namespaces"]),
            }
        )
