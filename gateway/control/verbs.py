"""The verbs of the control socket: what each needs, checks and does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from gateway import reload, scaling
from gateway.config import effective
from gateway.control.connection import Connection, Request
from gateway.control.peers import Level
from gateway.control.publishing import Publishing
from gateway.errors import ControlError, PublishError, TidegateError
from gateway.fleet import Fleet
from gateway.operations import Operations
from gateway.runtime import Runtime
from gateway.steps import Report, Steps
from gateway.uplinks import Uplink
from shm import stats

LEVELS = {
    "status": Level.OBSERVER,
    "slots": Level.OBSERVER,
    "config": Level.OBSERVER,
    "survey": Level.OBSERVER,
    "publish": Level.OPERATOR,
    "uplink": Level.OPERATOR,
    "profile": Level.OPERATOR,
    "reload": Level.OPERATOR,
    "scale": Level.OPERATOR,
    "rebalance": Level.OPERATOR,
    "drain": Level.OPERATOR,
    "upgrade": Level.ADMIN,
    "stop": Level.ADMIN,
}

PROFILE_S_MAX = 3600.0
"""Of one request, which may be repeated."""

logger = logging.getLogger("tidegate.control")


class Arguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Base of the verbs' arguments; this one has none."""


class SpreadArguments(Arguments, forbid_unknown_fields=True, frozen=True):
    spread_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None


class ReloadArguments(Arguments, forbid_unknown_fields=True, frozen=True):
    spread_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None
    canary: int | None = None
    """Slots to replace on probation."""
    guard: bool = False
    """Whether the supervisor is to roll the canary back by itself where it fares worse."""
    end: Literal["promote", "rollback"] | None = None
    """How a canary ends."""


class ScaleArguments(Arguments, forbid_unknown_fields=True, frozen=True):
    count: int


class ProfileArguments(Arguments, forbid_unknown_fields=True, frozen=True):
    pid: int
    duration_s: Annotated[float, msgspec.Meta(ge=0, le=PROFILE_S_MAX)]


class PublishArguments(Arguments, forbid_unknown_fields=True, frozen=True):
    channel: str
    data: Any
    tags: dict[str, str] = {}
    idempotency_key: str = ""


A = TypeVar("A", bound=Arguments)


