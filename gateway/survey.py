"""Asking all workers at once which channels have subscribers, and how many.

A worker's answer may be megabytes, so it does not come by the link: the worker writes it into a
file in memory that it is given. Nobody here reads it; whoever asked gets the files.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.children import State
from gateway.loop import Loop, Timer
from gateway.processes import Worker
from workers.link import close_all

TIMEOUT_S = 2.0
"""A worker that took no turn for so long is left out; it is about to be judged by its pulse."""
SURVEYS_MAX = 64
"""Under way at a time; each holds a descriptor for each worker."""

logger = logging.getLogger("tidegate.survey")

Answer = Callable[[list[int]], None]


@dataclass(slots=True)
class _Survey:
    """One question, as far as it is answered; files of workers in `missing` are not whole yet."""

    answer: Answer
    files: dict[Worker, int]
    missing: set[Worker]
    deadline: Timer


class Surveys:
    """Those under way. Workers name a survey by its number."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._numbers = itertools.count(1)
        self._under_way: dict[int, _Survey] = {}

    @property
    def is_full(self) -> bool:
        return len(self._under_way) >= SURVEYS_MAX

    def begin(self, workers: Iterable[Worker], answer: Answer) -> None:
        """Asks; `answer` gets the files of those that answered, which are closed after it.

        In each is a JSON object: the subscribers of each channel that has some in that worker.
        """
        number = next(self._numbers)
        asked = [worker for worker in workers if worker.state is not State.STARTING]
        files = {worker: os.memfd_create("survey", os.MFD_CLOEXEC) for worker in asked}
        deadline = self._loop.after(TIMEOUT_S, lambda: self._end(number))
        self._under_way[number] = _Survey(answer, files, set(asked), deadline)
        for worker, file in files.items():
            worker.send("survey", {"survey": file}, id=number)
        self._end_if_complete(number)

    def take(self, worker: Worker, number: int) -> None:
        """A worker says that it has answered; late ones interest nobody any more."""
        if (survey := self._under_way.get(number)) is not None:
            survey.missing.discard(worker)
            self._end_if_complete(number)

    def forget(self, worker: Worker) -> None:
        """A worker is dead, and its subscribers are gone."""
        for number, survey in list(self._under_way.items()):
            if worker in survey.missing:
                survey.missing.remove(worker)
                os.close(survey.files.pop(worker))
                self._end_if_complete(number)

    def _end_if_complete(self, number: int) -> None:
        if not self._under_way[number].missing:
            self._end(number)

    def _end(self, number: int) -> None:
        survey = self._under_way.pop(number)
        survey.deadline.cancel()
        for worker in survey.missing:
            logger.warning(f"{worker.name} did not answer a survey", extra={"survey": number})
        try:
            survey.answer([survey.files[each] for each in survey.files.keys() - survey.missing])
        finally:
            close_all(survey.files.values())
