"""Which channels there are, and whose rules hold for them: one rule for all that back ends ask."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from gateway.errors import PublishError
from shm._ring import CHANNEL_BYTES_MAX
from workers.settings import NamespaceSettings

# Numbers of the client API's errors.
STATUS_UNKNOWN_CHANNEL = 102
STATUS_BAD_REQUEST = 107

PRIVATE_PREFIX = "$"
"""Marks a channel that needs a token to subscribe; it is no part of the namespace."""

ALTERNATIVES_MAX = 64
"""Patterns that the braces of one glob may stand for."""


class Namespaces:
    """The rules of all channels, by namespace."""

    def __init__(self, namespaces: Iterable[NamespaceSettings]) -> None:
        self._rules: Mapping[str, NamespaceSettings] = {each.name: each for each in namespaces}
        self._patterns = {
            name: re.compile(rules.channel_regex)
            for name, rules in self._rules.items()
            if rules.channel_regex
        }

    def rules(self, channel: str | None) -> NamespaceSettings:
        """What holds for `channel`. Raises PublishError: 107 no name for one, 102 no namespace."""
        if not channel:
            raise _bad("channel: required")
        if not channel.isascii():
            raise _bad("channel: only ASCII characters are allowed")
        if len(channel) > CHANNEL_BYTES_MAX:
            raise _bad(f"channel: {len(channel)} bytes, at most {CHANNEL_BYTES_MAX}")
        namespace, colon, rest = channel.removeprefix(PRIVATE_PREFIX).partition(":")
        if not colon:
            namespace, rest = "", namespace
        rules = self._rules.get(namespace) if namespace or not colon else None
        if rules is None:
            known = ", ".join(name for name in self._rules if name) or "none"
            raise PublishError(
                f"unknown channel: namespace {namespace!r} is not in the configuration "
                "(channel.namespaces)",
                remedy=f"known namespaces: {known}; or leave out the colon",
                code="unknown_channel",
                status=STATUS_UNKNOWN_CHANNEL,
            )
        pattern = self._patterns.get(namespace)
        if pattern is not None and not pattern.search(rest):
            raise _bad("channel: does not match the channel_regex of its namespace")
        return rules


def glob(pattern: str) -> re.Pattern[str]:
    """What matches a channel's whole name: `*`, `?`, `[abc]`, `[!abc]` and `{one,other}`.

    Raises PublishError with status 107 for braces that stand for too many patterns.
    """
    return re.compile("|".join(fnmatch.translate(each) for each in _alternatives(pattern)))


def _alternatives(pattern: str) -> list[str]:
    """The patterns without braces that one with braces stands for."""
    done, waiting = [], [pattern]
    while waiting:
        each = waiting.pop()
        braces = re.search(r"\{([^{}]*)\}", each)
        if braces is None:
            done.append(each)
        else:
            head, tail = each[: braces.start()], each[braces.end() :]
            waiting += [f"{head}{choice}{tail}" for choice in braces[1].split(",")]
        if len(done) + len(waiting) > ALTERNATIVES_MAX:
            raise _bad(f"pattern: stands for more than {ALTERNATIVES_MAX} patterns")
    return done


def _bad(reason: str) -> PublishError:
    return PublishError(f"bad request: {reason}", status=STATUS_BAD_REQUEST)
