"""What the workers send by: as configured, where the kernel lets them, and nothing left over."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.host.kernel import Kernel
from ops.bench.usage import pss_bytes
from tests.support import without_io_uring
from tests.support.gateway import Gateway
from tests.support.subscriber import Subscriber

WITHOUT = [sys.executable, without_io_uring.__file__]
RING_BYTES_MAX = 256 << 10

needs_io_uring = pytest.mark.skipif(Kernel().io_uring() != 0, reason="the kernel refuses io_uring")


def rings(pid: int) -> int:
    """How many rings a process holds."""
    descriptors = Path(f"/proc/{pid}/fd").iterdir()
    return sum(str(each.readlink()) == "anon_inode:[io_uring]" for each in descriptors)


@pytest.fixture
def gateway_of() -> Iterator[Callable[[str], Gateway]]:
    with ExitStack() as stack:

        def make(engine: str) -> Gateway:
            # Not pytest's tmp_path: a Unix socket's path must stay under 108 bytes (unix(7)).
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-"))
            gateway = Gateway(Path(directory), {"workers": {"engine": engine}})
            stack.callback(gateway.close)
            return gateway

        yield make


@needs_io_uring
def test_each_worker_has_one_ring_and_a_reload_leaves_no_other_behind(
    gateway_of: Callable[[str], Gateway],
) -> None:
    gateway = gateway_of("io_uring").start()
    with Subscriber(gateway.websocket_url, "public:a") as subscriber:
        for offset in (1, 2, 3):
            gateway.publish("public:a", offset)
            subscriber.wait_for_offset("public:a", offset)
            workers = gateway.worker_pids()
            assert [rings(pid) for pid in workers] == [1, 1]
            assert gateway.totals()["io_uring"] == 2
            gateway.control("reload")
            assert not set(workers) & set(gateway.worker_pids())
        assert gateway.totals()["send_batches_total"] > 0
        assert not subscriber.close_codes


@needs_io_uring
def test_a_ring_makes_an_idle_worker_hardly_larger(
    gateway_of: Callable[[str], Gateway],
) -> None:
    largest = [
        max(pss_bytes(pid) for pid in gateway_of(engine).start().worker_pids())
        for engine in ("epoll", "io_uring")
    ]
    assert largest[1] - largest[0] <= RING_BYTES_MAX


def test_epoll_means_no_ring(gateway_of: Callable[[str], Gateway]) -> None:
    gateway = gateway_of("epoll").start()
    assert [rings(pid) for pid in gateway.worker_pids()] == [0, 0]
    assert gateway.totals()["io_uring"] == 0


def test_auto_does_without_where_io_uring_is_forbidden_and_says_so_once(
    gateway_of: Callable[[str], Gateway],
) -> None:
    gateway = gateway_of("auto").start(within=WITHOUT)
    with Subscriber(gateway.websocket_url, "public:a") as subscriber:
        gateway.publish("public:a", 1)
        subscriber.wait_for_offset("public:a", 1)
    assert gateway.totals()["io_uring"] == 0
    assert gateway.log().count("io_uring is refused (EPERM)") == 1


def test_demanding_what_is_forbidden_is_an_error_with_cause_and_remedy(
    gateway_of: Callable[[str], Gateway],
) -> None:
    gateway = gateway_of("io_uring").start(wait=False, within=WITHOUT)
    assert gateway.process is not None
    assert gateway.process.wait(30) == 2
    for part in ("workers.engine", "Operation not permitted", "EPERM", "auto", "tidegate doctor"):
        assert part in gateway.log()
    assert "Traceback" not in gateway.log()
