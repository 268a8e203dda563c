"""Rules that join several keys, or a key and the machine: what cannot hold is refused at start.

Each rule gives the key, its value, the arithmetic and what to do. A rule is a generator of
problems, so that one run reports them all.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.balance import BALANCED_PERCENT
from gateway.config.client_checks import check_clients
from gateway.config.schema import KIB, MIB, WORKERS_MAX, Config
from gateway.errors import Problem
from gateway.host.kernel import Kernel

RECORD_OVERHEAD_BYTES = 1024
"""Room beside a message's data in one record: header, channel (255), tags, alignment."""
DESCRIPTORS_RESERVED = 256
"""Descriptors of a worker that are no connections: segments, eventfds, epoll, logs, modules."""
SOCKET_PATH_BYTES_MAX = 107
"""sun_path is 108 bytes with its final NUL (unix(7))."""
CONNECTIONS_AUTO_MAX = 1_048_576
"""Ceiling of the automatic limit: the design's million, however many descriptors there are."""


@dataclass(frozen=True, slots=True)
class Host:
    """The machine's facts that the rules need; tests make their own."""

    cpus: int
    memory_bytes: int
    descriptors_max: int
    io_uring_refused: int = 0
    """The errno with which the kernel refuses us io_uring; 0: it does not."""

    @classmethod
    def here(cls) -> Host:
        """Allowed CPUs, memory (the cgroup's if less), hard RLIMIT_NOFILE, and what the kernel
        says to io_uring_setup(2)."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard == resource.RLIM_INFINITY:
            hard = CONNECTIONS_AUTO_MAX + DESCRIPTORS_RESERVED
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        kernel = Kernel()
        limit = kernel.cgroup_memory_bytes()
        bound = memory if limit is None else min(memory, limit)
        return cls(len(os.sched_getaffinity(0)), bound, hard, kernel.io_uring())


def worker_count(config: Config, host: Host) -> int:
    """`workers.count`, or one per allowed CPU."""
    return config.workers.count or min(host.cpus, WORKERS_MAX)


def connections_max(config: Config, host: Host) -> int:
    """`limits.connections_max` (of one worker), or what descriptors and memory allow.

    Automatic: every connection of every worker may fill its queue to the soft limit at one time.
    """
    if config.limits.connections_max:
        return config.limits.connections_max
    by_memory = host.memory_bytes // (config.limits.queue_soft_bytes * worker_count(config, host))
    by_descriptors = host.descriptors_max - DESCRIPTORS_RESERVED
    return max(1, min(by_memory, by_descriptors, CONNECTIONS_AUTO_MAX))


def check(config: Config, host: Host) -> list[Problem]:
    """Every combination in `config` that cannot hold on `host`."""
    rules = (
        *(_queues, _descriptors, _engine, _log, _uplinks, _timers, _balance, _steering),
        *(_addresses, _paths, _key),
    )
    problems = [problem for rule in rules for problem in rule(config, host)]
    return [*problems, *check_clients(config)]


def _steering(config: Config, host: Host) -> Iterator[Problem]:
    if config.workers.steer == "cpu" and config.workers.pin == "none":
        yield Problem(
            "workers.steer",
            "cpu",
            'with workers.pin = "none" a worker has no CPUs of its own',
            'set workers.pin to "cpu" or "node", or workers.steer to "hash"',
        )


def _queues(config: Config, host: Host) -> Iterator[Problem]:
    limits = config.limits
    if limits.queue_soft_bytes > limits.queue_hard_bytes:
        yield Problem(
            "limits.queue_soft_bytes",
            str(limits.queue_soft_bytes),
            f"is above limits.queue_hard_bytes = {limits.queue_hard_bytes}",
            "the soft limit is the one reached first: lower it, or raise the hard one",
        )
    if limits.message_bytes_max + RECORD_OVERHEAD_BYTES > limits.queue_hard_bytes:
        yield Problem(
            "limits.queue_hard_bytes",
            str(limits.queue_hard_bytes),
            f"one message of limits.message_bytes_max = {limits.message_bytes_max} would not fit",
            f"set at least {limits.message_bytes_max + RECORD_OVERHEAD_BYTES}",
        )
    workers = worker_count(config, host)
    if limits.connections_max:
        wanted = limits.connections_max * workers * limits.queue_soft_bytes
        if wanted > host.memory_bytes:
            fitting = host.memory_bytes // (limits.connections_max * workers)
            yield Problem(
                "limits.connections_max",
                str(limits.connections_max),
                f"x {workers} workers x limits.queue_soft_bytes = {limits.queue_soft_bytes} is "
                f"{wanted // MIB:,} MiB, the machine has {host.memory_bytes // MIB:,} MiB",
                f"lower it, or lower queue_soft_bytes to at most {fitting}",
            )


def _descriptors(config: Config, host: Host) -> Iterator[Problem]:
    wanted = config.limits.connections_max + DESCRIPTORS_RESERVED
    if config.limits.connections_max and wanted > host.descriptors_max:
        yield Problem(
            "limits.connections_max",
            str(config.limits.connections_max),
            f"needs {wanted} descriptors with {DESCRIPTORS_RESERVED} for ourselves, "
            f"RLIMIT_NOFILE is {host.descriptors_max}",
            "raise the hard limit (LimitNOFILE= in systemd, `ulimit -Hn`), or lower the key",
        )
    # Two listeners; for each of two generations a link, a pidfd and an uplink's four descriptors,
    # and of its keeper a link, a pidfd and a segment.
    supervisor = 22 * worker_count(config, host) + 8 * config.log.uplinks_max
    if supervisor + DESCRIPTORS_RESERVED > host.descriptors_max:
        yield Problem(
            "workers.count",
            str(worker_count(config, host)),
            f"with log.uplinks_max = {config.log.uplinks_max} the supervisor needs "
            f"{supervisor + DESCRIPTORS_RESERVED} descriptors, RLIMIT_NOFILE is "
            f"{host.descriptors_max}",
            "raise the hard limit (LimitNOFILE= in systemd, `ulimit -Hn`), or lower the keys",
        )


def _engine(config: Config, host: Host) -> Iterator[Problem]:
    refused = host.io_uring_refused
    if config.workers.engine == "io_uring" and refused:
        yield Problem(
            "workers.engine",
            '"io_uring"',
            f"the kernel refuses it: {os.strerror(refused)} ({errno.errorcode.get(refused)})",
            'set "auto", which does without; or see what `tidegate doctor` says of io_uring',
        )


def _log(config: Config, host: Host) -> Iterator[Problem]:
    log, message = config.log, config.limits.message_bytes_max + RECORD_OVERHEAD_BYTES
    if log.capacity_bytes & (log.capacity_bytes - 1):
        above = 1 << log.capacity_bytes.bit_length()
        yield Problem(
            "log.capacity_bytes",
            str(log.capacity_bytes),
            "is not a power of two",
            f"set {above // 2} or {above}",
        )
    if message > log.capacity_bytes // 8:
        yield Problem(
            "log.capacity_bytes",
            str(log.capacity_bytes),
            f"a record is at most an eighth of the log, which is {log.capacity_bytes // 8}; "
            f"limits.message_bytes_max = {config.limits.message_bytes_max} needs {message}",
            f"set at least {_power_of_two(8 * message)}, or lower the message limit",
        )
    segments = log.capacity_bytes + 128 * log.channels_max + log.uplinks_max * log.uplink_bytes
    segments += config.history.memory_bytes + config.presence.memory_bytes
    if segments > host.memory_bytes // 2:
        yield Problem(
            "log.capacity_bytes",
            str(log.capacity_bytes),
            f"with log.channels_max = {log.channels_max}, {log.uplinks_max} uplinks, "
            f"history.memory_bytes = {config.history.memory_bytes} and "
            f"presence.memory_bytes = {config.presence.memory_bytes} the shared memory is "
            f"{segments // MIB:,} MiB, over half of {host.memory_bytes // MIB:,} MiB",
            "lower one of these",
        )


def _uplinks(config: Config, host: Host) -> Iterator[Problem]:
    log, message = config.log, config.limits.message_bytes_max + RECORD_OVERHEAD_BYTES
    if log.uplink_bytes & (log.uplink_bytes - 1):
        above = 1 << log.uplink_bytes.bit_length()
        yield Problem(
            "log.uplink_bytes",
            str(log.uplink_bytes),
            "is not a power of two",
            f"set {above // 2} or {above}",
        )
    if message > log.uplink_bytes // 8:
        yield Problem(
            "log.uplink_bytes",
            str(log.uplink_bytes),
            f"a request is at most an eighth of the ring, which is {log.uplink_bytes // 8}; "
            f"limits.message_bytes_max = {config.limits.message_bytes_max} needs {message}",
            f"set at least {_power_of_two(8 * message)}, or lower the message limit",
        )
    # At a reload of the API its old and its new workers publish at one time.
    needed = 2 * config.api.workers + 1
    if log.uplinks_max < needed:
        yield Problem(
            "log.uplinks_max",
            str(log.uplinks_max),
            f"api.workers = {config.api.workers} and the supervisor need {needed} at a reload",
            f"set at least {needed}, and more for local producers",
        )


def _timers(config: Config, host: Host) -> Iterator[Problem]:
    pairs = (
        ("websocket.pong_timeout_s", "websocket.ping_interval_s", 1),
        ("stop.spread_s", "stop.timeout_s", 1),
        ("workers.restart_delay_min_s", "workers.restart_delay_max_s", 1),
    )
    for small, large, times in pairs:
        low, high = _value(config, small), _value(config, large)
        if low * times > high:
            yield Problem(
                small, f"{low:g}", f"is above {large} = {high:g}", "lower it, or raise the other"
            )
    lag_s, stall_s = config.log.lag_budget_ms / 1000, config.workers.stall_timeout_s
    if 2 * lag_s > stall_s:
        yield Problem(
            "log.lag_budget_ms",
            str(config.log.lag_budget_ms),
            f"is above half of workers.stall_timeout_s = {stall_s:g}: a publisher that waits for a "
            "slow worker would be killed as stalled",
            f"set at most {int(500 * stall_s)}, or raise the other",
        )
    if config.tcp.heartbeat_timeout_s < 2 * config.tcp.heartbeat_interval_s:
        yield Problem(
            "tcp.heartbeat_timeout_s",
            f"{config.tcp.heartbeat_timeout_s:g}",
            f"is below twice tcp.heartbeat_interval_s = {config.tcp.heartbeat_interval_s:g}: one "
            "late heartbeat would end a healthy connection",
            f"set at least {2 * config.tcp.heartbeat_interval_s:g}",
        )


def _balance(config: Config, host: Host) -> Iterator[Problem]:
    bound = config.workers.rebalance_above_percent
    if 0 < bound <= BALANCED_PERCENT:
        yield Problem(
            "workers.rebalance_above_percent",
            str(bound),
            f"a rebalance leaves up to {BALANCED_PERCENT:g} %, so it would never end",
            "set 0 (off), or clearly more: 20",
        )


def _value(config: Config, name: str) -> float:
    section, _, key = name.partition(".")
    return float(getattr(getattr(config, section), key))


def _addresses(config: Config, host: Host) -> Iterator[Problem]:
    for name, address in (
        ("client.address", config.client.address),
        ("api.address", config.api.address),
    ):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            yield Problem(
                name,
                f'"{address}"',
                "is not an IP address",
                'write one, such as "127.0.0.1", "0.0.0.0" for all of IPv4 or "::" for all',
            )
    ports = [("client.http_port", config.client.http_port)]
    ports.append(("client.tcp_port", config.client.tcp_port))
    if not config.api.socket:
        ports.append(("api.port", config.api.port))
    taken: dict[int, str] = {}
    for name, port in ports:
        if port and port in taken:
            yield Problem(
                name, str(port), f"is also {taken[port]}", "give each its own port, or 0 for any"
            )
        taken.setdefault(port, name)


def _paths(config: Config, host: Host) -> Iterator[Problem]:
    for name, path in (
        ("gateway.run_dir", config.gateway.run_dir),
        ("gateway.log_file", config.gateway.log_file),
        ("api.socket", config.api.socket),
    ):
        if path and not Path(path).is_absolute():
            yield Problem(name, f'"{path}"', "is not an absolute path", "begin it with /")
        if "\0" in path:
            yield Problem(name, repr(path), "holds a NUL, which no path can", "take it out")
    control = f"{config.gateway.run_dir}/{config.gateway.name}/control.sock"
    for name, path in (("gateway.run_dir", control), ("api.socket", config.api.socket)):
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            yield Problem(
                name,
                f'"{path}"',
                f"a Unix socket's path is at most {SOCKET_PATH_BYTES_MAX} bytes, this has "
                f"{len(os.fsencode(path))}",
                "choose a shorter directory",
            )


def _key(config: Config, host: Host) -> Iterator[Problem]:
    key = config.api.key
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        yield Problem(
            "api.key",
            "(hidden)",
            "cannot be shown in an HTTP header as it stands",
            "use printable ASCII characters, without blanks at its ends",
        )


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, KIB - 1).bit_length()
