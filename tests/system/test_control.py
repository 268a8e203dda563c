"""The control socket of a running gateway: levels, hostile clients, long verbs, uplinks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.control.client import ControlClient
from gateway.control.wire import encode, recv_frame
from gateway.errors import ControlError, TidegateError
from gateway.producer import Producer
from tests.support.gateway import Gateway
from tests.support.waiting import PATIENCE_S, wait_for

Start = Callable[..., Gateway]
STRANGER_UID = 54321


@contextlib.contextmanager
def raw(gateway: Gateway) -> Iterator[socket.socket]:
    """A connection without our client's manners, greeted already."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(str(gateway.control_path))
        recv_frame(connection)
        yield connection


def refusal(gateway: Gateway, verb: str, **args: Any) -> ControlError:
    with pytest.raises(ControlError) as caught:
        gateway.control(verb, **args)
    return caught.value


def test_the_greeting_says_who_answers_and_what_one_may_do(gateway: Gateway) -> None:
    with ControlClient(gateway.control_path) as control:
        assert control.greeting == {
            "tidegate": 1,
            "instance": gateway.name,
            "version": control.greeting["version"],
            "pid": gateway.pid,
            "level": "admin",
        }


def test_status_tells_of_every_process_and_endpoint(gateway: Gateway) -> None:
    status = gateway.status()
    assert status["state"] == "serving"
    assert status["pid"] == gateway.pid
    assert set(status["endpoints"]) == {"http", "tcp", "api", "control"}
    assert [worker["slot"] for worker in status["workers"]] == [0, 1]
    pids = [each["pid"] for each in (*status["workers"], status["publisher"], status["api"])]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert gateway.control("slots")["slots"][0]["pid"] == pids[0]


def test_the_configuration_is_shown_with_origins_and_without_secrets(gateway: Gateway) -> None:
    config = gateway.control("config")["config"]
    assert config["workers.count"] == {"value": 2, "origin": f"file {gateway.config_path}"}
    assert config["limits.headers_max"]["origin"] == "default"
    assert gateway.api_key not in json.dumps(config)


def test_wrong_requests_are_answered_and_the_connection_stays(gateway: Gateway) -> None:
    with ControlClient(gateway.control_path) as control:
        for verb, args, code in (
            ("statos", {}, "unknown_verb"),
            ("scale", {}, "bad_arguments"),
            ("scale", {"count": "two"}, "bad_arguments"),
            ("scale", {"count": 2, "colour": "red"}, "bad_arguments"),
            ("scale", {"count": 0}, "out_of_range"),
            ("scale", {"count": 5000}, "out_of_range"),
            ("drain", {"spread_s": -1}, "bad_arguments"),
            (
                "publish",
                {"channel": "public:a", "data": msgspec.msgpack.Ext(1, b"")},
                "bad_request",
            ),
            # Names that a log record has already.
            ("reload", {"name": "x", "message": "y"}, "bad_arguments"),
            ("publish", {"channel": "unknown:a", "data": 1}, "unknown_channel"),
            ("publish", {"channel": "public:a", "data": "x" * 65536}, "too_large"),
        ):
            with pytest.raises(ControlError) as caught:
                control.call(verb, **args)
            assert caught.value.code == code
            assert caught.value.remedy
        assert control.call("status")["state"] == "serving"


def test_a_request_above_the_bound_is_told_so_before_the_connection_ends(gateway: Gateway) -> None:
    error = refusal(gateway, "publish", channel="public:a", data="x" * (8 << 20))
    assert error.code == "protocol"
    assert "the limit is 262144" in error.message


def test_publishes_get_contiguous_offsets_of_one_epoch(gateway: Gateway) -> None:
    answers = [gateway.publish("public:control", {"n": n}) for n in range(5)]
    assert [answer["offset"] for answer in answers] == [1, 2, 3, 4, 5]
    assert len({answer["epoch"] for answer in answers}) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 5) + b"\xc1" * 5,
        struct.pack(">I", 1) + b"\x01",
        struct.pack(">I", 3) + b"\x81\xa1\xff",
    ],
    ids=["absurd length", "not msgpack", "not a map", "bad utf-8"],
)
def test_garbage_ends_its_connection_with_a_reason_and_nobody_elses(
    gateway: Gateway, garbage: bytes
) -> None:
    with ControlClient(gateway.control_path) as other, raw(gateway) as connection:
        connection.sendall(garbage)
        message, _ = recv_frame(connection)
        assert message["error"]["code"] == "protocol"
        assert connection.recv(1) == b""
        assert other.call("status")["state"] == "serving"


