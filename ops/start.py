"""`run` and `check-config`: the two commands that read a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ops.command import ends_well, json_option
from ops.output import Exit, Output, table

config_option = click.option(
    "-c",
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file; without it every key has its default.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key, such as workers.count=4; may be given several times.",
)


@click.command()
@config_option
@set_option
@json_option
@ends_well
def run(output: Output, path: Path | None, overrides: tuple[str, ...]) -> Exit:
    """Start a gateway in the foreground.

    \b
    Examples:
      tidegate run
      tidegate run -c /etc/tidegate/tidegate.toml
      tidegate run --set workers.count=4 --set client.http_port=9000

    Says where each port and the control socket is. TERM stops it gracefully, INT fast, HUP reloads,
    USR2 upgrades.
    """
    from gateway.run import run as supervise

    return Exit(supervise(load_with_application(path, overrides)))


@click.command("check-config")
@config_option
@set_option
@click.option("--show", is_flag=True, help="Print every key with its value and origin.")
@json_option
@ends_well
def check_config(output: Output, path: Path | None, overrides: tuple[str, ...], show: bool) -> None:
    """Check a configuration against this machine.

    \b
    Examples:
      tidegate check-config -c /etc/tidegate/tidegate.toml
      tidegate check-config --show

    Starts nothing. Every problem is told with its key, its value and what to do; the exit status is
    2 then.
    """
    from gateway.config import effective

    config = load_with_application(path, overrides)
    values = effective(config)
    if output.as_json:
        output.data({"ok": True, "config": values})
        return
    if show:
        show_config(output, values)
    output.note(f"{path or 'the default configuration'}: ok")


def show_config(output: Output, values: dict[str, dict[str, Any]]) -> None:
    rows = [(key, _shown(each), each["origin"]) for key, each in values.items()]
    output.show(table(("KEY", "VALUE", "ORIGIN"), rows))


def load_config(path: Path | None, overrides: tuple[str, ...]) -> Any:
    from gateway.config import load

    return load(path, flags=parse_overrides(overrides))


def load_with_application(path: Path | None, overrides: tuple[str, ...]) -> Any:
    """The configuration, whose application can be loaded: it was tried as workers will."""
    from gateway.errors import ConfigError, Problem

    config = load_config(path, overrides)
    if not (spec := config.hooks.app):
        return config
    from workers.hooks import HookError, check_application

    try:
        check_application(spec)
    except HookError as error:
        problem = Problem("hooks.app", f'"{spec}"', error.reason, error.remedy)
        raise ConfigError(str(path or "configuration"), [problem]) from error
    return config


def parse_overrides(overrides: tuple[str, ...]) -> dict[str, str]:
    """The values of `--set`, by key."""
    flags = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise click.UsageError(f"--set {override}: write KEY=VALUE")
        flags[key] = value
    return flags


def _shown(each: dict[str, Any]) -> str:
    value = _toml(each["value"])
    return f"{value} (here {each['resolved']})" if "resolved" in each else value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


COMMANDS = [run, check_config]
