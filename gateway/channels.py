"""Which channels there are to publish to: one rule for the HTTP API and the control socket."""

from __future__ import annotations

from collections.abc import Collection

from gateway.errors import PublishError
from shm._ring import CHANNEL_BYTES_MAX

# Numbers of the client API's errors.
STATUS_UNKNOWN_CHANNEL = 102
STATUS_BAD_REQUEST = 107

PRIVATE_PREFIX = "$"
"""Marks a channel that needs a token to subscribe; it is no part of the namespace."""


def check_channel(channel: str | None, namespaces: Collection[str]) -> str:
    """The channel, if one may publish to it. Raises PublishError with status 107 or 102."""
    if not channel:
        raise _bad("channel: required")
    if not channel.isascii():
        raise _bad("channel: only ASCII characters are allowed")
    if len(channel) > CHANNEL_BYTES_MAX:
        raise _bad(f"channel: {len(channel)} bytes, at most {CHANNEL_BYTES_MAX}")
    namespace, colon, _ = channel.removeprefix(PRIVATE_PREFIX).partition(":")
    if colon and namespace not in namespaces:
        known = ", ".join(name for name in namespaces if name) or "none"
        raise PublishError(
            f"unknown channel: namespace {namespace!r} is not in the configuration "
            "(channel.namespaces)",
            remedy=f"known namespaces: {known}; or leave out the colon",
            code="unknown_channel",
            status=STATUS_UNKNOWN_CHANNEL,
        )
    return channel


def _bad(reason: str) -> PublishError:
    return PublishError(f"bad request: {reason}", status=STATUS_BAD_REQUEST)
