"""The one error tree of the Python side.

Every error that a user can cause or meet carries three things: a stable `code` that programs
compare, a `message` that names the thing at fault, and a `remedy` that says what to do. Nothing
else is shown to people; a traceback is for our own mistakes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class TidegateError(Exception):
    """Root of the tree. `code` is stable over releases, `message` and `remedy` are for people."""

    code = "internal"

    def __init__(self, message: str, *, remedy: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        if code:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message

    def as_map(self) -> dict[str, Any]:
        """The shape of an error on the control socket and in `--json` output."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration: where, with which value, why, and what to do."""

    key: str
    value: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        shown = f"{self.key} = {self.value}" if self.value else self.key
        return (
            f"{shown}: {self.reason}; {self.remedy}" if self.remedy else f"{shown}: {self.reason}"
        )


class ConfigError(TidegateError):
    """The configuration cannot be used. `problems` holds every fault found, not only the first."""

    code = "config"

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        lines = "\n".join(f"  {problem}" for problem in problems)
        many = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{source}: {len(problems)} {many}\n{lines}")
        self.problems = tuple(problems)

    def as_map(self) -> dict[str, Any]:
        problems = [
            {"key": p.key, "value": p.value, "reason": p.reason, "remedy": p.remedy}
            for p in self.problems
        ]
        return {**super().as_map(), "problems": problems}


class InstanceError(TidegateError):
    """This instance cannot start here: name, port, directory or memory not available."""

    code = "instance"


class ChildError(TidegateError):
    """A worker, the publisher or the API did not start or did not do what it was told."""

    code = "child"


class ControlError(TidegateError):
    """The supervisor refused a verb, or could not carry it out. The code tells which."""

    code = "control"


class Unreachable(TidegateError):
    """No running gateway answers there (or the connection to it was lost)."""

    code = "unreachable"


class ProtocolError(TidegateError):
    """The peer sent bytes that are not the protocol: wrong length, not a map, another version."""

    code = "protocol"


class PublishError(TidegateError):
    """A publish was refused or not handed over. `status` is the number that clients see."""

    code = "publish"

    def __init__(
        self, message: str, *, remedy: str = "", code: str = "", status: int = 100
    ) -> None:
        super().__init__(message, remedy=remedy, code=code)
        self.status = status

    def as_map(self) -> dict[str, Any]:
        return {**super().as_map(), "status": self.status}


class SubscribeError(TidegateError):
    """The gateway refused or ended a client's subscription. `status` is the number it gave."""

    code = "subscribe"

    def __init__(self, message: str, *, remedy: str = "", status: int) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status


class Disconnected(TidegateError):
    """A client's connection ended for good. `close_code` says why, as in the close table."""

    code = "disconnected"

    def __init__(self, message: str, *, remedy: str = "", close_code: int) -> None:
        super().__init__(message, remedy=remedy)
        self.close_code = close_code