def test_half_frames_and_clients_that_never_read_hold_up_nobody(gateway: Gateway) -> None:
    request = encode({"id": 1, "verb": "status", "args": {}})
    with contextlib.ExitStack() as stack:
        for count in range(40):
            connection = stack.enter_context(raw(gateway))
            if count % 2:
                connection.sendall(request[: count % len(request)])
            else:
                # As many as the kernel takes; no answer is ever read.
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(10_000):
                        connection.sendall(request)
        assert gateway.status()["state"] == "serving"


def test_more_clients_than_the_bound_are_told_so(start_gateway: Start) -> None:
    gateway = start_gateway({"log": {"uplinks_max": 5}, "workers": {"count": 1}})
    with contextlib.ExitStack() as stack:
        with pytest.raises(TidegateError) as caught:
            for _ in range(100):
                stack.enter_context(ControlClient(gateway.control_path))
        assert caught.value.code == "too_many_clients"
    wait_for(lambda: _admits(gateway), "room again, once they left")


def _admits(gateway: Gateway) -> bool:
    with contextlib.suppress(ControlError):
        return bool(gateway.status())
    return False


ASK = """
import json, os, sys
from gateway.control.client import ControlClient
from gateway.errors import TidegateError
os.setgroups([])
os.setresgid(*[int(sys.argv[3])] * 3)
os.setresuid(*[int(sys.argv[3])] * 3)
try:
    with ControlClient(sys.argv[1]) as control:
        print(json.dumps([control.greeting["level"], control.call(sys.argv[2])]))
except TidegateError as error:
    print(json.dumps(["error", error.code]))
"""


