"""The swarm and the bare loop against each other: the instruments, before they measure anything."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from typing import Any

import psutil
import pytest

from gateway.errors import TidegateError
from gateway.host.kernel import Kernel
from ops.bench.usage import cpu_seconds, pss_bytes
from ops.load.programs import Bare, LoopName, Swarm, build
from ops.load.stream import PAYLOAD_BYTES, PAYLOAD_BYTES_MIN, payload
from tests.support.waiting import wait_for

CHANNEL = "public:load"
RUN_S_MAX = 60.0


def push(offset: int, channel: str = CHANNEL) -> str:
    return f'{{"channel":"{channel}","pub":{{"data":{payload().decode()},"offset":{offset}}}}}'


def start(bare: Bare, connections: int, **plan: Any) -> Swarm:
    swarm = Swarm(address=bare.address, connections=connections, run_s_max=RUN_S_MAX, **plan)
    swarm.wait_ready()
    bare.wait_ready()
    return swarm


def test_a_payload_has_its_exact_length_and_carries_the_time() -> None:
    for size_bytes in (PAYLOAD_BYTES_MIN, PAYLOAD_BYTES, 5000):
        text = payload(10**9, size_bytes)
        assert len(text) == size_bytes
        assert json.loads(text)["sent_ns"] > 0


@pytest.mark.parametrize("sends_by", ["send", "io_uring"])
def test_every_client_of_a_swarm_receives_every_message(sends_by: LoopName) -> None:
    if sends_by == "io_uring" and Kernel().io_uring():
        pytest.skip("the kernel refuses io_uring")
    with (
        Bare(processes=2, connections=600, sends_by=sends_by) as bare,
        start(bare, 600) as swarm,
    ):
        for offset in (1, 2, 3):
            swarm.announce()
            bare.send([push(offset)])
            swarm.wait_delivered()
        swarm.announce(2)
        bare.send([push(4), push(5)])
        swarm.wait_delivered()
        report = swarm.flawless_report()
    assert report["deliveries"] == 3000
    assert report["connected"] == 600
    assert report["latency_live"]["count"] == 3000
    assert 0 < report["latency_live"]["p50_us"] <= report["latency_live"]["max_us"]
    assert report["undated"] == 0


def test_a_reset_counts_from_zero_and_keeps_the_connections() -> None:
    with Bare(processes=1, connections=3) as bare, start(bare, 3) as swarm:
        swarm.announce()
        bare.send([push(1)])
        swarm.wait_delivered()
        assert swarm.reset()["deliveries"] == 3
        assert swarm.flawless_report()["deliveries"] == 0
        swarm.announce()
        bare.send([push(2)])
        swarm.wait_delivered()
        assert swarm.flawless_report()["connected"] == 3


def test_a_message_of_a_foreign_channel_spoils_the_report() -> None:
    with Bare(processes=1, connections=2) as bare, start(bare, 2) as swarm:
        swarm.announce()
        bare.send([push(1, "public:other")])
        bare.send([push(1)])
        swarm.wait_delivered()
        with pytest.raises(TidegateError, match=r"'foreign': 2"):
            swarm.flawless_report()


def test_a_lost_server_is_counted_as_closes() -> None:
    bare = Bare(processes=1, connections=2)
    with start(bare, 2) as swarm:
        bare.close()
        wait_for(lambda: swarm.report()["connected"] == 0, "the swarm notices")
        report = swarm.report()
    assert (sum(report["closes"].values()), report["absent"]) == (2, 2)


def test_who_is_told_to_leave_is_not_absent() -> None:
    with Bare(processes=1, connections=2) as bare, start(bare, 2) as swarm:
        swarm.drop_off()
        report = swarm.report()
    assert (report["connected"], report["absent"]) == (0, 0)


def test_a_swarm_that_nobody_answers_says_why() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # Ours, so that nobody else listens there meanwhile.
        address = "{}:{}".format(*deaf.getsockname())
        with Swarm(address=address, connections=2, run_s_max=RUN_S_MAX) as swarm:
            with pytest.raises(TidegateError, match="connected 0 of 2") as failure:
                swarm.wait_ready()
            assert "refused" in str(failure.value)


def test_a_swarm_ends_when_its_time_is_over() -> None:
    with (
        Bare(processes=1, connections=1) as bare,
        Swarm(address=bare.address, connections=1, run_s_max=3.0) as swarm,
    ):
        swarm.expect("ready", RUN_S_MAX)
        assert swarm.expect("final", RUN_S_MAX)["connected"] == 1


def test_a_plan_with_an_unknown_key_is_refused_by_its_name() -> None:
    plan = {"address": "127.0.0.1:1", "connections": 1, "run_s_max": 1, "chanel": "x"}
    done = subprocess.run(
        [build() / "tidegate-swarm"],
        input=json.dumps(plan) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "chanel" in done.stderr


def test_the_bare_loops_senders_end_with_their_conductor() -> None:
    with Bare(processes=2, connections=1) as bare:
        senders = [psutil.Process(pid) for pid in bare.pids]
        assert all(sender.is_running() for sender in senders)
    gone, alive = psutil.wait_procs(senders, timeout=60)
    assert len(gone) == 2 and not alive


def test_use_of_a_process_is_read_from_the_kernel() -> None:
    with Bare(processes=1, connections=1) as bare:
        assert pss_bytes(bare.pids[0]) > 0
    before_s = time.process_time()
    assert before_s < cpu_seconds([os.getpid()]) < time.process_time()


def test_the_bare_loop_passes_each_packet_of_its_feed_to_its_next_client() -> None:
    with (
        Bare(processes=1, connections=2, fed=True) as bare,
        start(bare, 2) as swarm,
    ):
        swarm.announce_deliveries(4)
        for number in range(4):
            bare.feed(number, push(number // 2 + 1).encode())
        swarm.wait_delivered()
        swarm.flawless_report()
