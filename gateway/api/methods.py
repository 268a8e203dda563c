"""What each method of the API does: from a request's body to the map that answers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from gateway.api import metrics, requests
from gateway.api.shared import SharedState
from gateway.channels import Namespaces, glob
from gateway.errors import PublishError, TidegateError
from gateway.producer import Producer, Published
from workers.settings import NamespaceSettings

Answer = dict[str, Any]

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

    def answer(self, method: str, body: bytes) -> Answer:
        """`{"result": …}`, `{"replies": …}` or `{"error": {code, message}}`. Raises NotJson."""
        self._counters.add(metrics.request_name(method))
        try:
            request = requests.decode(method, body)
            if isinstance(request, requests.Batch):
                return {"replies": self._batch(request)}
            return {"result": self._result(request)}
        except TidegateError as error:
            return {"error": self._error(error)}

    def _result(self, request: requests.Request) -> Answer:
        match request:
            case requests.Publish():
                return self._publish(request.channel, request)
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

    def _publish(self, channel: str | None, publication: requests.Publication) -> Answer:
        payload, binary = publication.payload()
        if len(payload) > self.message_bytes_max:
            raise requests.refusal(
                requests.BAD_REQUEST,
                f"data: {len(payload)} bytes, limits.message_bytes_max is {self.message_bytes_max}",
            )
        self._namespaces.rules(channel)
        assert channel is not None
        return _place(
            self._producer.publish(
                channel,
                payload,
                tags=publication.tags,
                idempotency_key=publication.idempotency_key,
                binary=binary,
                skip_history=bool(publication.skip_history),
                delta=bool(publication.delta),
                version=publication.version or 0,
                timeout_s=PUBLISH_TIMEOUT_S,
            )
        )

    def _broadcast(self, request: requests.Broadcast) -> list[Answer]:
        """One answer a channel, in the order of the channels; one's failure stops no other."""
        request.payload()
        responses: list[Answer] = []
        for channel in request.checked_channels():
            try:
                responses.append({"result": self._publish(channel, request)})
            except TidegateError as error:
                responses.append({"error": self._error(error)})
        return responses

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
        replies: list[Answer] = []
        for method, body in batch.checked_commands():
            self._counters.add(metrics.request_name(method))
            try:
                request = requests.decode(method, body)
                if isinstance(request, requests.Batch):
                    raise requests.refusal(requests.BAD_REQUEST, "a batch cannot hold a batch")
                replies.append({method: self._result(request)})
            except TidegateError as error:
                replies.append({"error": self._error(error)})
        return replies

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
