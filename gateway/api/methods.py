"""What each method of the API does: from a request's body to the map that answers it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

from gateway.api import metrics, requests
from gateway.channels import check_channel
from gateway.errors import PublishError, TidegateError
from gateway.producer import Producer

Answer = dict[str, Any]

PUBLISH_TIMEOUT_S = 5.0
"""For one publish, a restart of the publisher included; backends' clients give up after 10 s."""


class Counters(Protocol):
    """Where requests and errors are counted: a row of the statistics segment."""

    def add(self, name: str, amount: int = 1) -> None: ...


class Methods:
    """The API's methods over one producer.

    `nodes` describes this gateway in the form of the `info` method. Threads may share an instance.
    """

    def __init__(
        self,
        producer: Producer,
        namespaces: Collection[str],
        message_bytes_max: int,
        nodes: Callable[[], list[dict[str, Any]]],
        counters: Counters,
    ) -> None:
        self._producer = producer
        self._namespaces = frozenset(namespaces)
        self.message_bytes_max = message_bytes_max
        self._nodes = nodes
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

    def _result(self, request: requests.Publish | requests.Broadcast | requests.Info) -> Answer:
        if isinstance(request, requests.Publish):
            return self._publish(request.channel, request, request.payload())
        if isinstance(request, requests.Broadcast):
            return {"responses": self._broadcast(request)}
        return {"nodes": self._nodes()}

    def _publish(
        self, channel: str | None, options: requests.Publication, payload: bytes
    ) -> Answer:
        if len(payload) > self.message_bytes_max:
            raise requests.refusal(
                requests.BAD_REQUEST,
                f"data: {len(payload)} bytes, limits.message_bytes_max is {self.message_bytes_max}",
            )
        published = self._producer.publish(
            check_channel(channel, self._namespaces),
            payload,
            tags=options.tags,
            idempotency_key=options.idempotency_key,
            timeout_s=PUBLISH_TIMEOUT_S,
        )
        return {"offset": published.offset, "epoch": published.epoch}

    def _broadcast(self, request: requests.Broadcast) -> list[Answer]:
        """One answer a channel, in the order of the channels; one's failure stops no other."""
        payload = request.payload()
        responses: list[Answer] = []
        for channel in request.checked_channels():
            try:
                responses.append({"result": self._publish(channel, request, payload)})
            except TidegateError as error:
                responses.append({"error": self._error(error)})
        return responses

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
