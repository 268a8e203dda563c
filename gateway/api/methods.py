"""What each method of the API does: from a request's body to the map that answers it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from gateway.api import metrics, requests
from gateway.api.shared import SharedState
from gateway.channels import Namespaces, glob
from gateway.errors import PublishError, TidegateError
from gateway.producer import Pending, Producer, Published
from workers.settings import NamespaceSettings

Answer = dict[str, Any]
T = TypeVar("T")

PUBLISH_TIMEOUT_S = 5.0
"""For one publish, a restart of the publisher included; backends' clients give up after 10 s."""


class Counters(Protocol):
    """Where requests and errors are counted: a row of the statistics segment."""

    def add(self, name: str, amount: int = 1) -> None: ...


class Methods:
    """The API's methods: those that change something over one producer, the others over what is
    shared. Threads may share an instance.

    `nodes` describes this gateway in the form of the `info` method; `subscribers` tells how many
    each channel has.
    """

    def __init__(
        self,
        producer: Producer,
        shared: SharedState,
        namespaces: Namespaces,
        message_bytes_max: int,
        nodes: Callable[[], list[dict[str, Any]]],
        subscribers: Callable[[], dict[str, int]],
        counters: Counters,
    ) -> None:
        self._producer = producer
        self._shared = shared
        self._namespaces = namespaces
        self.message_bytes_max = message_bytes_max
        self._nodes = nodes
        self._subscribers = subscribers
        self._counters = counters

    def answer(
        self,
        method: str,
        body: bytes,
        decode: Callable[[str, bytes], requests.Request] = requests.decode,
    ) -> Answer:
        """`{"result": …}`, `{"replies": …}` or `{"error": {code, message}}`.

        Raises NotJson where `decode` does.
        """
        self._counters.add(metrics.request_name(method))
        try:
            request = decode(method, body)
            if isinstance(request, requests.Batch):
                return {"replies": self._batch(request)}
            return {"result": self._result(request)}
        except TidegateError as error:
            return {"error": self._error(error)}

    def _result(self, request: requests.Request) -> Answer:
        match request:
            case requests.Publish():
                return _place(self._begin(request.channel, request).result())
            case requests.Broadcast():
                return {"responses": self._broadcast(request)}
            case requests.Subscribe():
                self._namespaces.rules(request.channel)
                return self._order(request.order())
            case requests.Unsubscribe():
                if request.channel:
                    self._namespaces.rules(request.channel)
                return self._order(request.order())
            case requests.Disconnect() | requests.Refresh():
                return self._order(request.order())
            case requests.Presence():
                return {"presence": self._shared.presence(self._with_presence(request))}
            case requests.PresenceStats():
                clients, users = self._shared.presence_stats(self._with_presence(request))
                return {"num_clients": clients, "num_users": users}
            case requests.History():
                return self._shared.history(self._with_history(request), request)
            case requests.HistoryRemove():
                self._producer.history_remove(
                    self._with_history(request), timeout_s=PUBLISH_TIMEOUT_S
                )
                return {}
            case requests.Channels():
                return {"channels": self._channels(request)}
            case requests.Rpc():
                raise requests.refusal(
                    requests.METHOD_NOT_FOUND, f"there is no extension {request.method!r}"
                )
            case _:
                return {"nodes": self._nodes()}

    # ---- what changes something

    def _begin(self, channel: str | None, publication: requests.Publication) -> Pending:
        payload, binary = publication.payload()
        if len(payload) > self.message_bytes_max:
            raise requests.refusal(
                requests.BAD_REQUEST,
                f"data: {len(payload)} bytes, limits.message_bytes_max is {self.message_bytes_max}",
            )
        self._namespaces.rules(channel)
        assert channel is not None
        return self._producer.begin(
            channel,
            payload,
            tags=publication.tags,
            idempotency_key=publication.idempotency_key,
            binary=binary,
            skip_history=bool(publication.skip_history),
            delta=bool(publication.delta),
            version=publication.version or 0,
            version_epoch=publication.version_epoch,
            timeout_s=PUBLISH_TIMEOUT_S,
        )

    def _broadcast(self, request: requests.Broadcast) -> list[Answer]:
        """One answer a channel, in the order of the channels; one's failure stops no other."""
        request.payload()
        begun = [
            self._attempted(functools.partial(self._begin, channel, request))
            for channel in request.checked_channels()
        ]
        return [self._finished("result", each) for each in begun]

    def _order(self, order: dict[str, object]) -> Answer:
        """Tells all workers; each does it for those connections that it has."""
        text = msgspec.json.encode(order).decode()
        self._producer.order(text, timeout_s=PUBLISH_TIMEOUT_S)
        return {}

    # ---- what only asks

    def _with_presence(self, request: requests.ChannelRequest) -> str:
        return self._channel_with("presence", request, lambda rules: rules.presence)

    def _with_history(self, request: requests.ChannelRequest) -> str:
        return self._channel_with("history_size", request, lambda rules: rules.history_size > 0)

    def _channel_with(
        self,
        option: str,
        request: requests.ChannelRequest,
        is_on: Callable[[NamespaceSettings], bool],
    ) -> str:
        rules = self._namespaces.rules(request.channel)
        if not is_on(rules):
            where = f"namespace {rules.name!r}" if rules.name else "channels without a namespace"
            raise requests.refusal(requests.NOT_AVAILABLE, f"{option} is not set for {where}")
        assert request.channel is not None
        return request.channel

    def _channels(self, request: requests.Channels) -> Answer:
        matches = glob(request.pattern or "*").match
        return {
            channel: {"num_clients": subscribers}
            for channel, subscribers in self._subscribers().items()
            if matches(channel)
        }

    # ---- several in one

    def _batch(self, batch: requests.Batch) -> list[Answer]:
        def begin(method: str, body: bytes) -> Pending | Answer:
            request = requests.decode_one_of_several(method, body)
            if isinstance(request, requests.Batch):
                raise requests.refusal(requests.BAD_REQUEST, "a batch cannot hold a batch")
            if batch.parallel and isinstance(request, requests.Publish):
                return self._begin(request.channel, request)
            return self._result(request)

        begun = []
        for method, body in batch.checked_commands():
            self._counters.add(metrics.request_name(method))
            begun.append((method, self._attempted(functools.partial(begin, method, body))))
        return [self._finished(method, each) for method, each in begun]

    def _attempted(self, begin: Callable[[], T]) -> T | TidegateError:
        try:
            return begin()
        except TidegateError as error:
            return error

    def _finished(self, key: str, begun: Pending | Answer | TidegateError) -> Answer:
        """The answer to what was begun, under `key`; or its error."""
        if isinstance(begun, Pending):
            pending = begun
            begun = self._attempted(lambda: _place(pending.result()))
        if isinstance(begun, TidegateError):
            return {"error": self._error(begun)}
        return {key: begun}

    def _error(self, error: TidegateError) -> Answer:
        """The error as clients of this API read it; what they cannot know of is internal."""
        code = error.status if isinstance(error, PublishError) else requests.INTERNAL
        if code not in requests.ERROR_TEXTS:
            code = requests.INTERNAL
        self._counters.add(metrics.error_name(code))
        text = requests.ERROR_TEXTS[code]
        message = str(error)
        return {
            "code": code,
            "message": message if message.startswith(text) else f"{text}: {message}",
        }


def _place(published: Published) -> Answer:
    """Where it is in its channel's history; one that is in none has no place."""
    if not published.offset:
        return {}
    return {"offset": published.offset, "epoch": published.epoch}
