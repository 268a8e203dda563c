"""What the API can say of the whole gateway, from statistics alone: no process is asked."""

from __future__ import annotations

import time
from typing import Any

from gateway.api.settings import ApiSettings
from shm import _ring
from shm.stats import family_total

SILENCE_MAX_S = 3.0
"""A process whose heartbeat is older is taken as not serving. Publisher and workers beat several
times a second even when idle; the supervisor replaces a silent one later than this."""


class Readiness:
    """Answers `/health` and the `info` method."""

    def __init__(self, stats: _ring.Stats, settings: ApiSettings) -> None:
        self._stats = stats
        self._settings = settings

    def problem(self) -> str:
        """Why a publish would not reach clients now, in one line; empty if it would."""
        beating = {row["role"] for row in self._stats.rows() if _beats(row)}
        if _ring.ROLE_PUBLISHER not in beating:
            return "the publisher does not answer"
        if _ring.ROLE_WORKER not in beating:
            return "no worker serves"
        return ""

    def nodes(self) -> list[dict[str, Any]]:
        """This gateway as the one node of its cluster, in the form of the `info` method."""
        return [
            {
                "uid": self._settings.node,
                "name": self._settings.instance,
                "version": self._settings.version,
                "num_clients": family_total(self._stats, "connections"),
                # A user with connections at two workers counts at both, as does a channel with
                # subscribers at both.
                "num_users": family_total(self._stats, "worker_users"),
                "num_subs": family_total(self._stats, "subscriptions"),
                "num_channels": family_total(self._stats, "worker_channels"),
                "uptime": int(time.monotonic() - self._settings.started_s),
            }
        ]


def _beats(row: _ring.Row) -> bool:
    return time.monotonic_ns() - row["heartbeat_ns"] < SILENCE_MAX_S * 1e9
