"""Fixtures for every test: a gateway that a module shares, or one of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, settings

from gateway.control import client
from gateway.host.kernel import Kernel
from tests.support.gateway import DEFAULTS, Gateway, running_gateway
from tests.support.waiting import PATIENCE_S


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=["auto", "epoll", "io_uring"],
        default="auto",
        help="what the workers of the system tests send by (workers.engine)",
    )


def pytest_configure(config: pytest.Config) -> None:
    engine = config.getoption("--engine")
    if engine == "io_uring" and (refused := Kernel().io_uring()):
        pytest.exit(f"the kernel refuses io_uring: errno {refused}", returncode=0)
    DEFAULTS["workers"]["engine"] = engine
    # A supervisor that replaces itself greets nobody meanwhile, and may be kept from it besides.
    client.CONNECT_TIMEOUT_S = PATIENCE_S


# The same examples each time, however slow the machine is: a failure is one of the code, and comes
# back. `fuzz/` is where chance searches.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with two workers, shared by the module's tests: leave it as you found it."""
    with running_gateway() as running:
        yield running


@pytest.fixture
def start_gateway() -> Iterator[Callable[..., Gateway]]:
    """Starts gateways of the test's own: `start_gateway({"workers": {"count": 1}})`."""
    with ExitStack() as stack:
        yield lambda sections=None: stack.enter_context(running_gateway(sections))
