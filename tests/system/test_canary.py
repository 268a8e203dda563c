"""Some slots on new code, for a trial: how it begins, and its two ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from gateway.errors import ControlError
from gateway.producer import Producer
from tests.support.crowd import Crowd
from tests.support.gateway import Gateway
from tests.support.publishing import Publishing
from tests.support.waiting import wait_for

Start = Callable[..., Gateway]

CHANNEL = "public:canary"


def refusal(gateway: Gateway, verb: str, **arguments: Any) -> ControlError:
    with pytest.raises(ControlError) as caught:
        gateway.control(verb, **arguments)
    return caught.value


def test_a_canary_is_promoted_and_no_client_notices(start_gateway: Start) -> None:
    gateway = start_gateway()
    before = gateway.worker_pids()
    generation = gateway.status()["generation"]
    with (
        Crowd(gateway, CHANNEL, each=10) as crowd,
        Producer(gateway.control_path) as producer,
        Publishing(producer, CHANNEL, position=crowd.position) as sent,
    ):
        gateway.control("reload", canary=1)
        trial = gateway.worker_pids()
        assert trial[0] != before[0]
        assert trial[1] == before[1]
        assert psutil.pid_exists(before[0]), "it stands by"
        canary = gateway.status()["canary"]
        assert canary["slots"] == [0]
        assert canary["new"]["workers"] == canary["old"]["workers"] == 1
        # The worker that has taken its last ones tells so within its turn, and counts at its end.
        wait_for(lambda: sum(gateway.connections()) == 40, "everybody to be counted")
        wait_for(lambda: gateway.status()["canary"]["new"]["deliveries"] > 0, "deliveries")
        assert refusal(gateway, "reload").code == "canary"
        assert refusal(gateway, "scale", count=1).code == "canary"
        gateway.control("reload", end="promote")
        after = gateway.worker_pids()
        assert after[0] == trial[0]
        assert after[1] != before[1]
        wait_for(lambda: not psutil.pid_exists(before[0]), "the end of the one that stood by")
        assert gateway.status()["canary"] is None
        assert gateway.status()["generation"] == generation + 1
        assert gateway.ends() == {}
        crowd.assert_undisturbed(sent[-1])


def test_a_canary_is_rolled_back_to_the_processes_before_it(start_gateway: Start) -> None:
    gateway = start_gateway()
    before, generation = gateway.worker_pids(), gateway.status()["generation"]
    with (
        Crowd(gateway, CHANNEL, each=10) as crowd,
        Producer(gateway.control_path) as producer,
        Publishing(producer, CHANNEL, position=crowd.position) as sent,
    ):
        gateway.control("reload", canary=2)
        trial = gateway.worker_pids()
        assert not set(trial) & set(before)
        result = gateway.control("reload", end="rollback")
        assert sum(slot["moved"] for slot in result["slots"]) == 40
        assert gateway.worker_pids() == before
        assert not any(psutil.pid_exists(pid) for pid in trial)
        assert gateway.status()["generation"] == generation
        assert gateway.ends() == {}
        with Crowd(gateway, CHANNEL, each=10) as newcomers:
            newcomers.wait_for_offset(sent[-1])
        crowd.assert_undisturbed(sent[-1])
    gateway.control("reload")


def test_a_canary_that_dies_is_replaced_by_the_worker_before_it(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    (before,) = gateway.worker_pids()
    gateway.control("reload", canary=1)
    os.kill(gateway.worker_pids()[0], signal.SIGKILL)
    wait_for(lambda: gateway.worker_pids() == [before], "the worker that stood by")
    with Crowd(gateway, CHANNEL) as crowd:
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])
    gateway.control("reload", end="rollback")
    assert gateway.status()["canary"] is None


def test_a_canary_whose_way_back_is_dead_cannot_be_rolled_back(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    (before,) = gateway.worker_pids()
    with Crowd(gateway, CHANNEL) as crowd:
        gateway.control("reload", canary=1)
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(before), "its end")
        assert refusal(gateway, "reload", end="rollback").code in ("no_standby", "successor_failed")
        gateway.control("reload", end="promote")
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"canary": 3}, "out_of_range"),
        ({"canary": 0}, "out_of_range"),
        ({"end": "promote"}, "canary"),
        ({"end": "rollback"}, "canary"),
    ],
)
def test_what_cannot_be_begun_or_ended_is_refused(
    gateway: Gateway, arguments: dict[str, Any], code: str
) -> None:
    assert refusal(gateway, "reload", **arguments).code == code


def test_a_stop_during_a_canary_leaves_no_process(start_gateway: Start) -> None:
    gateway = start_gateway()
    gateway.control("reload", canary=1)
    family = psutil.Process(gateway.pid).children(recursive=True)
    assert gateway.stop() == 0
    wait_for(lambda: not any(process.is_running() for process in family), "the end of them all")
