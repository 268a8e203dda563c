"""The run directory and its lock: one supervisor at a time, traces of dead ones cleaned."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import Config, Host, load
from gateway.control.client import find_instance, find_instances
from gateway.errors import InstanceError, Unreachable
from gateway.instance import Instance, default_run_dirs
from gateway.listeners import listen_unix

HOST = Host(cpus=2, memory_bytes=8 << 30, descriptors_max=65536)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, as a Unix socket's path must be."""
    with tempfile.TemporaryDirectory(prefix="tidegate-") as made:
        yield Path(made)


def config(directory: Path, name: str = "one", **flags: object) -> Config:
    all_flags = {"gateway.name": name, "gateway.run_dir": str(directory), **flags}
    return load(environment={}, flags=all_flags, host=HOST)


def test_the_directory_and_its_files_are_private(directory: Path) -> None:
    instance = Instance.take(config(directory))
    assert stat.S_IMODE(instance.directory.stat().st_mode) == 0o700
    assert int(instance.pid_path.read_text()) == os.getpid()
    instance.release()
    assert not instance.pid_path.exists()


def test_others_may_pass_the_directory_when_control_names_them(directory: Path) -> None:
    instance = Instance.take(config(directory, **{"control.observers": "nobody"}))
    assert stat.S_IMODE(instance.directory.stat().st_mode) == 0o711
    instance.release()


def test_a_second_instance_of_the_name_is_refused_with_the_pid_of_the_first(
    directory: Path,
) -> None:
    first = Instance.take(config(directory))
    with pytest.raises(InstanceError) as caught:
        Instance.take(config(directory))
    assert caught.value.code == "instance_running"
    assert f"process {os.getpid()}" in caught.value.message
    assert first.pid_path.exists(), "the loser touches nothing"
    other = Instance.take(config(directory, "two"))
    other.release()
    first.release()
    Instance.take(config(directory)).release()


def test_what_a_killed_instance_left_is_cleaned(directory: Path) -> None:
    code = """
import os, signal, sys
from gateway.config import load
from gateway.instance import Instance
from gateway.listeners import listen_unix
flags = {"gateway.name": "one", "gateway.run_dir": sys.argv[1]}
instance = Instance.take(load(environment={}, flags=flags))
listen_unix(instance.control_path, 0o600, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(directory)], check=False)
    assert killed.returncode == -9
    assert (directory / "one" / "control.sock").exists()
    instance = Instance.take(config(directory))
    assert not instance.control_path.exists()
    assert int(instance.pid_path.read_text()) == os.getpid()
    instance.release()


def test_a_directory_that_cannot_be_written_is_a_clear_error(directory: Path) -> None:
    (directory / "file").write_text("")
    with pytest.raises(InstanceError) as caught:
        Instance.take(config(directory / "file"))
    assert caught.value.code == "run_dir"
    assert "gateway.run_dir" in caught.value.remedy


@pytest.mark.parametrize("name", ["lock", "pid", "control.sock", "api.key"])
def test_what_is_in_the_way_of_a_file_is_named(directory: Path, name: str) -> None:
    (directory / "one" / name).mkdir(parents=True)
    with pytest.raises(InstanceError) as caught:
        Instance.take(config(directory)).api_key("")
    assert str(directory / "one" / name) in caught.value.message
    assert "gateway.run_dir" in caught.value.remedy


def test_neither_home_nor_an_account_is_needed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    assert default_run_dirs()[-1] == directory / f"tidegate-{os.getuid()}"


def test_a_drawn_key_is_kept_and_private(directory: Path) -> None:
    instance = Instance.take(config(directory))
    key = instance.api_key("")
    assert len(key) >= 32
    assert instance.api_key("") == key
    assert instance.api_key("configured") == "configured"
    assert stat.S_IMODE((instance.directory / "api.key").stat().st_mode) == 0o600
    instance.release()
    again = Instance.take(config(directory))
    assert again.api_key("") == key
    again.release()


def test_instances_are_found_wherever_they_are_and_dead_ones_are_not(directory: Path) -> None:
    names = (f"f1-{os.getpid()}", f"f2-{os.getpid()}")
    held: list[tuple[Instance, socket.socket]] = []
    for name in names:
        instance = Instance.take(config(directory, name))
        held.append((instance, listen_unix(instance.control_path, 0o600, 4)))
    found = {each.name: each for each in find_instances() if each.name in names}
    assert found[names[0]].control_path == directory / names[0] / "control.sock"
    assert found[names[0]].pid == os.getpid()
    with pytest.raises(InstanceError) as several:
        find_instance()
    assert several.value.code == "several_instances"
    assert find_instance(names[1]).name == names[1]
    held[1][1].close()
    with pytest.raises(Unreachable):
        find_instance(names[1])
    for instance, listener in held:
        listener.close()
        instance.release()
