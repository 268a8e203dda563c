"""Publishing for the length of a `with` block, as fast as answers come and readers follow."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gateway.errors import TidegateError
from gateway.producer import Producer
from tests.support.waiting import PATIENCE_S

# Messages that readers may be behind: far below queue_soft_bytes, at the sizes published here.
LEAD = 500


class Publishing:
    """Publishes to `channel` from a thread; a pause leaves other processes some of the CPU.

    `position` tells the last offset that every reader has. Publishing keeps at most LEAD messages
    ahead of it: clients in Python, of which many share a CPU, read slower than one publisher
    writes, and would be closed as slow consumers in the end.
    """

    def __init__(
        self,
        producer: Producer,
        channel: str,
        pause_s: float = 0.001,
        position: Callable[[], int] | None = None,
    ) -> None:
        self._producer = producer
        self._channel = channel
        self._pause_s = pause_s
        self._position = position
        self._stopping = threading.Event()
        self._failure: TidegateError | None = None
        self._thread = threading.Thread(target=self._run)
        self.offsets: list[int] = []

    def __enter__(self) -> list[int]:
        self._thread.start()
        return self.offsets

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(2 * PATIENCE_S)
        assert self._failure is None, self._failure

    def _run(self) -> None:
        while not self._stopping.wait(self._pause_s):
            if self._position and self.offsets and self.offsets[-1] - self._position() >= LEAD:
                self._stopping.wait(0.001)
                continue
            try:
                message = {"n": len(self.offsets)}
                published = self._producer.publish(self._channel, message, timeout_s=PATIENCE_S)
            except TidegateError as failure:
                self._failure = failure
                return
            self.offsets.append(published.offset)
