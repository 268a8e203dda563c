"""The supervisor's own uplink, for the verb `publish`: a person's message now and then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.channels import Namespaces
from gateway.config import derived
from gateway.errors import PublishError
from gateway.producer import STATUS_BAD_REQUEST, STATUS_INTERNAL
from gateway.runtime import Runtime
from gateway.uplinks import Uplink
from shm import _ring

REPLY_TIMEOUT_S = 5.0
"""A publisher that was killed is back within a second; then the answer comes all the same."""
POLL_INTERVAL_S = 0.002
"""Replies are polled while some are due: that is simpler than a wake-up, and people do not mind."""
PENDING_MAX = 1024
"""Each control connection has one request under way, so this is never reached by honest ones."""

# Numbers of the client API's errors, beside the producer's.
STATUS_TOO_MANY_REQUESTS = 111

OnReply = Callable[[dict[str, Any] | PublishError], None]


@dataclass(frozen=True, slots=True)
class Pending:
    """A publish that was handed over and not answered yet."""

    on_reply: OnReply
    deadline: float


class Publishing:
    """Publishes for control clients; the uplink is made at the first publish."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._producer: _ring.Producer | None = None
        self._lent: Uplink | None = None
        self._awaited: dict[int, Pending] = {}

    def publish(
        self, channel: str, data: Any, tags: dict[str, str], key: str, on_reply: OnReply
    ) -> None:
        """Hands one message over; `on_reply` gets `{epoch, offset}` or an error later.

        `data` that is bytes is published as bytes, anything else as JSON. Raises PublishError.
        """
        Namespaces(derived.namespaces(self._runtime.config.channel)).rules(channel)
        if len(self._awaited) >= PENDING_MAX:
            raise PublishError(
                "too many publishes are under way",
                remedy="wait, or use an uplink",
                status=STATUS_TOO_MANY_REQUESTS,
            )
        binary = isinstance(data, bytes)
        body = data if binary else _as_json(data)
        message_bytes_max = self._runtime.config.limits.message_bytes_max
        if len(body) > message_bytes_max:
            raise PublishError(
                f"a message of {len(body)} bytes is above limits.message_bytes_max = "
                f"{message_bytes_max}",
                remedy="send less, or raise the limit",
                code="too_large",
                status=STATUS_BAD_REQUEST,
            )
        try:
            number = self._uplink().publish(
                channel,
                body,
                tags=msgspec.json.encode(tags) if tags else None,
                idempotency_key=key or None,
                binary=binary,
            )
        except _ring.RingError as error:
            raise PublishError(
                error.message, remedy=error.remedy, code=error.code, status=STATUS_BAD_REQUEST
            ) from error
        if not self._awaited:
            self._runtime.loop.after(POLL_INTERVAL_S, self._poll)
        self._awaited[number] = Pending(on_reply, time.monotonic() + REPLY_TIMEOUT_S)

    @property
    def pending(self) -> bool:
        return bool(self._awaited)

    def close(self) -> None:
        """Gives the uplink back, when nothing is pending; the next publish takes another one."""
        if self._lent is not None:
            self._runtime.uplinks.reclaim(self._lent)
        self._producer = self._lent = None

    def _uplink(self) -> _ring.Producer:
        if self._producer is None:
            runtime = self._runtime
            wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                self._lent = runtime.uplinks.open(runtime.config, "control socket", wake)
                self._producer = _ring.Producer(
                    self._lent.segment.fd, runtime.memory.publisher_wake, wake
                )
            finally:
                os.close(wake)
        return self._producer

    def _poll(self) -> None:
        assert self._producer is not None
        for number, status, epoch, offset in self._producer.replies(0.0):
            if (pending := self._awaited.pop(number, None)) is not None:
                pending.on_reply(
                    {"epoch": epoch, "offset": offset} if status == 0 else _refused(status)
                )
        now = time.monotonic()
        for number in [n for n, pending in self._awaited.items() if pending.deadline <= now]:
            self._awaited.pop(number).on_reply(
                PublishError(
                    f"the publisher did not answer within {REPLY_TIMEOUT_S:g} s",
                    remedy="look at `tidegate status`; the message may still be published",
                    code="timeout",
                    status=STATUS_INTERNAL,
                )
            )
        if self._awaited:
            self._runtime.loop.after(POLL_INTERVAL_S, self._poll)


def _as_json(data: Any) -> bytes:
    try:
        return msgspec.json.encode(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise PublishError(
            f"data cannot be written as JSON ({error})",
            remedy="send what JSON has, or bytes",
            code="bad_request",
            status=STATUS_BAD_REQUEST,
        ) from error


def _refused(status: int) -> PublishError:
    return PublishError(
        f"the publisher refused the message (error {status})",
        remedy="raise log.channels_max if it is 106; see the log otherwise",
        code=f"status_{status}",
        status=status,
    )