def ask_as_stranger(gateway: Gateway, verb: str) -> Any:
    asked = subprocess.run(
        # It becomes the stranger itself: a stranger might not be let into the interpreter's folder.
        [sys.executable, "-c", ASK, str(gateway.control_path), verb, str(STRANGER_UID)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(asked.stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize(
    ("lists", "status", "drain"),
    [
        ({}, ["error", "not_permitted"], ["error", "not_permitted"]),
        ({"operators": ["1"]}, ["error", "not_permitted"], ["error", "not_permitted"]),
        ({"observers": [str(STRANGER_UID)]}, "observer", ["error", "level"]),
        ({"operators": [str(STRANGER_UID)]}, "operator", "operator"),
    ],
    ids=["nobody", "another", "observer", "operator"],
)
def test_who_connects_may_do_what_the_configuration_says(
    start_gateway: Start, lists: dict[str, Any], status: Any, drain: Any
) -> None:
    gateway = start_gateway({"control": lists, "workers": {"count": 1}})
    gateway.directory.chmod(0o755)
    for verb, expected in (("status", status), ("drain", drain)):
        answer = ask_as_stranger(gateway, verb)
        assert answer == expected or answer[0] == expected
    assert ask_as_stranger(gateway, "stop")[0] == "error"


def test_a_reload_during_a_reload_is_refused_and_told_who_runs_it(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    progress: list[dict[str, Any]] = []
    begun, refused = threading.Event(), threading.Event()

    def first() -> None:
        def note(values: dict[str, Any]) -> None:
            progress.append(values)
            begun.set()
            refused.wait(60)

        with ControlClient(gateway.control_path, timeout_s=PATIENCE_S) as control:
            result.update(control.call("reload", on_progress=note))

    result: dict[str, Any] = {}
    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    error = refusal(gateway, "reload")
    refused.set()
    thread.join(60)
    assert error.code == "busy"
    assert f"[{os.getpid()}]" in error.message
    assert result["before"]["generation"] == 1
    assert result["after"]["generation"] == 2
    assert set(result["before"]["workers"]).isdisjoint(result["after"]["workers"])
    assert result["before"]["publisher"] != result["after"]["publisher"]
    assert result["before"]["api"] != result["after"]["api"]
    phases = [values["phase"] for values in progress]
    assert [phase for phase in dict.fromkeys(phases) if phase != "reload"] == [
        "slot 0", "publisher", "api", "done"
    ]  # fmt: skip


def test_stop_is_answered_when_everything_has_ended(start_gateway: Start) -> None:
    gateway = start_gateway()
    pids = gateway.worker_pids()
    result = gateway.control("stop")
    assert result["after"]["state"] == "stopped"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert gateway.process is not None
    assert gateway.process.wait(60) == 0


PRODUCE = """
import sys
from gateway.producer import Producer
producer = Producer(sys.argv[1])
n = 0
while True:
    n += 1
    print(producer.publish("public:killed", {"n": n}).offset, flush=True)
"""


def uplinks_of(gateway: Gateway) -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"tidegate-{gateway.name}-uplink-*")}


def test_a_killed_producers_uplink_is_reclaimed_and_what_it_published_stays(
    start_gateway: Start,
) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    before = uplinks_of(gateway)
    producer = subprocess.Popen(
        [sys.executable, "-c", PRODUCE, str(gateway.control_path)], stdout=subprocess.PIPE
    )
    assert producer.stdout is not None
    answered = [int(producer.stdout.readline()) for _ in range(100)]
    assert answered == list(range(1, 101))
    assert len(uplinks_of(gateway)) == len(before) + 1
    producer.send_signal(signal.SIGKILL)
    rest = [int(line) for line in producer.stdout.read().split(b"\n") if line]
    producer.stdout.close()
    producer.wait()
    wait_for(lambda: uplinks_of(gateway) == before, "the end of the dead producer's uplink")
    top = gateway.publish("public:killed", "after")["offset"]
    # One publish may have been taken whose answer it did not live to print.
    assert top - 1 - (rest or answered)[-1] in (0, 1)


def test_a_producer_whose_child_keeps_the_connection_open_is_noticed_all_the_same(
    start_gateway: Start,
) -> None:
    """The child inherits the socket by fork, so the connection does not end with the producer."""
    gateway = start_gateway({"workers": {"count": 1}})
    before = uplinks_of(gateway)
    code = f"""
import os, signal, sys
from gateway.control.client import ControlClient
control = ControlClient({str(gateway.control_path)!r})
control.call("uplink")
if os.fork() == 0:
    print(os.getpid(), flush=True)
    signal.pause()
signal.pause()
"""
    producer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert producer.stdout is not None
    child = int(producer.stdout.readline())
    assert len(uplinks_of(gateway)) == len(before) + 1
    producer.kill()
    producer.wait()
    try:
        wait_for(lambda: uplinks_of(gateway) == before, "the end of the uplink")
    finally:
        os.kill(child, signal.SIGKILL)
        producer.stdout.close()


def test_no_more_uplinks_are_lent_than_the_configuration_allows(start_gateway: Start) -> None:
    gateway = start_gateway(
        {"log": {"uplinks_max": 4}, "api": {"workers": 1}, "workers": {"count": 1}}
    )
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Producer(gateway.control_path))
        with pytest.raises(ControlError) as caught:
            Producer(gateway.control_path)
        assert caught.value.code == "uplinks_max"
        assert "log.uplinks_max" in caught.value.remedy
    wait_for(lambda: _lends(gateway), "uplinks to lend again, once the producers gave theirs back")


def _lends(gateway: Gateway) -> bool:
    with contextlib.suppress(ControlError):
        Producer(gateway.control_path).close()
        return True
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stuck"])
def test_uplinks_live_through_the_end_of_the_publisher(
    start_gateway: Start, how: signal.Signals
) -> None:
    gateway = start_gateway({"workers": {"count": 1, "stall_timeout_s": 3}})
    with Producer(gateway.control_path) as producer:

        def publish(number: int) -> int:
            return producer.publish("public:p", number, timeout_s=PATIENCE_S).offset

        offsets = [publish(n) for n in range(50)]
        os.kill(gateway.status()["publisher"]["pid"], how)
        offsets += [publish(n) for n in range(50)]
    assert offsets == list(range(1, 101))
    assert gateway.status()["publisher"]["restarts"] == 1
    assert gateway.totals()['process_deaths_total{process="publisher"}'] == 1
    assert gateway.totals()["processes_stalled_total"] == (how == signal.SIGSTOP)
