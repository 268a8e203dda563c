"""Publishing at a steady rate, each message stamped with the time at which it was published."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from gateway.errors import PublishError, TidegateError, Unreachable

PAYLOAD_BYTES = 128
"""Of a payload where nobody asks for more or less."""
PAYLOAD_BYTES_MIN = 64
"""Room for number and time."""
HTTP_TIMEOUT_S = 10.0


def payload(number: int = 0, size_bytes: int = PAYLOAD_BYTES) -> bytes:
    """JSON of exactly that size with a number and the time, as swarms read them."""
    text = f'{{"number":{number},"sent_ns":{time.monotonic_ns()},"pad":""}}'
    return f'{text[:-2]}{"x" * (size_bytes - len(text))}"}}'.encode()


class Stream:
    """Calls `publish` with all channels in turn, for the length of a `with` block.

    `whole_rounds`: ends only when every channel has got as many messages as any other. What the
    publishing raised is raised at the block's end.
    """

    def __init__(
        self,
        publish: Callable[[str], object],
        channels: Sequence[str],
        per_s: float,
        *,
        whole_rounds: bool = False,
    ) -> None:
        self._publish = publish
        self._channels = channels
        self._per_s = per_s
        self._whole_rounds = whole_rounds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: Exception | None = None
        self.published = 0
        self.lasted_s = 0.0

    @property
    def published_to(self) -> Counter[str]:
        """Messages of each channel that got any."""
        rounds, rest = divmod(self.published, len(self._channels))
        counts = Counter(self._channels[:rest])
        if rounds:
            counts.update(dict.fromkeys(self._channels, rounds))
        return counts

    @property
    def failed(self) -> bool:
        return self._failure is not None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._publish_steadily()
        except Exception as failure:
            self._failure = failure

    def _publish_steadily(self) -> None:
        began = time.monotonic()
        while not self._stopping.is_set() or self._amid_a_round:
            self._publish(self._channels[self.published % len(self._channels)])
            self.published += 1
            self.lasted_s = time.monotonic() - began
            ahead_s = self.published / self._per_s - self.lasted_s
            if ahead_s > 0:
                self._stopping.wait(ahead_s)

    @property
    def _amid_a_round(self) -> bool:
        return self._whole_rounds and self.published % len(self._channels) > 0


class HttpPublisher:
    """Publishes through a gateway's HTTP API, one request at a time over one connection."""

    def __init__(self, url: str, key: str) -> None:
        """`url` as in `http://127.0.0.1:8002/api`. Raises TidegateError for another kind, and for a
        key that no header carries.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname or "", parts.port
            host.encode("idna")
            parts.path.encode("ascii")
        except ValueError:
            host, port = "", None
        if not host or parts.scheme != "http":
            raise TidegateError(
                f"--api {url} is no address of an API",
                remedy="give one such as http://127.0.0.1:8002/api",
                code="bad_request",
            )
        if not (key.isascii() and key.isprintable()):
            raise TidegateError(
                "--api-key cannot be shown in an HTTP header as it stands",
                remedy="give the gateway's api.key: printable ASCII, without the end of a line",
                code="bad_request",
            )
        self._url = url
        self._connection = http.client.HTTPConnection(host, port, timeout=HTTP_TIMEOUT_S)
        self._path = f"{parts.path.rstrip('/').removesuffix('/api')}/api/publish"
        self._headers = {"X-API-Key": key, "Content-Type": "application/json"}

    def publish(self, channel: str, data: bytes) -> None:
        """Raises Unreachable, or PublishError where the API refuses."""
        body = b'{"channel":%s,"data":%s}' % (json.dumps(channel).encode(), data)
        try:
            self._connection.request("POST", self._path, body, self._headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Unreachable(
                f"the API at {self._url} does not answer ({error})",
                remedy="see `tidegate status` for its address",
            ) from error
        if answer.status != http.HTTPStatus.OK or b'"error"' in text:
            shown = text.decode(errors="replace")[:200]
            raise PublishError(
                f"the API at {self._url} refused to publish to {channel}: {answer.status} {shown}",
                remedy="check --api-key and the channel's namespace",
                code="refused",
            )

    def close(self) -> None:
        self._connection.close()
