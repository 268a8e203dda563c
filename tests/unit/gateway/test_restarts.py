"""Back-off and the crash-loop brake, by the clock that is handed in."""

from __future__ import annotations

from gateway.restarts import RestartPolicy, Restarts

POLICY = RestartPolicy(
    delay_min_s=0.1,
    delay_max_s=5.0,
    stable_s=30.0,
    crash_loop_deaths=20,
    crash_loop_window_s=60.0,
)
BRAKED = RestartPolicy(
    delay_min_s=0.1,
    delay_max_s=5.0,
    stable_s=30.0,
    crash_loop_deaths=3,
    crash_loop_window_s=60.0,
)


def test_a_death_after_a_stable_life_is_answered_at_once() -> None:
    restarts = Restarts(POLICY)
    assert restarts.after_death(now=100.0, lived_s=31.0) == 0.0
    assert restarts.after_death(now=200.0, lived_s=100.0) == 0.0
    assert restarts.total == 2


def test_the_delay_doubles_with_each_early_death_up_to_its_bound() -> None:
    restarts = Restarts(POLICY)
    delays = [restarts.after_death(now=float(i), lived_s=0.5) for i in range(9)]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_stable_life_forgets_the_delay() -> None:
    restarts = Restarts(POLICY)
    for i in range(5):
        restarts.after_death(now=float(i), lived_s=0.5)
    assert restarts.after_death(now=100.0, lived_s=90.0) == 0.0
    assert restarts.after_death(now=101.0, lived_s=1.0) == 0.1


def test_many_deaths_in_the_window_put_the_brake_on() -> None:
    restarts = Restarts(BRAKED)
    assert [restarts.after_death(now=float(i), lived_s=0.5) for i in range(3)] == [0.0, 0.1, 5.0]
    assert restarts.in_crash_loop(3.0)
    assert not restarts.in_crash_loop(61.0)


def test_the_same_deaths_over_a_longer_time_do_not() -> None:
    restarts = Restarts(BRAKED)
    for i in range(10):
        restarts.after_death(now=i * 31.0, lived_s=0.5)
        assert not restarts.in_crash_loop(i * 31.0)


def test_a_new_policy_applies_to_deaths_that_were_noted_before() -> None:
    restarts = Restarts(POLICY)
    for i in range(3):
        restarts.after_death(now=float(i), lived_s=0.5)
    assert not restarts.in_crash_loop(3.0)
    restarts.policy = BRAKED
    assert restarts.in_crash_loop(3.0)