class Verbs:
    """Carries out requests. `status`, `stop` and `upgrade` are the supervisor's own."""

    def __init__(
        self,
        runtime: Runtime,
        fleet: Fleet,
        running: Operations,
        *,
        slots_max: int,
        status: Callable[[], dict[str, Any]],
        stop: Callable[[Request], None],
        upgrade: Callable[[Report], Steps],
    ) -> None:
        self._runtime = runtime
        self._fleet = fleet
        self._operations = running
        self._slots_max = slots_max
        self._status = status
        self._stop = stop
        self._upgrade_steps = upgrade
        self._publishing = Publishing(runtime)
        self._leases: dict[Connection, list[Uplink]] = {}
        self._handlers: dict[str, Callable[[Request], None]] = {
            "status": self._answer_status,
            "slots": self._answer_slots,
            "config": self._answer_config,
            "survey": self._survey,
            "publish": self._publish,
            "uplink": self._lend_uplink,
            "profile": self._profile,
            "reload": self._reload,
            "scale": self._scale,
            "rebalance": self._rebalance,
            "drain": self._drain,
            "upgrade": self._upgrade,
            "stop": self._stop_gateway,
        }
        assert self._handlers.keys() == LEVELS.keys()

    def carry_out(self, request: Request) -> None:
        """Answers the request now or later. Errors are answers; they never reach the loop."""
        if LEVELS[request.verb] > Level.OBSERVER and request.verb not in ("publish", "uplink"):
            # As one value: a client's names must not meet those that a log record has already.
            told = {"peer": str(request.peer), "arguments": str(request.args)}
            logger.info(f"{request.verb} asked for", extra=told)
        try:
            self._handlers[request.verb](request)
        except TidegateError as error:
            request.fail(error)
        except Exception:
            # A defect in one verb is no reason to end everybody's connections.
            logger.exception(f"{request.verb} failed")
            request.fail(ControlError(f"{request.verb} failed", remedy="see the gateway's log"))

    def begin(
        self, name: str, requester: str, steps: Callable[[Report], Steps], request: Request | None
    ) -> None:
        """Starts a long verb for a request, or (None) for a signal. Raises ControlError if busy."""

        def end(result: dict[str, Any] | None, error: TidegateError | None) -> None:
            if request is not None and error is not None:
                request.fail(error)
            elif request is not None and result is not None:
                request.reply(result)

        progress = request.progress if request is not None else lambda values: None
        self._operations.begin(name, requester, steps, progress, end)

    # ---- seeing

    def _answer_status(self, request: Request) -> None:
        _arguments(request, Arguments)
        request.reply(self._status())

    def _answer_slots(self, request: Request) -> None:
        _arguments(request, Arguments)
        request.reply({"slots": self._fleet.describe()["workers"]})

    def _answer_config(self, request: Request) -> None:
        _arguments(request, Arguments)
        request.reply({"config": effective(self._runtime.config, self._runtime.host)})

    def _profile(self, request: Request) -> None:
        """Has a worker time its turns for a while, and tells what it has counted until now."""
        arguments = _arguments(request, ProfileArguments)
        workers = (worker for slot in self._fleet.slots for worker in slot.workers)
        worker = next((each for each in workers if each.pid == arguments.pid), None)
        if worker is None:
            raise ControlError(
                f"no worker has the pid {arguments.pid}",
                remedy="`tidegate slots` shows those that there are",
                code="no_worker",
            )
        if arguments.duration_s:
            worker.send("profile", duration_s=arguments.duration_s)
        counted = stats.by_row(self._runtime.memory.reader).get(worker.stats_row, {})
        request.reply(
            {"slot": worker.slot, "generation": worker.generation, "counted": counted},
        )

    # ---- producing

    def _publish(self, request: Request) -> None:
        arguments = _arguments(request, PublishArguments)

        def answer(outcome: dict[str, Any] | PublishError) -> None:
            if isinstance(outcome, PublishError):
                request.fail(outcome)
            else:
                request.reply(outcome)

        self._publishing.publish(
            arguments.channel, arguments.data, arguments.tags, arguments.idempotency_key, answer
        )

    def _survey(self, request: Request) -> None:
        """Has every worker write down the channels that it serves."""
        _arguments(request, Arguments)
        surveys = self._fleet.surveys
        if surveys.is_full:
            raise ControlError(
                "too many surveys are under way", remedy="ask again later", code="busy"
            )

        def answer(files: list[int]) -> None:
            request.reply({"fds": [f"channels-{number}" for number in range(len(files))]}, files)

        surveys.begin(self._fleet.workers(), answer)

    def _lend_uplink(self, request: Request) -> None:
        """An uplink for as long as the connection and the process behind it last."""
        _arguments(request, Arguments)
        runtime, connection = self._runtime, request.connection
        uplinks_max = runtime.config.log.uplinks_max
        lent = sum(len(uplinks) for uplinks in self._leases.values())
        if lent >= uplinks_max:
            runtime.memory.row.add('uplinks_refused_total{reason="limit"}')
            raise ControlError(
                f"all {uplinks_max} uplinks are lent",
                remedy="end some producers, or raise log.uplinks_max and reload",
                code="uplinks_max",
            )
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            uplink = runtime.uplinks.open(runtime.config, str(request.peer), wake)
            self._lease(connection, uplink)
            fds = {
                "uplink": uplink.segment.fd,
                "publisher_wake": runtime.memory.publisher_wake,
                "reply_wake": wake,
            }
            request.reply({"uplink": uplink.id, "fds": list(fds)}, list(fds.values()))
        finally:
            os.close(wake)

    def _lease(self, connection: Connection, uplink: Uplink) -> None:
        if connection not in self._leases:
            self._leases[connection] = []
            connection.on_close.append(lambda: self._end_leases(connection))
            connection.watch_process()
        self._leases[connection].append(uplink)

    def _end_leases(self, connection: Connection) -> None:
        for uplink in self._leases.pop(connection, []):
            self._runtime.uplinks.reclaim(uplink)

    @property
    def publishing(self) -> bool:
        """Whether a publish awaits its answer, be its client there or not."""
        return self._publishing.pending

    def end_publishing(self) -> None:
        """Gives the own uplink back: it does not cross an exec. The next publish takes another."""
        self._publishing.close()

    def carried(self) -> dict[str, Any]:
        """What `take_up` needs: uplinks by the descriptor of their connection."""
        return {
            "leases": [
                [connection.fileno(), [uplink.id for uplink in uplinks]]
                for connection, uplinks in self._leases.items()
            ]
        }

    def take_up(self, state: dict[str, Any], connections: dict[int, Connection]) -> None:
        """Goes on where `carried` left off."""
        for fd, uplinks in state["leases"]:
            for uplink in uplinks:
                self._lease(connections[fd], self._runtime.uplinks.named(uplink))

    # ---- operating

    def _reload(self, request: Request) -> None:
        arguments = _arguments(request, ReloadArguments)
        if arguments.guard and arguments.canary is None:
            raise ControlError(
                "reload: a guard needs a canary to guard",
                remedy="give `canary`, a number of slots, with `guard`",
                code="bad_arguments",
            )
        self.reload(str(request.peer), request, arguments)

    def reload(
        self,
        requester: str,
        request: Request | None,
        arguments: ReloadArguments = ReloadArguments(),  # noqa: B008 (frozen)
    ) -> None:
        """Starts a reload, counted by how it ends. Raises ControlError if that cannot be now."""
        row = self._runtime.memory.row

        def steps(report: Report) -> Steps:
            try:
                if arguments.end == "promote":
                    result = yield from reload.promote(self._fleet, report, arguments.spread_s)
                elif arguments.end == "rollback":
                    result = yield from reload.roll_back(self._fleet, report)
                else:
                    result = yield from reload.reload(
                        self._fleet,
                        report,
                        arguments.spread_s,
                        arguments.canary,
                        guard=arguments.guard,
                    )
            except TidegateError:
                row.add('reloads_total{result="failed"}')
                raise
            row.add('reloads_total{result="done"}')
            return result

        try:
            self.begin("reload", requester, steps, request)
        except ControlError:
            row.add('reloads_total{result="refused"}')
            raise

    def _scale(self, request: Request) -> None:
        self.scale(str(request.peer), request, _arguments(request, ScaleArguments).count)

    def scale(self, requester: str, request: Request | None, count: int) -> None:
        """Starts a change of the number of slots. Raises ControlError if that cannot be now."""

        def steps(report: Report) -> Steps:
            return scaling.scale(self._fleet, report, count, self._slots_max)

        self.begin(f"scale to {count}", requester, steps, request)

    def _rebalance(self, request: Request) -> None:
        _arguments(request, Arguments)
        self.rebalance(str(request.peer), request)

    def rebalance(self, requester: str, request: Request | None) -> None:
        """Starts to even out the slots. Raises ControlError if that cannot be now."""
        self.begin(
            "rebalance", requester, lambda report: scaling.rebalance(self._fleet, report), request
        )

    def _drain(self, request: Request) -> None:
        spread_s = _arguments(request, SpreadArguments).spread_s

        def steps(report: Report) -> Steps:
            return scaling.drain(self._fleet, report, spread_s)

        self.begin("drain", str(request.peer), steps, request)

    def _upgrade(self, request: Request) -> None:
        _arguments(request, Arguments)
        self.upgrade(str(request.peer), request)

    def upgrade(self, requester: str, request: Request | None) -> None:
        """Starts an upgrade, or goes on with it. Raises ControlError if that cannot be now."""
        self.begin("upgrade", requester, self._upgrade_steps, request)

    def _stop_gateway(self, request: Request) -> None:
        _arguments(request, Arguments)
        self._stop(request)


def _arguments(request: Request, kind: type[A]) -> A:
    try:
        return msgspec.convert(request.args, kind)
    except msgspec.ValidationError as error:
        raise ControlError(
            f"{request.verb}: {error}",
            remedy=f"it takes {', '.join(kind.__struct_fields__) or 'no arguments'}",
            code="bad_arguments",
        ) from error
