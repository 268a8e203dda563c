"""What a long verb is made of: a generator that yields what it waits for.

It goes on when that is true; the supervisor asks once a turn. So a step that waits for processes
reads like a step, and nothing blocks the loop. `operations.py` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

Condition = Callable[[], bool]
Steps = Generator[Condition, None, dict[str, Any]]
"""A whole verb; returns its result."""
Report = Callable[[dict[str, Any]], None]
"""Takes progress: `phase`, `done` and `total`, and what else there is to tell."""
