"""Logging of every Python process of a gateway: one line per event, as text or as JSON.

Events carry their facts as `extra`: `logger.info("worker replaced", extra={"slot": 3})` ends in
`slot=3` as text and in `"slot": 3` as JSON.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal, TextIO

Format = Literal["text", "json"]

LEVELS = ("debug", "info", "warning", "error")

# What a LogRecord has by itself; everything else came as `extra`.
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Output(logging.Handler):
    """Writes to standard error, or to a file that can be reopened after it was renamed."""

    def __init__(self, path: str = "") -> None:
        super().__init__()
        self._path = path
        self._stream = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # One write per line: lines of several processes in one file never mix (write(2) with
            # O_APPEND).
            self._stream.write(self.format(record) + "\n")
            self._stream.flush()
        except Exception:
            self.handleError(record)

    def reopen(self) -> None:
        """Raises OSError where the file cannot be opened; the old one stays in use then."""
        stream = self._open()
        self.acquire()
        try:
            stream, self._stream = self._stream, stream
        finally:
            self.release()
        if self._path:
            stream.close()

    def close(self) -> None:
        if self._path:
            self._stream.close()
        super().close()

    def _open(self) -> TextIO:
        return Path(self._path).open("a", encoding="utf-8") if self._path else sys.stderr


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO worker-3[4711] message key=value`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            _time(record),
            record.levelname,
            f"{self._process}[{os.getpid()}]",
            # One event, one line: an error's message may have several.
            " ".join(record.getMessage().split()),
            *(f"{key}={_text(value)}" for key, value in _extras(record).items()),
        ]
        line = " ".join(parts)
        trace = _traceback(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, process, pid, message, then the event's own keys."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "message": record.getMessage(),
            **_extras(record),
        }
        if trace := _traceback(self, record):
            event["traceback"] = trace
        return json.dumps(event, ensure_ascii=False, default=str)


def configure(process: str, *, form: Format = "text", level: str = "info", path: str = "") -> None:
    """Send this process's events to `path` ("" = standard error).

    `process` names its role in every line, such as "supervisor" or "worker-3". Raises OSError
    where the file cannot be opened. May be called again, to change form or file.
    """
    output = Output(path)
    output.setFormatter(JsonLines(process) if form == "json" else TextLines(process))
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, Output)]:
        root.removeHandler(handler)
        handler.close()
    root.addHandler(output)
    set_level(level)


def set_level(level: str) -> None:
    """Change the level of a running process; `level` is one of LEVELS, or ValueError is raised."""
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    logging.getLogger().setLevel(level.upper())


def reopen() -> None:
    """Open the log file anew, after a rotation renamed it. Raises OSError."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Output):
            handler.reopen()


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03}Z"


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS}


def _text(value: object) -> str:
    text = str(value)
    plain = text and not any(c.isspace() or c in '"=' or not c.isprintable() for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
