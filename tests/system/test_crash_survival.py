"""A worker that dies takes nobody with it: its connections go on in the next one, to the byte."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gateway.client.frames import Kind
from gateway.client.payloads import Publish
from gateway.producer import Producer
from tests.support.backend import running_backend
from tests.support.commands import CommandClient
from tests.support.crowd import Crowd
from tests.support.gateway import Gateway
from tests.support.publishing import Publishing
from tests.support.raw_websocket import FIN, PING, PONG, TEXT, RawWebSocket, frame
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_for
from tests.support.wire import raw_wire

Start = Callable[..., Gateway]

CHANNEL = "public:crash"
SEED = 11
TEXT_BYTES = 60_000
# How long nothing must come to believe that nothing will. Too short hides a fault, never makes one.
QUIET_S = 0.5
# Deaths on purpose are no crash loop.
SECTIONS = {"workers": {"count": 2, "restart_delay_max_s": 0.1, "crash_loop_deaths": 1000}}
ONE_WORKER = {"workers": SECTIONS["workers"] | {"count": 1}}


@pytest.fixture
def one_worker(start_gateway: Start) -> Gateway:
    return start_gateway(ONE_WORKER)


def keepers(gateway: Gateway) -> list[psutil.Process]:
    """The keepers of a gateway, oldest first."""
    family = psutil.Process(gateway.pid).children()
    found = []
    for child in family:
        with suppress(psutil.NoSuchProcess):
            if child.cmdline()[:1] == ["tidegate: keeper"]:
                found.append(child)
    return sorted(found, key=lambda child: child.create_time())


def keeps(gateway: Gateway) -> list[Path]:
    return sorted(Path("/dev/shm").glob(f"tidegate-{gateway.name}-keep-*"))


def lost(gateway: Gateway) -> dict[str, int]:
    """Connections lost so far, by reason."""
    ends = gateway.ends().items()
    return {k.split('"')[1]: v for k, v in ends if k.startswith("connections_lost_total")}


def rescued(gateway: Gateway) -> int:
    return gateway.totals()["connections_rescued_total"]


def kill_worker(gateway: Gateway, number: signal.Signals = signal.SIGKILL) -> int:
    """Ends the fullest worker, and waits until another one has its place; returns its pid."""
    # Whose slot had no next worker soon enough had its connections saved into another.
    fullest = max(gateway.status()["workers"], key=lambda worker: int(worker["connections"]))
    pid = int(fullest["pid"])
    os.kill(pid, number)
    if number == signal.SIGKILL:
        wait_for(lambda: pid not in gateway.worker_pids(), "the death to be seen")
        settle(gateway)
    return pid


def settle(gateway: Gateway) -> None:
    """Waits until every rescue is over: then there is a keeper for each worker, and no more."""
    wait_for(
        lambda: (
            gateway.status()["state"] == "serving"
            and len(keepers(gateway)) == len(keeps(gateway)) == len(gateway.worker_pids())
        ),
        "every rescue to be over",
    )


@pytest.mark.sending
def test_workers_killed_under_load_cost_their_clients_a_pause_and_nothing_else(
    start_gateway: Start,
) -> None:
    gateway = start_gateway(SECTIONS)
    rng = random.Random(SEED)
    with Crowd(gateway, CHANNEL, each=75) as crowd, Producer(gateway.control_path) as producer:
        with Publishing(producer, CHANNEL, pause_s=0.002, position=crowd.position) as sent:
            for _ in range(6):
                mark = len(sent) + rng.randrange(20, 60)
                wait_for(lambda mark=mark: len(sent) > mark, "some publications")
                kill_worker(gateway)
        crowd.wait_for_offset(sent[-1])
        faults = [each.fault() for each in crowd.members if each.fault() and not each.end]
        assert faults == []
        wait_for(lambda: sum(lost(gateway).values()) == crowd.ended(), "every loss to be counted")
        # Those that the blow met in the middle of something: acknowledgements of TCP clients.
        assert crowd.ended() <= len(crowd.members) // 20, lost(gateway)
        assert rescued(gateway) > 3 * len(crowd.members) // 2
        assert set(gateway.ends()) <= {
            f'connections_lost_total{{reason="{reason}"}}' for reason in ("input", "torn")
        }


def test_a_worker_that_hangs_is_killed_and_its_clients_go_on(start_gateway: Start) -> None:
    sections = {"workers": ONE_WORKER["workers"] | {"stall_timeout_s": 3}}
    gateway = start_gateway(sections)
    with Crowd(gateway, CHANNEL) as crowd:
        pid = kill_worker(gateway, signal.SIGSTOP)
        top = gateway.publish(CHANNEL, "while it hangs")["offset"]
        wait_for(lambda: pid not in gateway.worker_pids(), "the end of the worker")
        settle(gateway)
        crowd.assert_undisturbed(top)
        # On a busy machine another one may have seemed to hang.
        assert rescued(gateway) >= len(crowd.members)
        assert gateway.ends() == {}


@pytest.mark.sending
def test_messages_published_while_nobody_serves_arrive(one_worker: Gateway) -> None:
    with Crowd(one_worker, CHANNEL) as crowd:
        for _ in range(3):
            pid = one_worker.worker_pids()[0]
            os.kill(pid, signal.SIGKILL)
            for number in range(50):
                top = one_worker.publish(CHANNEL, number)["offset"]
            crowd.wait_for_offset(top)
            settle(one_worker)
        crowd.assert_undisturbed(top)
        assert one_worker.ends() == {}


def test_a_client_in_the_middle_of_a_frame_ends_it_with_the_next_worker(
    one_worker: Gateway,
) -> None:
    with RawWebSocket(one_worker.http_port) as client:
        client.connect(CHANNEL)
        question = frame(FIN | PING, b"are you there?")
        received = one_worker.totals()["received_bytes_total"]
        client.send(question[:5])
        wait_for(
            lambda: one_worker.totals()["received_bytes_total"] == received + 5, "half a frame"
        )
        kill_worker(one_worker)
        client.send(question[5:])
        assert client.read_frame()[1] == b"are you there?"
        assert one_worker.ends() == {}


@pytest.mark.parametrize("answers", ["before", "after"])
def test_a_client_that_was_pinged_goes_on_whether_it_has_answered_or_not(
    start_gateway: Start, answers: str
) -> None:
    sections = ONE_WORKER | {"websocket": {"ping_interval_s": 4, "pong_timeout_s": 3.5}}
    gateway = start_gateway(sections)
    pong = frame(FIN | PONG)
    with RawWebSocket(gateway.http_port) as client:
        client.connect(CHANNEL)
        client.read_ping()
        received = gateway.totals()["received_bytes_total"]
        if answers == "before":
            client.send(pong)
            wait_for(
                lambda: gateway.totals()["received_bytes_total"] == received + len(pong), "a pong"
            )
        (pid,) = gateway.worker_pids()
        os.kill(pid, signal.SIGKILL)
        # An answer is due while nobody serves: it is not for the worker that dies to read, and must
        # not wait for the rescue to be over.
        wait_for(lambda: pid not in gateway.worker_pids(), "the death to be seen")
        if answers == "after":
            client.send(pong)
        for _ in range(2):
            client.read_ping()
            client.send(pong)
        assert (rescued(gateway), gateway.ends()) == (1, {})


def test_a_handshake_half_done_is_finished_by_the_next_worker(one_worker: Gateway) -> None:
    with RawWebSocket(one_worker.http_port) as client:
        client.send(b"GET /connection/uni_websocket HTTP/1.1\r\nHost: x\r\n")
        wait_for(lambda: one_worker.connections() == [1], "the accept")
        kill_worker(one_worker)
        client.send(
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert client.read_response()[0] == 101
        client.send(frame(FIN | TEXT, json.dumps({"subs": {CHANNEL: {}}}).encode()))
        assert "connect" in client.read_push()
        assert one_worker.ends() == {}


@pytest.mark.sending
def test_clients_that_were_sent_all_long_ago_go_on_however_much_others_were_sent_since(
    one_worker: Gateway,
) -> None:
    text = "x" * 8000
    with (
        Crowd(one_worker, CHANNEL, each=5) as crowd,
        Subscriber(one_worker.websocket_url, "public:busy") as busy,
        Producer(one_worker.control_path) as producer,
    ):
        first = producer.publish(CHANNEL, "long ago").offset
        crowd.wait_for_offset(first)
        # Three times what a worker has room for to put messages down.
        for _ in range(3 * (4 << 20) // len(text)):
            last = producer.publish("public:busy", text).offset
            if last % 50 == 0:
                busy.wait_for_offset("public:busy", last)
        busy.wait_for_offset("public:busy", last)
        kill_worker(one_worker)
        crowd.wait_for_offset(producer.publish(CHANNEL, "and now").offset)
        assert [each.fault() for each in crowd.members if each.fault()] == []
        assert lost(one_worker) == {}


@pytest.mark.sending
@pytest.mark.parametrize("dialect", ["websocket", "tcp"])
def test_a_client_that_reads_slowly_gets_the_rest_of_a_frame_from_the_next_worker(
    start_gateway: Start, dialect: str
) -> None:
    # The kernel takes some megabytes before a frame has to wait.
    limits = {"queue_hard_bytes": 16 << 20, "queue_soft_bytes": 16 << 20}
    gateway = start_gateway(ONE_WORKER | {"limits": limits})
    texts = [f"{number}".ljust(TEXT_BYTES, "x") for number in range(200)]
    received, waiting_bytes = read_slowly(gateway, dialect, texts)
    assert received == texts
    assert max(waiting_bytes) > 100_000
    assert rescued(gateway) == len(waiting_bytes)
    assert lost(gateway) == {}


def read_slowly(gateway: Gateway, dialect: str, texts: list[str]) -> tuple[list[str], list[int]]:
    """What a client receives that lets its socket fill up, and what waits when workers die."""
    received: list[str] = []
    waiting_bytes: list[int] = []
    reader = websocket_reader if dialect == "websocket" else tcp_reader
    with Producer(gateway.control_path) as producer:
        read = reader(gateway)
        next(read)
        for first in range(0, len(texts), 50):
            for text in texts[first : first + 50]:
                producer.publish(CHANNEL, text)
            wait_for(lambda: gateway.totals()["log_lag_bytes"] == 0, "all to be queued")
            waiting_bytes.append(gateway.totals()["queued_bytes"])
            kill_worker(gateway)
            received += [next(read) for _ in range(20)]
        received += [next(read) for _ in range(len(texts) - len(received))]
    return received, waiting_bytes


def websocket_reader(gateway: Gateway) -> Iterator[str]:
    with RawWebSocket(gateway.http_port) as client:
        client.connect(CHANNEL)
        yield ""
        while True:
            yield client.read_push()["pub"]["data"]


def tcp_reader(gateway: Gateway) -> Iterator[str]:
    with raw_wire(gateway.tcp_port) as client:
        client.connect(crc=True)
        client.subscribe(CHANNEL)
        yield ""
        message = b""
        while True:
            payload = client.expect(Kind.DATA).payload
            client.send(Kind.ACK)
            message += payload[1:]
            if payload[0] == 0:
                text, message = message, b""
                # Behind alias and offset, with its quotation marks.
                yield json.loads(text[-TEXT_BYTES - 2 :])


def test_a_client_that_waits_for_an_answer_is_told_to_come_back(one_worker: Gateway) -> None:
    publisher = one_worker.status()["publisher"]["pid"]
    with raw_wire(one_worker.tcp_port) as client:
        client.connect()
        os.kill(publisher, signal.SIGSTOP)
        try:
            received = one_worker.totals()['received_total{kind="frame"}']
            client.send(Kind.PUBLISH, b"\0" + Publish(1, CHANNEL, b"1").encode())
            wait_for(
                lambda: one_worker.totals()['received_total{kind="frame"}'] > received,
                "the publish to be read",
            )
            os.kill(one_worker.worker_pids()[0], signal.SIGKILL)
        finally:
            os.kill(publisher, signal.SIGCONT)
        assert client.goodbye().code == 3001
        wait_for(lambda: lost(one_worker) == {"answer": 1}, "the loss to be counted")


def test_what_an_application_has_called_is_no_client_and_not_lost(start_gateway: Start) -> None:
    with running_backend() as backend:
        hooks = {"connect_url": f"{backend.url}/connect", "timeout_s": 20.0}
        gateway = start_gateway(ONE_WORKER | {"hooks": hooks})
        with CommandClient(gateway.http_port) as client:
            client.call("connect")
            worker = psutil.Process(gateway.worker_pids()[0])
            there = int(backend.url.rpartition(":")[2])
            assert there in [each.raddr.port for each in worker.net_connections() if each.raddr]
            kill_worker(gateway)
            assert client.error("rpc")["code"] == 108, "the client goes on"
        assert (rescued(gateway), lost(gateway)) == (1, {})


def test_nobody_leaves_a_channel_though_the_publisher_hears_late_of_a_rescue(
    start_gateway: Start,
) -> None:
    room = {
        "name": "room",
        "allow_subscribe_for_client": True,
        "allow_subscribe_for_anonymous": True,
        "presence": True,
        "join_leave": True,
    }
    gateway = start_gateway(
        {
            "workers": ONE_WORKER["workers"] | {"stall_timeout_s": 60},
            # So little that the next worker cannot say at once who is there.
            "log": {"uplink_bytes": 16384},
            "limits": {"message_bytes_max": 256},
            "channel": {"namespaces": [room]},
        }
    )
    publisher, worker = gateway.status()["publisher"]["pid"], gateway.worker_pids()[0]
    with Crowd(gateway, f"room:{'x' * 150}", each=150, makers=("raw",)) as crowd:
        wait_for(lambda: gateway.totals()["presence_clients"] == 150, "everybody's presence")
        os.kill(publisher, signal.SIGSTOP)
        try:
            os.kill(worker, signal.SIGKILL)
            wait_for(
                lambda: worker not in gateway.worker_pids() and gateway.connections() == [150],
                "the next worker to have them",
            )
            threading.Event().wait(QUIET_S)
        finally:
            os.kill(publisher, signal.SIGCONT)
        settle(gateway)
        assert gateway.totals()['presence_leaves_total{cause="worker_gone"}'] == 0
        assert gateway.totals()["presence_clients"] == 150
        assert (rescued(gateway), crowd.ended()) == (150, 0)


def test_a_keeper_that_is_killed_costs_nobody_anything_until_its_worker_dies(
    one_worker: Gateway,
) -> None:
    with Crowd(one_worker, CHANNEL, makers=("raw",)) as crowd:
        (keeper,) = keepers(one_worker)
        keeper.kill()
        wait_for(lambda: "lost its keeper" in one_worker.log(), "a word about it")
        crowd.assert_undisturbed(one_worker.publish(CHANNEL, 1)["offset"])
        os.kill(one_worker.worker_pids()[0], signal.SIGKILL)
        wait_for(lambda: crowd.ended() == len(crowd.members), "the end of everybody")
        wait_for(lambda: lost(one_worker) == {"no_keeper": 5}, "the losses to be counted")
        settle(one_worker)


def test_without_keepers_a_worker_takes_its_connections_along(start_gateway: Start) -> None:
    workers = ONE_WORKER["workers"] | {"survive_crashes": False}
    gateway = start_gateway({"workers": workers})
    with Crowd(gateway, CHANNEL, makers=("raw",)) as crowd:
        assert keepers(gateway) == [] and keeps(gateway) == []
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        wait_for(lambda: crowd.ended() == len(crowd.members), "the end of everybody")
        wait_for(lambda: lost(gateway) == {"no_keeper": 5}, "the losses to be counted")


def test_the_connections_of_a_worker_in_a_crash_loop_are_closed_and_counted(
    start_gateway: Start,
) -> None:
    """Whatever kills one worker after the other is not carried to those that are well."""
    gateway = start_gateway({"workers": {"count": 1, "crash_loop_deaths": 2}})
    with Crowd(gateway, CHANNEL, makers=("raw",)) as crowd:
        kill_worker(gateway)
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        wait_for(lambda: crowd.ended() == len(crowd.members), "the end of everybody")
        wait_for(lambda: lost(gateway) == {"no_worker": 5}, "the losses to be counted")
        assert rescued(gateway) == 5


def test_keepers_and_keeps_end_with_their_workers(start_gateway: Start) -> None:
    gateway = start_gateway(SECTIONS)
    for verb, values in (("reload", {}), ("scale", {"count": 4}), ("scale", {"count": 1})):
        gateway.control(verb, **values)
        settle(gateway)
    family = keepers(gateway)
    gateway.stop()
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert keeps(gateway) == []


def test_keepers_end_with_a_supervisor_that_is_killed(start_gateway: Start) -> None:
    gateway = start_gateway(SECTIONS)
    family = keepers(gateway)
    assert len(family) == 2
    os.kill(gateway.pid, signal.SIGKILL)
    assert not psutil.wait_procs(family, timeout=60)[1]


def test_an_upgraded_supervisor_knows_its_keepers(start_gateway: Start) -> None:
    gateway = start_gateway(ONE_WORKER)
    with Crowd(gateway, CHANNEL) as crowd:
        gateway.control("upgrade")
        settle(gateway)
        kill_worker(gateway)
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])
        assert rescued(gateway) == len(crowd.members)
        assert gateway.ends() == {}


def test_a_keeper_takes_little_memory(one_worker: Gateway) -> None:
    """What it shares with its worker is the worker's: this is what is there because of it."""
    (keeper,) = keepers(one_worker)
    memory = keeper.memory_full_info()
    assert memory.uss < 4 << 20
