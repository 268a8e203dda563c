"""The command line as people and programs use it: real processes, their output and their status."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.command_line import ENVIRONMENT, TIMEOUT_S, at, command, tidegate
from tests.support.gateway import Gateway, running_gateway
from tests.support.raw_websocket import RawWebSocket
from tests.support.waiting import wait_for

Start = Callable[..., Gateway]

# What a command waits for a greeting if nobody says how long (conftest.py changes it for tests).
PRESET_TIMEOUT_S = 5.0

# ---- finding the instance


def test_nobody_there_is_told_with_a_remedy_and_status_3() -> None:
    ran = tidegate("status", "-i", "nobody-has-this-name")
    assert ran.status == 3
    assert ran.out == ""
    assert "nobody-has-this-name" in ran.err
    assert "tidegate run" in ran.err


def test_a_socket_that_is_not_there_is_status_3_also_for_programs() -> None:
    ran = tidegate("status", "--json", "--socket", "/nowhere/control.sock")
    assert ran.status == 3
    assert ran.json["error"]["code"] == "unreachable"


def test_a_gateway_that_says_nothing_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen()
        asking = subprocess.Popen(
            command("status", "--socket", path, "--timeout", 0.2),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        connection, _ = silent.accept()
        with asking, connection:
            began = time.monotonic()
            assert connection.recv(1) == b"", "it hangs up"
            assert time.monotonic() - began < PRESET_TIMEOUT_S
        assert asking.returncode == 3


def test_an_instance_is_found_without_arguments_where_it_is_the_only_one() -> None:
    with running_gateway({"workers": {"count": 1}}) as gateway:
        found = tidegate("status", "--json").json
        if "error" in found:  # somebody else runs one on this machine
            assert found["error"]["code"] == "several_instances"
            assert gateway.name in found["error"]["message"]
        else:
            assert found["instance"] == gateway.name


def test_of_several_instances_none_is_guessed_and_one_can_be_named(gateway: Gateway) -> None:
    with running_gateway({"workers": {"count": 1}}) as second:
        several = tidegate("status")
        assert several.status == 2
        assert gateway.name in several.err and second.name in several.err
        assert tidegate("status", "--json", "-i", second.name).json["instance"] == second.name


# ---- looking


def test_status_shows_people_every_worker_and_endpoint(gateway: Gateway) -> None:
    ran = tidegate("status", *at(gateway))
    assert ran.status == 0
    assert ran.err == ""
    for text in (gateway.name, str(gateway.http_port), str(gateway.tcp_port), "control.sock"):
        assert text in ran.out
    for pid in gateway.worker_pids():
        assert str(pid) in ran.out
    assert "\x1b" not in ran.out, "no escape sequences without a terminal"


def test_status_gives_programs_the_control_sockets_own_schema(gateway: Gateway) -> None:
    shown = tidegate("status", "--json", *at(gateway)).json
    assert set(shown) == set(gateway.status())


def test_a_watched_status_is_one_json_document_a_line(gateway: Gateway) -> None:
    process = subprocess.Popen(
        command("status", "--watch", "--interval", "0.1", "--json", *at(gateway)),
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        assert process.stdout is not None
        pids = [json.loads(process.stdout.readline())["pid"] for _ in range(3)]
        assert pids == [gateway.pid] * 3
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_slots_are_shown_with_their_processes(gateway: Gateway) -> None:
    assert [slot["pid"] for slot in tidegate("slots", "--json", *at(gateway)).json["slots"]] == (
        gateway.worker_pids()
    )
    lines = tidegate("slots", *at(gateway)).out.splitlines()
    assert lines[0].split()[:3] == ["SLOT", "PID", "STATE"]
    assert lines[0].split()[-1] == "LOAD"
    assert [line.split()[1] for line in lines[1:3]] == [str(pid) for pid in gateway.worker_pids()]


def test_slots_tell_how_evenly_connections_lie(gateway: Gateway) -> None:
    with ExitStack() as clients:
        for _ in range(20):
            clients.enter_context(RawWebSocket(gateway.http_port)).connect("public:slots")
        loads = gateway.connections()
        spread = tidegate("slots", "--json", *at(gateway)).json["spread"]
        lines = tidegate("slots", *at(gateway)).out.splitlines()
    assert spread["connections"] == sum(loads) == 20
    assert (spread["fullest"], spread["emptiest"]) == (max(loads), min(loads))
    assert spread["skew_percent"] == round(100 * (max(loads) - min(loads)) / max(loads), 1)
    assert "█" * 20 in lines[1 + loads.index(max(loads))]
    assert "20 connections" in lines[-1]


def test_config_shows_values_with_origin_and_no_secret(gateway: Gateway) -> None:
    values = tidegate("config", "--json", *at(gateway)).json["config"]
    assert values["workers.count"]["value"] == 2
    assert values["workers.count"]["origin"].startswith("file ")
    assert values["workers.stall_timeout_s"]["origin"] == "default"
    assert gateway.api_key not in json.dumps(values)
    changed = tidegate("config", "--changed", *at(gateway)).out
    assert "workers.count" in changed
    assert "workers.stall_timeout_s" not in changed


# ---- changing


def test_reload_returns_when_done_with_before_and_after(start_gateway: Start) -> None:
    gateway = start_gateway()
    before = gateway.worker_pids()
    ran = tidegate("reload", "--json", *at(gateway))
    assert ran.status == 0
    assert ran.json["before"]["workers"] == before
    assert ran.json["after"]["workers"] == gateway.worker_pids()
    assert not set(before) & set(gateway.worker_pids())


def test_a_reload_of_a_broken_configuration_changes_nothing_and_says_why(
    start_gateway: Start,
) -> None:
    gateway = start_gateway()
    before = gateway.worker_pids()
    gateway.config_path.write_text(gateway.config_path.read_text() + '\n[nonsense]\nkey = "x"\n')
    ran = tidegate("reload", *at(gateway))
    assert ran.status == 2
    assert "nonsense" in ran.err
    assert gateway.worker_pids() == before


def test_scale_changes_the_number_of_workers_and_shows_it(start_gateway: Start) -> None:
    gateway = start_gateway()
    ran = tidegate("scale", "3", *at(gateway))
    assert ran.status == 0
    assert ran.out.splitlines()[1].split() == ["workers", "2", "3"]
    assert len(gateway.worker_pids()) == 3
    assert tidegate("scale", "1", *at(gateway)).status == 0
    assert len(gateway.worker_pids()) == 1


def test_a_scale_out_of_range_is_refused_with_the_range(gateway: Gateway) -> None:
    ran = tidegate("scale", "100000", *at(gateway))
    assert ran.status == 2
    assert "1 to" in ran.err
    assert tidegate("scale", "0", *at(gateway)).status == 2


def test_drain_closes_everything_and_reload_serves_again(start_gateway: Start) -> None:
    gateway = start_gateway()
    assert tidegate("drain", *at(gateway)).status == 0
    ran = tidegate("status", "--json", *at(gateway))
    assert ran.status == 1, "not serving is something to look at"
    assert ran.json["workers"] == []
    assert tidegate("reload", *at(gateway)).status == 0
    assert tidegate("status", "--json", *at(gateway)).status == 0


def test_stop_ends_the_gateway(start_gateway: Start) -> None:
    gateway = start_gateway()
    assert tidegate("stop", *at(gateway)).status == 0
    assert gateway.process is not None
    assert gateway.process.wait(20) == 0
    assert tidegate("status", *at(gateway)).status == 3


# ---- messages


def test_a_published_message_reaches_a_subscriber_of_the_command_line(gateway: Gateway) -> None:
    first = tidegate("publish", "public:cli", '{"n": 1}', "--json", *at(gateway)).json
    since = f"{first['epoch']}:{first['offset'] - 1}"
    tidegate("publish", "public:cli", "-", *at(gateway), text="[2]")
    ran = tidegate(
        *("subscribe", "public:cli", "--since", since, "--count", 2, "--wait", 30, "--json"),
        *at(gateway),
    )
    assert ran.status == 0
    messages = [json.loads(line) for line in ran.out.splitlines()]
    assert [message["data"] for message in messages] == [{"n": 1}, [2]]
    assert messages[0] | {"data": None} == {**first, "channel": "public:cli", "data": None}


def test_a_subscriber_prints_what_comes_while_it_waits(gateway: Gateway) -> None:
    process = subprocess.Popen(
        command("subscribe", "public:live", "public:live2", "--count", "2", *at(gateway)),
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        # Until it is subscribed nothing comes; so publish until something does.
        def over() -> bool:
            gateway.publish("public:live", "hello")
            return process.poll() is not None

        wait_for(over, "two messages were printed")
        out = process.communicate()[0]
    finally:
        process.kill()
        process.wait()
    assert [line.split()[0] for line in out.splitlines()] == ["public:live"] * 2
    assert out.splitlines()[0].endswith('"hello"')


def test_an_interrupted_subscriber_ends_quietly_with_status_130(gateway: Gateway) -> None:
    process = subprocess.Popen(
        command("subscribe", "public:interrupt", *at(gateway)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:

        def printed() -> bool:
            gateway.publish("public:interrupt", 1)
            return bool(select.select([process.stdout], [], [], 0.1)[0])

        wait_for(printed, "a message was printed")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (130, "")


def test_waiting_in_vain_is_status_1(gateway: Gateway) -> None:
    ran = tidegate("subscribe", "public:quiet", "--count", 1, "--wait", 0.3, *at(gateway))
    assert (ran.status, ran.out) == (1, "")


def test_what_cannot_be_recovered_is_told_and_is_status_1(gateway: Gateway) -> None:
    gateway.publish("public:gone", 1)
    ran = tidegate(
        *("subscribe", "public:gone", "--since", "ffffffff:7", "--wait", 3), *at(gateway)
    )
    assert ran.status == 1
    assert "ffffffff:7" in ran.err
    ran = tidegate(
        *("subscribe", "public:gone", "--since", "ffffffff:7", "--wait", 3, "--json"), *at(gateway)
    )
    assert ran.status == 1
    assert ran.json["channel"] == "public:gone"
    assert ran.json["gap"]["since"] == {"epoch": "ffffffff", "offset": 7}
    assert ran.json["gap"]["top"]["offset"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "public:x", "{broken"),
        ("publish", "nowhere:x", "1"),
        ("publish", "public:\udcff", "1"),
        ("publish", "public:x", '"\udcff"'),
        ("publish", "public:x", '"\\ud800"'),
        ("publish", "public:x", "NaN"),
        ("publish", "public:x", "1e999"),
        ("publish", "public:x", "9" * 30),
        ("publish", "public:x", "[" * 5000 + "]" * 5000),
        ("subscribe", "public:x", "--since", "nonsense"),
        ("subscribe", "public:x", "--since", "ffffffff:" + "9" * 5000),
        ("subscribe", "public:x", "--wait", "nan"),
        ("status", "--timeout", "inf"),
        ("subscribe", "nowhere:x", "--wait", "60"),
        ("scale", "many"),
        ("status", "--watch", "--interval", "0"),
        ("levitate",),
    ],
)
def test_a_users_mistake_is_status_2_and_no_traceback(
    gateway: Gateway, arguments: tuple[str, ...]
) -> None:
    where = at(gateway) if arguments != ("levitate",) else ()
    ran = tidegate(*arguments, *where)
    assert ran.status == 2
    assert ran.err


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:65536", "127.0.0.1:" + "9" * 5000])
def test_what_is_no_address_is_told_so(address: str) -> None:
    assert "is no address" in tidegate("subscribe", "public:x", "--address", address).err


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["people", "programs"])
def test_a_full_disk_is_told_so_and_is_status_2(gateway: Gateway, form: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            command("config", *form, *at(gateway)),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            env=ENVIRONMENT,
            check=False,
        )
    assert ran.returncode == 2
    assert ran.stderr == "tidegate: standard output cannot be written (No space left on device)\n"


# ---- starting


def test_check_config_tells_every_problem_with_key_value_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[workers]\ncuont = 2\n[log]\ncapacity_bytes = 5000000\n")
    ran = tidegate("check-config", "-c", path)
    assert ran.status == 2
    assert "workers.cuont" in ran.err and "did you mean" in ran.err
    assert "5000000" in ran.err
    problems = tidegate("check-config", "-c", path, "--json").json["error"]["problems"]
    assert {problem["key"] for problem in problems} >= {"workers.cuont", "log.capacity_bytes"}


def test_check_config_of_a_good_file_is_ok_and_shows_origins(tmp_path: Path) -> None:
    path = tmp_path / "good.toml"
    path.write_text("[workers]\ncount = 2\n")
    ran = tidegate("check-config", "-c", path, "--show", "--set", "client.http_port=9000")
    assert ran.status == 0
    [line] = [line for line in ran.out.splitlines() if line.startswith("client.http_port")]
    assert line.split() == ["client.http_port", "9000", "flag"]


def test_run_refuses_a_second_instance_of_one_name_and_says_who_has_it(gateway: Gateway) -> None:
    ran = tidegate("run", "-c", gateway.config_path)
    assert ran.status == 2
    assert str(gateway.pid) in ran.err


def test_help_begins_with_examples_and_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['tidegate', '--help']\n"
        "try:\n    from ops.cli import main; main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'rich', 'asyncio', 'falcon', 'gunicorn', 'psutil'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "Examples:" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "verb",
    [
        *("run", "check-config", "status", "slots", "config"),
        *("reload", "scale", "rebalance", "stop", "drain", "publish", "subscribe"),
        *("load", "bench", "doctor", "profile"),
    ],
)
def test_every_command_has_help_with_an_example(verb: str) -> None:
    ran = tidegate(verb, "--help")
    assert ran.status == 0
    assert f"tidegate {verb}" in ran.out.partition("Options:")[0]
    assert "Example" in ran.out
