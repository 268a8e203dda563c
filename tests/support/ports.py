"""Ports at which nobody answers, and nobody will."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port that refuses connections.

    It is bound for the length of the block: one that is merely closed is soon another process's.
    """
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])
