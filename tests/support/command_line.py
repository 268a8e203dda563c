"""The `tidegate` command, run as people and programs run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.support.gateway import Gateway

TIMEOUT_S = 60.0
ENVIRONMENT = os.environ | {"TERM": "dumb"}


class Ran:
    """A command that has ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in self.err, self.err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ops.cli", *map(str, arguments)]


def tidegate(*arguments: object, text: str = "") -> Ran:
    return Ran(
        subprocess.run(
            command(*arguments),
            input=text,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=ENVIRONMENT,
            check=False,
        )
    )


def at(gateway: Gateway) -> tuple[str, str]:
    return ("--socket", str(gateway.control_path))
