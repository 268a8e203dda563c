"""What the API is told at its start: plain values only, so that they travel over the link.

Beside these, `boot` brings the descriptors `listener` (bound and listening; the supervisor holds
it, so that a restart of the API refuses nobody) and those of the segments that it reads: `stats`,
`channels`, `history` and `presence`. The API answers `ready` once every one
of its workers serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from workers import log
from workers.settings import NamespaceSettings, namespaces_of, rows_of

__all__ = ["ApiSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Everything the API needs to know besides its descriptors."""

    # Who this is.
    instance: str
    version: str
    node: str
    """UUID of the gateway, as clients see it."""
    started_s: float
    """When the supervisor started, by CLOCK_MONOTONIC, which all processes of a host share."""

    # How it serves.
    control_path: str
    """The supervisor's control socket, where each API worker gets its uplink."""
    key: str
    """The secret that callers show."""
    workers: int
    threads: int
    """Requests served at a time by one worker."""
    namespaces: tuple[NamespaceSettings, ...]
    """The rules of all channels; what names a channel of another namespace is refused."""
    message_bytes_max: int
    """Of one publication's data."""
    stats_row: int
    """The first of the API's rows in the statistics segment: its own, then one a worker."""

    # How it logs; as in `workers.log.configure`.
    log_format: log.Format
    log_level: str
    log_file: str

    def as_map(self) -> dict[str, Any]:
        """The settings as a map of plain values, for the link."""
        return asdict(self) | {"namespaces": rows_of(self.namespaces)}

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> ApiSettings:
        """The settings of a map that `as_map` made, perhaps after a way through msgpack.

        Raises TypeError naming the keys when one is unknown or missing: supervisor and API are then
        not of the same version.
        """
        known = {field.name for field in fields(cls)}
        if odd := known.symmetric_difference(values):
            raise TypeError(f"API settings of another version: {', '.join(sorted(odd))}")
        return cls(**{**values, "namespaces": namespaces_of(values["namespaces"])})
