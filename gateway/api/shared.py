"""What the API reads in shared memory without asking any process: histories and presence."""

from __future__ import annotations

import base64
from typing import Any

from msgspec import Raw

from gateway.api import requests
from shm import _ring


class SharedState:
    """Views of the segments, in the shapes of the API's answers."""

    def __init__(self, channels_fd: int, history_fd: int, presence_fd: int) -> None:
        self._history = _ring.History(history_fd, channels_fd)
        self._presence = _ring.Presence(presence_fd, channels_fd)

    def presence(self, channel: str) -> dict[str, Any]:
        """Who is in the channel, by client."""
        return {each["client"]: _client_info(each) for each in self._presence.members(channel)}

    def presence_stats(self, channel: str) -> tuple[int, int]:
        """How many clients are in the channel, and of how many users."""
        return self._presence.stats(channel)

    def history(self, channel: str, request: requests.History) -> dict[str, Any]:
        """The channel's newest position, and the publications that were asked for.

        Raises PublishError: 107 backwards from nowhere, 112 from a position of another epoch.
        """
        epoch, offset = self._history.top(channel)
        since = request.since
        if since is not None and since.epoch and since.epoch != epoch:
            raise requests.refusal(
                requests.UNRECOVERABLE_POSITION, f"since: the channel's epoch is {epoch!r}"
            )
        if request.reverse and since is not None and not since.offset:
            raise requests.refusal(
                requests.BAD_REQUEST, "since: nothing comes before offset 0, with reverse"
            )
        publications = []
        if request.limit:
            publications = self._history.read(
                channel,
                since.offset if since is not None else None,
                request.limit if request.limit > 0 else None,
                request.reverse,
            )
        return {
            "publications": [_publication(each) for each in publications],
            "epoch": epoch,
            "offset": offset,
        }


def _publication(publication: _ring.Publication) -> dict[str, Any]:
    data = publication["data"]
    shown: dict[str, Any] = {
        "offset": publication["offset"],
        # Bytes that no JSON can hold are told in base64, as they may have come.
        "data": base64.b64encode(data).decode() if publication["binary"] else Raw(data),
    }
    if publication["tags"]:
        shown["tags"] = Raw(publication["tags"])
    if publication["info"] is not None:
        shown["info"] = _client_info(publication["info"])
    return shown


def _client_info(info: _ring.ClientInfo) -> dict[str, Any]:
    shown: dict[str, Any] = {"user": info["user"], "client": info["client"]}
    for key in ("conn_info", "chan_info"):
        if value := info[key]:
            shown[key] = Raw(value)
    return shown
