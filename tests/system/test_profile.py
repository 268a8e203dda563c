"""`tidegate profile` of a real gateway under traffic: both of its pictures, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ControlError
from ops.load.programs import Swarm
from ops.profile.recording import NoFlame, record
from ops.profile.turns import PHASES
from tests.support.command_line import ENVIRONMENT, Ran, at, tidegate
from tests.support.gateway import Gateway
from tests.support.waiting import wait_for

CONNECTIONS = 200
RUN_S_MAX = 100.0
SECONDS = 2.0
LONG_S = 50
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def profiler() -> str:
    """The profiler that works here."""
    over = threading.Event()

    def spin() -> None:
        while not over.is_set():
            pass

    spinner = threading.Thread(target=spin)
    spinner.start()
    try:
        return record(os.getpid(), 0.5).tool
    except NoFlame as error:
        pytest.skip(f"no profiler works here: {error.message}")
    finally:
        over.set()
        spinner.join()


@contextmanager
def traffic(gateway: Gateway) -> Iterator[None]:
    """Publications to many clients, one after the other, for as long as the block takes."""
    channel = "public:profile"
    over = threading.Event()

    def publish() -> None:
        while not over.is_set():
            gateway.publish(channel, {"n": 1})

    with Swarm(
        address=f"127.0.0.1:{gateway.http_port}",
        connections=CONNECTIONS,
        run_s_max=RUN_S_MAX,
        transport="websocket",
        channel=channel,
    ) as swarm:
        swarm.wait_ready()
        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            yield
        finally:
            over.set()
            publisher.join()


def profile(gateway: Gateway, out: Path, *options: object) -> Ran:
    where = ("--seconds", SECONDS, "--out", out, *at(gateway))
    return tidegate("profile", *options, *where)


def frames(svg: Path) -> str:
    """What all frames of a graph are called."""
    root = ElementTree.parse(svg).getroot()
    return "\n".join(each.text or "" for each in root.iter(f"{SVG}title"))


def test_a_flame_graph_of_a_worker_names_the_functions_of_its_engine(
    gateway: Gateway, tmp_path: Path, profiler: str
) -> None:
    out = tmp_path / "worker.svg"
    with traffic(gateway):
        ran = profile(gateway, out, "--json")
    assert ran.status == 0, ran.out
    flame = ran.json["flame"]
    assert (flame["file"], flame["tool"], flame["stale"]) == (str(out), profiler, False)
    assert flame["samples"] > 0
    shown = frames(out)
    if profiler == "perf":
        # Whole stacks: from the entry of the process over a turn to its phases.
        for function in ("_start", "Reactor::run", "Reactor::turn", "Reactor>::flush"):
            assert function in shown, shown
    else:
        assert "_serve" in shown, shown
    svg = out.read_text()
    assert "<script" in svg and 'href="http' not in svg


def test_the_phases_of_a_profile_add_up_to_the_time(gateway: Gateway, tmp_path: Path) -> None:
    with traffic(gateway):
        ran = profile(gateway, tmp_path / "worker.svg", "--slot", 1, "--json")
    shown = ran.json
    turns = shown["turns"]
    assert (shown["process"], shown["seconds"]) == ("worker 1", SECONDS)
    assert shown["pid"] == gateway.worker_pids()[1]
    assert [phase["phase"] for phase in turns["phases"]] == list(PHASES)
    assert sum(phase["share_percent"] for phase in turns["phases"]) == pytest.approx(100, abs=0.5)
    # At most a sleep of half a second is not over at each end; a busy host is late.
    assert SECONDS - 1.0 <= turns["time_s"] <= SECONDS + 30.0
    spent = {phase["phase"]: phase["time_s"] for phase in turns["phases"]}
    assert spent["flush"] > 0 and spent["drain"] > 0
    longest = {phase["phase"]: phase["longest_us"] for phase in turns["phases"]}
    assert longest["flush"] / 1e6 <= spent["flush"]
    for size in ("microseconds_per_turn", "events_per_turn", "records_per_drain"):
        assert set(turns[size]) == {"mean", "p50", "p90", "p99", "max"}
    assert turns["deliveries_per_flush"]["max"] > 0
    assert turns["bytes_per_send"]["mean"] > 0
    assert turns["turns"] == pytest.approx(turns["turns_per_s"] * turns["time_s"], rel=0.01)


def test_people_get_a_table_of_phases_and_sizes(gateway: Gateway, tmp_path: Path) -> None:
    with traffic(gateway):
        ran = profile(gateway, tmp_path / "worker.svg", "--pid", gateway.worker_pids()[0])
    lines = [line.split() for line in ran.out.splitlines() if line.strip()]
    assert lines[0][:2] == ["PHASE", "SHARE"]
    assert [line[0] for line in lines[1:9]] == [name.partition("_")[0] for name in PHASES]
    assert "bytes per send" in ran.out and " turns, " in ran.out
    assert "profiling worker 0" in ran.err


def test_a_profile_leaves_a_worker_as_it_was(gateway: Gateway, tmp_path: Path) -> None:
    before = gateway.worker_pids()
    profile(gateway, tmp_path / "worker.svg")
    assert gateway.worker_pids() == before

    def is_over() -> bool:
        totals = gateway.totals()
        return not any(totals[each] for each in totals if each.startswith("turn_phase_longest"))

    wait_for(is_over, "the worker timed its turns no more", 30)


def test_other_processes_have_a_flame_graph_and_no_turns(
    gateway: Gateway, tmp_path: Path, profiler: str
) -> None:
    out = tmp_path / "publisher.svg"
    with traffic(gateway):
        ran = profile(gateway, out, "--publisher", "--json")
    assert (ran.status, ran.json["process"], ran.json["turns"]) == (0, "publisher", None)
    assert frames(out)


def test_without_a_profiler_the_turns_are_told_and_what_to_install(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Programs that are found first, and do not work.
    for name in ("perf", "py-spy"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho 'Error: Permission denied' >&2; exit 1\n")
        program.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{tmp_path}:{ENVIRONMENT['PATH']}")
    out = tmp_path / "worker.svg"
    ran = profile(gateway, out, "--json")
    assert ran.status == 1
    assert ran.json["turns"]["time_s"] > 0
    error = ran.json["flame"]["error"]
    assert error["code"] == "no_flame"
    assert "perf failed: not permitted" in error["message"] and "root" in error["remedy"]
    assert not out.exists()
    ran = profile(gateway, out)
    assert (ran.status, ran.out.split()[0]) == (1, "PHASE")
    assert "no profiler can sample" in ran.err


def test_a_worker_that_ends_meanwhile_is_told_so(
    start_gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    pid = gateway.worker_pids()[0]
    ran: list[Ran] = []
    asking = threading.Thread(
        target=lambda: ran.append(profile(gateway, tmp_path / "worker.svg", "--json"))
    )
    began = time.monotonic()
    asking.start()
    wait_for(lambda: "profile asked for" in gateway.log(), "the profile began")
    os.kill(pid, signal.SIGKILL)
    asking.join()
    assert time.monotonic() - began >= SECONDS
    assert ran[0].status == 1
    assert ran[0].json["turns"]["error"]["code"] == "no_worker"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--slot", 7), "there is no slot 7"),
        (("--pid", 1), "process 1 is none of this gateway"),
        (("--pid", 1, "--publisher"), "one of --slot, --pid and --publisher"),
        (("--seconds", 0), "--seconds"),
        (("--seconds", 301), "--seconds"),
        (("--out", "/nowhere/x.svg"), "/nowhere"),
    ],
)
def test_a_mistake_is_told_before_time_is_spent(
    gateway: Gateway, options: tuple[object, ...], told: str
) -> None:
    began = time.monotonic()
    ran = tidegate("profile", "--seconds", LONG_S, *options, *at(gateway))
    assert ran.status == 2
    assert told in ran.err
    assert time.monotonic() - began < LONG_S


def test_the_control_socket_tells_what_a_worker_has_counted(gateway: Gateway) -> None:
    pid = gateway.worker_pids()[0]
    found: dict[str, Any] = gateway.control("profile", pid=pid, duration_s=0)
    assert (found["slot"], found["generation"]) == (0, 1)
    assert found["counted"]["turn_us"]["count"] > 0
    json.dumps(found)
    with pytest.raises(ControlError) as caught:
        gateway.control("profile", pid=1, duration_s=1)
    assert caught.value.code == "no_worker"
    with pytest.raises(ControlError) as caught:
        gateway.control("profile", pid=pid, duration_s=1e9)
    assert caught.value.code == "bad_arguments"
