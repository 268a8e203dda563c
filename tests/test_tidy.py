"""Our rules, executable: what a reviewer would otherwise have to say again and again."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The arrow ops -> gateway -> workers -> shm: a package may import itself and what is to its right.
ARROW = ["ops", "gateway", "workers", "shm"]

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 800
LINE_COLUMNS_MAX = 100

# Spelled in halves, so that this file does not break its own rule.
LEFTOVERS = [
    "TO" + "DO",
    "FIX" + "ME",
    "X" + "XX",
    "db" + "g!(",
    "break" + "point()",
    "time." + "sleep(",
]


def sources(*suffixes: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return [ROOT / name for name in listed if name.endswith(suffixes) and (ROOT / name).is_file()]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_packages(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


def test_no_package_imports_one_to_its_left() -> None:
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for package in ARROW
        for path in sources(".py")
        if short(path).startswith(f"{package}/")
        for line, name in imported_packages(path)
        if name == "tests" or (name in ARROW and ARROW.index(name) < ARROW.index(package))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_function_is_longer_than_a_screen() -> None:
    wrong = []
    for path in sources(".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    wrong.append(f"{short(path)}:{node.lineno} {node.name} has {length} lines")
    wrong += [found for path in sources(".rs") for found in long_rust_functions(path)]
    assert not wrong, "\n".join(wrong)


def long_rust_functions(path: Path) -> Iterator[str]:
    """Rust functions by indentation, which rustfmt guarantees: `fn` to the brace of its column."""
    opened: tuple[int, str, int] | None = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        start = re.match(
            r"( *)(?:pub(?:\([a-z]+\))? )?(?:unsafe |const )*(?:extern \S+ )?fn (\w+)", line
        )
        if start and not line.rstrip().endswith(("}", ";")):
            opened = (len(start[1]), start[2], number)
        elif opened and line.rstrip() == " " * opened[0] + "}":
            length = number - opened[2] + 1
            if length > FUNCTION_LINES_MAX:
                yield f"{short(path)}:{opened[2]} {opened[1]} has {length} lines"
            opened = None


def test_no_file_is_longer_than_a_room_allows() -> None:
    wrong = [
        f"{short(path)} has {lines} lines"
        for path in sources(".py", ".rs")
        if (lines := len(path.read_text().splitlines())) > FILE_LINES_MAX
    ]
    assert not wrong, "\n".join(wrong)


def test_no_line_is_wider_than_the_house_allows() -> None:
    wrong = [
        f"{short(path)}:{number} has {len(line)} columns"
        for path in sources(".py", ".rs", ".pyi")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > LINE_COLUMNS_MAX
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("word", LEFTOVERS)
def test_nothing_unfinished_is_left(word: str) -> None:
    wrong = [
        f"{short(path)}:{number}"
        for path in sources(".py", ".rs", ".toml", ".md")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word in line
    ]
    assert not wrong, "\n".join(wrong)


def test_atomics_come_through_one_door() -> None:
    wrong = [
        short(path)
        for path in sources(".rs")
        if re.search(r"\b(std|core|loom)::sync::atomic", path.read_text())
        and short(path) != "shm/ring/src/sync.rs"
    ]
    assert not wrong, "atomics belong to shm/ring/src/sync.rs: " + ", ".join(wrong)


def test_only_the_python_faces_know_python() -> None:
    wrong = [
        short(path)
        for path in sources(".rs")
        if re.search(r"\bpyo3\b", path.read_text())
        and not re.search(r"/src/python(/|\.rs$)", short(path))
    ]
    assert not wrong, "pyo3 belongs to python.rs: " + ", ".join(wrong)


def test_every_unsafe_block_says_why_it_is_sound() -> None:
    """Clippy checks blocks and impls of the crates; this also covers examples and tests."""
    wrong = []
    for path in sources(".rs"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if re.search(r"\bunsafe (\{|impl)", line) and not line.lstrip().startswith("//"):
                above = "\n".join(lines[max(0, number - 8) : number + 1])
                if "SAFETY:" not in above:
                    wrong.append(f"{short(path)}:{number + 1}")
    assert not wrong, "\n".join(wrong)


def test_the_documents_name_only_files_that_exist() -> None:
    wrong = []
    for document in ["README.md", "ARCHITECTURE.md"]:
        for name in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / document).read_text()):
            if not (ROOT / name).exists():
                wrong.append(f"{document}: {name}")
    assert not wrong, "\n".join(wrong)


def test_lock_files_name_no_host() -> None:
    """A lock that names a registry mirror would install from that mirror for everybody."""
    wrong = [
        name
        for name in ["constraints.txt", "pyproject.toml"]
        if re.search(r"https?://", (ROOT / name).read_text())
    ]
    wrong += [
        f"Cargo.lock: {line}"
        for line in (ROOT / "Cargo.lock").read_text().splitlines()
        if line.startswith("source")
        and line != 'source = "registry+https://github.com/rust-lang/crates.io-index"'
    ]
    assert not wrong, "\n".join(wrong)
