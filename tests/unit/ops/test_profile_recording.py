"""Flame graphs: which profiler is asked, what is said where none can, and what is drawn."""

from __future__ import annotations

import os
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ops.profile.recording import NoFlame, Recording, record

FOLDED = """\
python;_start;tidegate_engine::reactor::Reactor::run;tidegate_engine::sys::wait 3
python;_start;tidegate_engine::reactor::Reactor::run;__send;tcp_sendmsg_[k] 1
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all of the path; py-spy beside the interpreter is out of sight."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(sys, "executable", str(tools / "python"))
    return tools


def install(tools: Path, name: str, script: str) -> None:
    program = tools / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_without_a_profiler_it_is_said_what_to_install(tools: Path) -> None:
    with pytest.raises(NoFlame) as caught:
        record(os.getpid(), 0.1)
    assert "perf is not installed; py-spy is not installed" in caught.value.message
    assert "perf" in caught.value.remedy and "tidegate[profile]" in caught.value.remedy


def test_a_profiler_that_may_not_look_says_so_and_what_would_allow_it(tools: Path) -> None:
    install(tools, "perf", "echo 'Consider adjusting perf_event_paranoid' >&2; exit 255")
    install(tools, "py-spy", "echo 'Error: Operation not permitted (os error 1)' >&2; exit 1")
    with pytest.raises(NoFlame) as caught:
        record(os.getpid(), 0.1)
    assert "perf failed: not permitted" in caught.value.message
    assert "py-spy failed: not permitted" in caught.value.message
    assert "root" in caught.value.remedy and "perf_event_paranoid" in caught.value.remedy


def test_where_perf_fails_the_other_profiler_is_asked(tools: Path) -> None:
    install(tools, "perf", "echo 'WARNING: perf not found for kernel 6.1' >&2; exit 2")
    install(tools, "py-spy", f"while [ \"$1\" != --output ]; do shift; done; echo '{'a;b 2'}' > $2")
    found = record(os.getpid(), 0.1)
    assert (found.tool, found.samples, found.has_kernel) == ("py-spy", 2, False)


def test_what_a_profiler_leaves_behind_is_removed(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    install(tools, "perf", 'while [ "$1" != --output ]; do shift; done; : > "$2"; exit 1')
    with pytest.raises(NoFlame):
        record(os.getpid(), 0.1)
    assert list(scratch.iterdir()) == []


def test_samples_are_counted_and_the_kernels_part_is_seen() -> None:
    assert Recording("perf", FOLDED, False).samples == 4
    assert Recording("perf", FOLDED, False).has_kernel
    assert not Recording("perf", "a;b 1\n", False).has_kernel


def test_a_process_that_did_nothing_is_told_so() -> None:
    with pytest.raises(NoFlame) as caught:
        Recording("perf", "", False).draw("worker 0", "1 s")
    assert caught.value.code == "no_samples"
    assert "load" in caught.value.remedy


def test_a_drawing_is_one_svg_that_needs_nothing_else() -> None:
    svg = Recording("perf", FOLDED, False).draw("worker <0>", "10 s")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    titles = [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "tidegate_engine::reactor::Reactor::run (4 samples, 100.00%)" in titles
    assert "tcp_sendmsg (1 samples, 25.00%)" in titles
    assert "worker <0>" in "".join(root.itertext())
    assert not [each for each in root.iter() if any("href" in key for key in each.attrib)]
