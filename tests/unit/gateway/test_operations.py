"""Operations: one at a time, and each comes to an end."""

from __future__ import annotations

from typing import Any

from gateway.errors import TidegateError
from gateway.operations import Operations
from gateway.steps import Report, Steps


def never() -> bool:
    return False


class Asker:
    """Begins operations, and keeps how they ended."""

    def __init__(self) -> None:
        self.operations = Operations(lambda: None)
        self.operations.closed = ""
        self.results: list[dict[str, Any]] = []
        self.errors: list[str] = []

    def begin(self, steps: Any) -> None:
        self.operations.begin("upheaval", "a test", steps, lambda values: None, self._end)

    def _end(self, result: dict[str, Any] | None, error: TidegateError | None) -> None:
        if error is not None:
            self.errors.append(str(error))
        elif result is not None:
            self.results.append(result)


def test_a_defect_in_an_operation_ends_it_alone() -> None:
    asker, ready = Asker(), []

    def defective(report: Report) -> Steps:
        yield lambda: bool(ready)
        raise OSError(9, "Bad file descriptor")

    def sound(report: Report) -> Steps:
        yield lambda: True
        return {"after": 1}

    asker.begin(defective)
    ready.append(True)
    asker.operations.advance()
    assert asker.errors == ["upheaval failed: see the gateway's log"]
    assert asker.operations.current is None
    asker.begin(sound)
    asker.operations.advance()
    assert [result["after"] for result in asker.results] == [1]


def test_a_second_operation_is_refused_and_told_who_runs_the_first() -> None:
    asker = Asker()

    def endless(report: Report) -> Steps:
        yield never
        return {}

    asker.begin(endless)
    try:
        asker.begin(endless)
    except TidegateError as error:
        assert "a test began upheaval" in str(error)
    else:
        raise AssertionError("two operations run at once")
    asker.operations.close("the gateway is stopping")
    assert asker.errors == ["upheaval was given up: the gateway is stopping"]
