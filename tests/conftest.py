"""Fixtures for every test: a gateway that a module shares, or one of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.gateway import Gateway, running_gateway


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
