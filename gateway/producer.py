"""Publishing from a Python process on the gateway's host, through shared memory.

    with Producer() as producer:
        published = producer.publish("public:news", {"text": "hello"})

A producer asks the control socket for an uplink of its own. From then on a publish is a write to
shared memory: no system call while the publisher is awake, and none for many publishes in a row.
"""

from __future__ import annotations

import itertools
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from gateway.control.client import ControlClient
from gateway.errors import PublishError, TidegateError, Unreachable
from shm import _ring
from workers.link import close_all, named_descriptors

TIMEOUT_S = 10.0
"""How long a publish waits for room and for its answer; a killed publisher is back much sooner."""

CONNECTION_LOOK_S = 0.5
"""Who publishes, or waits for an answer, looks so often whether the gateway is still there."""

ROOM_LOOKS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005)
"""Pauses between looks for room in a full uplink; the last is repeated."""

VERSION_MAX = (1 << 64) - 1

# Numbers of the client API's errors.
STATUS_INTERNAL = 100
STATUS_LIMIT_EXCEEDED = 106
STATUS_BAD_REQUEST = 107

_REFUSALS = {
    STATUS_LIMIT_EXCEEDED: (
        "limit_exceeded",
        "the channel table is full, or the message is too long for the log",
        "raise log.channels_max, or log.capacity_bytes; or publish less",
    ),
    STATUS_BAD_REQUEST: (
        "bad_request",
        "the publisher found the request malformed",
        "use a producer of the gateway's own release",
    ),
}


@dataclass(frozen=True, slots=True)
class Published:
    """The place of a published message in its channel."""

    epoch: str
    offset: int


