"""Publishes the day's movements through the HTTP API, at their times divided by the speed-up."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

from cent import AsyncClient, BroadcastRequest, CentError

from gateway.errors import PublishError
from ops.demo.flights import Movement

ATTEMPTS_MAX = 10
"""Of one publish: about 10 s in all, longer than a publisher's or the API's restart."""
RETRY_DELAY_S = 0.1
RETRY_DELAY_MAX_S = 2.0


class Replay:
    """The backend of the demonstration: knows what it published, and where each channel ended."""

    def __init__(self, api: AsyncClient, movements: Sequence[Movement], duration_s: float) -> None:
        self._api = api
        self._movements = movements
        self._duration_s = duration_s
        self.tops: dict[str, int] = {}
        """Newest offset of each channel, as the API answered."""
        self.published = 0
        """Publications, of which a movement makes one in each of its channels."""
        self.retries = 0

    async def run(self, on_movement: Callable[[Movement], None]) -> None:
        start = time.monotonic()
        for movement, due_s in zip(self._movements, self._due_s(), strict=True):
            await asyncio.sleep(max(0.0, start + due_s - time.monotonic()))
            await self._publish(movement)
            on_movement(movement)

    def _due_s(self) -> Iterator[float]:
        """When to publish each movement: the data has no seconds, so a minute's are spread."""
        first, last = self._movements[0].minute, self._movements[-1].minute
        s_per_minute = self._duration_s / (last + 1 - first)
        for minute, group in itertools.groupby(self._movements, lambda one: one.minute):
            count = sum(1 for _ in group)
            for index in range(count):
                yield (minute - first + index / count) * s_per_minute

    async def _publish(self, movement: Movement) -> None:
        """Publishes once, however many attempts that takes: all carry one idempotency key."""
        request = BroadcastRequest(
            channels=movement.channels,
            data={
                "minute": movement.minute,
                "flight": movement.flight,
                "kind": movement.kind,
                "from": movement.origin,
                "to": movement.destination,
                "delay_min": movement.delay_min,
                # CLOCK_MONOTONIC is the same for all processes of a host.
                "sent_ns": time.monotonic_ns(),
            },
            idempotency_key=movement.key,
        )
        delay_s, reason = RETRY_DELAY_S, ""
        for _ in range(ATTEMPTS_MAX):
            try:
                result = await self._api.broadcast(request)
                errors = [response.error for response in result.responses if response.error]
                if not errors:
                    break
                reason = errors[0].message
            except CentError as error:
                reason = str(error)
            self.retries += 1
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_DELAY_MAX_S)
        else:
            raise PublishError(
                f"{movement.key} was not published in {ATTEMPTS_MAX} attempts: {reason}"
            )
        for channel, response in zip(movement.channels, result.responses, strict=True):
            assert response.result is not None
            self.tops[channel] = max(self.tops.get(channel, 0), response.result.offset)
            self.published += 1
