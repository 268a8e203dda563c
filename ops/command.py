"""What all commands share: their options, the way to the instance, and how they end."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gateway.errors import TidegateError
from ops.output import Exit, Output

if TYPE_CHECKING:
    from gateway.control.client import ControlClient

TIMEOUT_S = 5.0
"""Default of `--timeout` where the supervisor answers at once."""
LONG_TIMEOUT_S = 60.0
"""Default of `--timeout` for verbs that tell their progress: they are never silent for so long."""

TIME_S_MAX = 31_536_000.0
"""A year is as good as never, and far below what the kernel's timers refuse."""

Command = Callable[..., Exit | None]


class Number(click.FloatRange):
    """Of that range, which `nan` is not: to click it is neither below nor above."""

    def __init__(self, least: float, most: float) -> None:
        super().__init__(min=least, max=most)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


class Seconds(Number):
    """A time of at least `least` seconds, and finite."""

    def __init__(self, least: float, most: float = TIME_S_MAX) -> None:
        super().__init__(least, most)


class Count(click.IntRange):
    """A number of things, also as 1e6."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        with contextlib.suppress(ValueError, OverflowError):
            value = int(float(value)) if float(value).is_integer() else value
        return int(super().convert(value, param, ctx))


def ends_well(command: Command) -> Callable[..., None]:
    """Gives the command an Output, and turns what it returns or raises into an exit status."""

    @functools.wraps(command)
    def run(*args: Any, as_json: bool, **options: Any) -> None:
        output = Output(as_json=as_json)
        try:
            status = command(*args, output=output, **options) or Exit.OK
        except TidegateError as error:
            status = output.error(error)
        except KeyboardInterrupt:
            status = Exit.INTERRUPTED
        raise SystemExit(int(status))

    return run


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def instance_options(*, timeout_s: float = TIMEOUT_S) -> Callable[[Command], Callable[..., None]]:
    """The options by which a command finds its gateway; gives the command a `connect` function."""

    def decorate(command: Command) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, instance: str, socket: str, timeout: float, **options: Any) -> Any:
            return command(
                *args, connect=functools.partial(_connect, instance, socket, timeout), **options
            )

        decorated = ends_well(run)
        for option in (
            click.option(
                "--timeout",
                type=Seconds(0.001),
                default=timeout_s,
                show_default=True,
                metavar="SECONDS",
                help="Give up when the gateway is silent for so long.",
            ),
            click.option(
                "--socket", default="", metavar="PATH", help="Control socket of the gateway."
            ),
            click.option(
                "-i",
                "--instance",
                default="",
                metavar="NAME",
                help="Name of the gateway; not needed when one runs on this host.",
            ),
            json_option,
        ):
            decorated = option(decorated)
        return decorated

    return decorate


def _connect(instance: str, socket: str, timeout_s: float) -> ControlClient:
    from gateway.control.client import ControlClient, find_instance

    path = socket or find_instance(instance).control_path
    return ControlClient(path, timeout_s=timeout_s)


Connect = Callable[[], "ControlClient"]
