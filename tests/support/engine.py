"""The engine's side of its questions, for tests of whoever answers them."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections import deque
from typing import Any, Literal

from tests.support.waiting import wait_for


class AskingEngine:
    """Asks as `workers._engine.Questions` does; any JSON object is an answer to it."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._asked: deque[tuple[int, str, bytes]] = deque()
        self._numbers = itertools.count(1)
        self.answers: dict[int, Any] = {}
        """By number: the answer, or why there is none."""
        self.told: list[tuple[str, Any]] = []
        """What was said of questions that nobody waits for: kind, and answer or why not."""

    # ---- what the hooks see

    def fileno(self) -> int:
        return self._bell

    def take(self, count_max: int) -> list[tuple[int, str, bytes]]:
        if count_max < 0:
            raise OverflowError("can't convert negative int to unsigned")
        with self._lock:
            if self._asked:
                # Only then it has been rung.
                os.eventfd_read(self._bell)
            count = min(count_max, len(self._asked))
            taken = [self._asked.popleft() for _ in range(count)]
            if self._asked:
                os.eventfd_write(self._bell, 1)
            return taken

    def answer(self, id: int, kind: str, body: bytes) -> None:
        answer = json.loads(body)
        if not isinstance(answer, dict):
            raise ValueError("not an object")
        self._note(id, kind, answer)

    def fail(self, id: int, kind: str, why: Literal["failed", "timeout"]) -> None:
        self._note(id, kind, why)

    # ---- what a test does

    def ask(self, kind: str, question: Any = None) -> int:
        """Ask, and go on; returns the number that `answer_to` takes."""
        number = next(self._numbers)
        self._put(number, kind, json.dumps(question or {}).encode())
        return number

    def tell(self, kind: str, body: bytes = b"{}") -> None:
        self._put(0, kind, body)

    def answer_to(self, number: int) -> Any:
        wait_for(lambda: number in self.answers, f"an answer to question {number}")
        return self.answers[number]

    def call(self, kind: str, question: Any = None) -> Any:
        return self.answer_to(self.ask(kind, question))

    @property
    def waiting(self) -> int:
        """Questions that nobody has taken yet."""
        return len(self._asked)

    def close(self) -> None:
        os.close(self._bell)

    def _put(self, number: int, kind: str, body: bytes) -> None:
        with self._lock:
            self._asked.append((number, kind, body))
        os.eventfd_write(self._bell, 1)

    def _note(self, number: int, kind: str, answer: Any) -> None:
        with self._lock:
            if number:
                self.answers[number] = answer
            else:
                self.told.append((kind, answer))