class Producer:
    """Publishes to one gateway. For any number of threads; lives through restarts of the publisher.

    `control_path` names the gateway's control socket; None: the one instance on this host. Raises
    Unreachable where no gateway answers, ControlError where it lends no uplink. After the gateway
    itself was restarted, the next publish gets a new uplink.
    """

    def __init__(self, control_path: Path | str | None = None) -> None:
        self._control_path = control_path
        self._lock = threading.Lock()
        self._lease: _Lease | None = _Lease(control_path)

    def publish(
        self,
        channel: str,
        data: bytes | object,
        *,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        skip_history: bool = False,
        version: int = 0,
        version_epoch: str | None = None,
        delta: bool = False,
        binary: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> Published:
        """Publish one message and return its place once it is in the log.

        `data` is JSON text as bytes, any bytes where `binary`, or any other object that becomes
        JSON. `skip_history`: only for those who are there now, without an offset. `version`: not
        published unless it is above that of the channel's newest, whose place is returned then, or
        that one was of another `version_epoch`. `delta`: subscribers that asked for it get the
        difference to the one before. Raises PublishError: refused, no room or no answer in time;
        Unreachable: the gateway is gone. After a timeout the message may still be published: repeat
        it with the same `idempotency_key`.
        """
        pending = self.begin(
            channel,
            data,
            tags=tags,
            idempotency_key=idempotency_key,
            skip_history=skip_history,
            version=version,
            version_epoch=version_epoch,
            delta=delta,
            binary=binary,
            timeout_s=timeout_s,
        )
        return pending.result()

    def begin(
        self,
        channel: str,
        data: bytes | object,
        *,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        skip_history: bool = False,
        version: int = 0,
        version_epoch: str | None = None,
        delta: bool = False,
        binary: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> Pending:
        """As `publish`, but the answer is waited for later, by `result` of what this returns.

        So many messages are under way together, in their order. Each `result` must be called: other
        threads may count on this one for their answers.
        """
        message = _Message.of(
            channel,
            data,
            tags,
            idempotency_key,
            skip_history,
            version,
            version_epoch,
            delta,
            binary,
        )
        return self._current().begin(message.hand_over, time.monotonic() + timeout_s)

    def publish_nowait(
        self,
        channel: str,
        data: bytes | object,
        *,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        skip_history: bool = False,
        version: int = 0,
        version_epoch: str | None = None,
        delta: bool = False,
        binary: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """As `publish`, but without an answer: for throughput, where a refusal need not be known.

        Waits only where the uplink is full.
        """
        message = _Message.of(
            channel,
            data,
            tags,
            idempotency_key,
            skip_history,
            version,
            version_epoch,
            delta,
            binary,
        )
        self._current().hand_over(message.hand_over, time.monotonic() + timeout_s, None)

    def order(self, order: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Let all workers have an order, the text of a JSON object. Raises as `publish` does."""

        def hand_over(uplink: _ring.Producer, want_reply: bool) -> int:
            return uplink.order(order, want_reply=want_reply)

        self._current().begin(hand_over, time.monotonic() + timeout_s).result()

    def history_remove(self, channel: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Forget what was published to a channel; epoch and offsets go on. Raises as `publish`."""

        def hand_over(uplink: _ring.Producer, want_reply: bool) -> int:
            return uplink.history_remove(channel, want_reply=want_reply)

        self._current().begin(hand_over, time.monotonic() + timeout_s).result()

    def close(self) -> None:
        """Give the uplink back. What was published before is still taken."""
        with self._lock:
            if self._lease is not None:
                self._lease.end(
                    PublishError("the producer was closed", remedy="make a new one", code="closed")
                )
            self._lease = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _current(self) -> _Lease:
        lease = self._lease
        if lease is not None and lease.ended is None:
            return lease
        with self._lock:
            if self._lease is None:
                raise PublishError("the producer is closed", remedy="make a new one", code="closed")
            if self._lease.ended is not None:
                self._lease = _Lease(self._control_path)
            return self._lease


_Request = Callable[[_ring.Producer, bool], int]
"""Hands one request over, with or without a reply to come; returns its id."""


@dataclass(frozen=True, slots=True)
class _Message:
    channel: str
    data: bytes
    tags: bytes | None
    idempotency_key: str | None
    skip_history: bool
    version: int
    version_epoch: str | None
    delta: bool
    binary: bool

    @classmethod
    def of(
        cls,
        channel: str,
        data: bytes | object,
        tags: Mapping[str, str] | None,
        idempotency_key: str | None,
        skip_history: bool,
        version: int,
        version_epoch: str | None,
        delta: bool,
        binary: bool,
    ) -> Self:
        try:
            body = data if isinstance(data, bytes) else msgspec.json.encode(data)
            encoded = msgspec.json.encode(tags) if tags else None
        except (TypeError, ValueError, RecursionError) as error:
            raise PublishError(
                f"data or tags cannot be written as JSON: {error}",
                remedy="pass what JSON knows, or bytes with binary=True",
                code="bad_request",
                status=STATUS_BAD_REQUEST,
            ) from error
        if binary and not isinstance(data, bytes):
            raise PublishError(
                f"binary data is {type(data).__name__}, not bytes",
                remedy="pass bytes",
                code="bad_request",
                status=STATUS_BAD_REQUEST,
            )
        if not 0 <= version <= VERSION_MAX:
            raise PublishError(
                f"version {version} is not possible",
                remedy="pass a number from 1 to 2^64 - 1; 0 is none",
                code="bad_request",
                status=STATUS_BAD_REQUEST,
            )
        return cls(
            channel,
            body,
            encoded,
            idempotency_key,
            skip_history,
            version,
            version_epoch,
            delta,
            binary,
        )

    def hand_over(self, uplink: _ring.Producer, want_reply: bool) -> int:
        return uplink.publish(
            self.channel,
            self.data,
            tags=self.tags,
            idempotency_key=self.idempotency_key,
            skip_history=self.skip_history,
            version=self.version,
            version_epoch=self.version_epoch,
            delta=self.delta,
            binary=self.binary,
            want_reply=want_reply,
        )


@dataclass(slots=True)
class _Waiter:
    """A thread that waits for the answer to one request."""

    wake: threading.Event = field(default_factory=threading.Event)
    reply: _ring.Reply | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that was handed over."""

    _lease: _Lease
    _number: int
    _waiter: _Waiter
    _deadline: float

    def result(self) -> Published:
        """Where the message is, once it is there. Raises as `publish` does; to be called once."""
        try:
            reply = self._lease.wait(self._waiter, self._deadline)
        finally:
            self._lease.forget(self._number)
        _, status, epoch, offset = reply
        if status != 0:
            raise _refused(status)
        return Published(epoch, offset)


class _Lease:
    """One uplink, for as long as the control connection that it was lent on.

    Of the threads that wait for answers one leads: it alone sleeps on the uplink, and it hands the
    others their answers. When it has its own, it makes another one the leader. So there is no
    thread in between, and a lone publisher pays for nothing but its own sleep.
    """

    def __init__(self, control_path: Path | str | None) -> None:
        self.ended: TidegateError | None = None
        """Why nothing can be published through this lease any more."""
        self._lock = threading.Lock()
        self._waiters: dict[int, _Waiter] = {}
        self._led = False
        self._look_at = 0.0
        self._control = ControlClient(control_path)
        try:
            result, fds = self._control.call_with_descriptors("uplink")
            try:
                named = named_descriptors({"type": "uplink", **result}, fds)
                self._uplink = _ring.Producer(
                    named["uplink"], named["publisher_wake"], named["reply_wake"]
                )
            finally:
                close_all(fds)
        except BaseException:
            self._control.close()
            raise

    def begin(self, request: _Request, deadline: float) -> Pending:
        waiter = _Waiter()
        number = self.hand_over(request, deadline, waiter)
        return Pending(self, number, waiter, deadline)

    def hand_over(self, request: _Request, deadline: float, waiter: _Waiter | None) -> int:
        """Write one request; waits for room until the deadline."""
        if waiter is None:
            self._look_now_and_then()
        pauses = itertools.chain(ROOM_LOOKS_S, itertools.repeat(ROOM_LOOKS_S[-1]))
        pause = threading.Event()
        while True:
            try:
                return self._try_hand_over(request, waiter)
            except _ring.Full as error:
                if self.ended is not None or not self._is_connected():
                    raise self._lost() from error
                if time.monotonic() >= deadline:
                    raise PublishError(
                        "the uplink stayed full: messages come faster than they are published",
                        remedy="publish less at a time, or raise log.uplink_bytes",
                        code="uplink_full",
                        status=STATUS_LIMIT_EXCEEDED,
                    ) from error
                if waiter is not None:
                    # Answers that nobody took keep requests out too.
                    self._lead(0.0)
                pause.wait(next(pauses))
            except _ring.RingError as error:
                raise _rejected(error) from error

    def end(self, reason: TidegateError) -> None:
        """Let go of the uplink; all who wait are told the reason."""
        with self._lock:
            if self.ended is not None:
                return
            self.ended = reason
            for waiter in self._waiters.values():
                waiter.wake.set()
        self._control.close()

    def _try_hand_over(self, request: _Request, waiter: _Waiter | None) -> int:
        # Registered under the same lock: a leader cannot see the answer before it knows the waiter.
        with self._lock:
            number = request(self._uplink, waiter is not None)
            if waiter is not None:
                self._waiters[number] = waiter
            return number

    def wait(self, waiter: _Waiter, deadline: float) -> _ring.Reply:
        while True:
            with self._lock:
                if waiter.reply is not None:
                    return waiter.reply
                if self.ended is not None:
                    raise self.ended
                waiter.wake.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                raise PublishError(
                    "the publisher did not answer in time",
                    remedy="look at `tidegate status`; the message may still be published",
                    code="timeout",
                )
            if not self._lead(min(left, CONNECTION_LOOK_S)):
                waiter.wake.wait(left)

    def _lead(self, timeout_s: float) -> bool:
        """Wait for answers and hand them out; False: another thread does already."""
        with self._lock:
            if self._led:
                return False
            self._led = True
        replies: list[_ring.Reply] = []
        try:
            replies = self._uplink.replies(timeout_s)
        except _ring.RingError as error:
            rejected = _rejected(error)
            self.end(rejected)
            raise rejected from error
        finally:
            with self._lock:
                self._led = False
                for reply in replies:
                    if (waiter := self._waiters.pop(reply[0], None)) is not None:
                        waiter.reply = reply
                        waiter.wake.set()
                self._call_next()
        if not replies and not self._is_connected():
            raise self._lost()
        return True

    def forget(self, number: int) -> None:
        """One thread less waits; it may have been called to lead."""
        with self._lock:
            self._waiters.pop(number, None)
            self._call_next()

    def _call_next(self) -> None:
        """Wake one of those who wait, to lead."""
        if not self._led:
            for waiter in self._waiters.values():
                waiter.wake.set()
                break

    def _is_connected(self) -> bool:
        """The supervisor says nothing unasked, so a readable connection is one that has ended."""
        if self.ended is not None:
            return False
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        return not poll.poll(0)

    def _look_now_and_then(self) -> None:
        """Raises Unreachable a moment after the gateway's end, to whoever waits for no answers."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + CONNECTION_LOOK_S
            if not self._is_connected():
                raise self._lost()

    def _lost(self) -> TidegateError:
        path = os.fspath(self._control.path)
        self.end(
            Unreachable(
                f"the gateway at {path} is gone",
                remedy="start it again; messages without an answer may not have been published",
            )
        )
        assert self.ended is not None
        return self.ended


def _rejected(error: _ring.RingError) -> PublishError:
    status = STATUS_INTERNAL
    if isinstance(error, _ring.BadRequest):
        status = STATUS_BAD_REQUEST
    elif isinstance(error, _ring.TooLarge):
        status = STATUS_LIMIT_EXCEEDED
    return PublishError(error.message, remedy=error.remedy, code=error.code, status=status)


def _refused(status: int) -> PublishError:
    unknown = (
        "internal",
        f"the publisher could not publish it (error {status})",
        "see the gateway's log",
    )
    code, message, remedy = _REFUSALS.get(status, unknown)
    return PublishError(message, remedy=remedy, code=code, status=status)
