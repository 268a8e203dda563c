"""Log lines: facts beside the message, one event a line, files that can be rotated."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import log

logger = logging.getLogger("tests.log")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    level = root.level
    yield tmp_path / "events.log"
    for handler in [handler for handler in root.handlers if isinstance(handler, log.Output)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def test_a_text_line_ends_in_its_facts(path: Path) -> None:
    log.configure("worker-3", path=str(path))
    logger.warning("slow %s", "client", extra={"slot": 3, "why": 'a "b" c', "empty": ""})
    [line] = path.read_text().splitlines()
    time, level, process, rest = line.split(" ", 3)
    assert len(time) == len("2026-01-31T12:00:00.123Z") and time.endswith("Z")
    assert (level, process.partition("[")[0]) == ("WARNING", "worker-3")
    assert rest == 'slow client slot=3 why="a \\"b\\" c" empty=""'


def test_a_text_message_of_several_lines_is_one_line(path: Path) -> None:
    log.configure("supervisor", path=str(path))
    logger.error("two problems\n  one\n  INFO another")
    [line] = path.read_text().splitlines()
    assert line.endswith(" two problems one INFO another")


def test_a_json_line_is_one_object_with_the_facts_as_keys(path: Path) -> None:
    log.configure("publisher", form="json", path=str(path))
    logger.info("two\nlines", extra={"n": 1, "where": path})
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["process"], first["level"], first["message"]) == (
        "publisher",
        "info",
        "two\nlines",
    )
    assert (first["n"], first["where"]) == (1, str(path))
    assert "ValueError: why" in second["traceback"]


def test_the_level_can_be_changed_while_running(path: Path) -> None:
    log.configure("api", level="warning", path=str(path))
    logger.info("before")
    log.set_level("debug")
    logger.debug("after")
    assert "before" not in path.read_text()
    assert "after" in path.read_text()
    with pytest.raises(ValueError, match="loud"):
        log.set_level("loud")


def test_a_rotated_file_is_left_at_reopen(path: Path) -> None:
    log.configure("api", path=str(path))
    logger.info("first")
    rotated = path.rename(path.with_suffix(".1"))
    logger.info("second")
    log.reopen()
    logger.info("third")
    assert rotated.read_text().count("\n") == 2
    assert "third" in path.read_text()


def test_configuring_again_replaces_the_file(path: Path) -> None:
    log.configure("api", path=str(path))
    other = path.with_name("other.log")
    log.configure("api", path=str(other))
    logger.info("once")
    assert path.read_text() == ""
    assert other.read_text().count("once") == 1


def test_standard_error_is_where_lines_go_by_default(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("api")
    logger.info("seen", extra={"n": 1})
    log.reopen()
    assert capsys.readouterr().err.endswith("seen n=1\n")
