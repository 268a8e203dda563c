"""From a file, the environment and flags to one checked `Config`; every fault is found at once."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from gateway.config.checks import Host, check, connections_max, worker_count
from gateway.config.schema import SECRETS, SECTIONS, Config, Namespace, Section
from gateway.errors import ConfigError, Problem

ENVIRONMENT_PREFIX = "TIDEGATE_"

_LONGEST_FIRST = sorted(SECTIONS, key=len, reverse=True)


def load(
    path: Path | str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    host: Host | None = None,
) -> Config:
    """The configuration of `path` (none: the defaults), then the environment, then `flags`.

    `environment` (default: this process's) may override any key as TIDEGATE_<SECTION>_<KEY>;
    `flags` maps `section.key` to a value. Raises ConfigError with every problem found.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    file_values = _read_file(Path(path)) if path is not None else {}
    for section, key, value in _known_keys(file_values, problems):
        _take(f"{section}.{key}", value, f"file {path}", values, origins, problems)
    variables = os.environ if environment is None else environment
    for key, variable in _environment_keys(variables, problems):
        origin = f"environment {variable}"
        _take(key, variables[variable], origin, values, origins, problems, text=True)
    for key, value in (flags or {}).items():
        _take(key, value, "flag", values, origins, problems, text=isinstance(value, str))
    config = _build(values, origins, str(path or ""), dict(flags or {}))
    problems += check(config, host or Host.here())
    if problems:
        raise ConfigError(str(path) if path is not None else "configuration", problems)
    return config


def reread(config: Config) -> Config:
    """The configuration as its file and the environment have it now. Raises as `load` does."""
    return load(config.path or None, flags=config.flags)


def effective(config: Config, host: Host | None = None) -> dict[str, dict[str, Any]]:
    """Every key as `{"section.key": {"value": ..., "origin": ...}}`; secrets are not shown.

    Keys that are left to the gateway (0) also have `resolved`: what that comes to on `host`
    (default: this one).
    """
    shown: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        for key, value in msgspec.to_builtins(getattr(config, section)).items():
            name = f"{section}.{key}"
            hidden = name in SECRETS and bool(value)
            shown[name] = {
                "value": "(set)" if hidden else value,
                "origin": config.origins.get(name, "default"),
            }
    machine = host or Host.here()
    for name, resolved in (
        ("workers.count", worker_count(config, machine)),
        ("limits.connections_max", connections_max(config, machine)),
    ):
        if shown[name]["value"] == 0:
            shown[name]["resolved"] = resolved
    return shown


def differing_keys(one: Config, other: Config) -> list[str]:
    """The keys, as `section.key`, in which two configurations differ."""
    return [
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in msgspec.structs.fields(kind)
        if getattr(getattr(one, section), field.name)
        != getattr(getattr(other, section), field.name)
    ]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            str(path), [Problem(str(path), "", reason, "give a readable file")]
        ) from (error)
    except (ValueError, RecursionError) as error:
        # Of tomllib: its own error, and those of bytes, numbers and depths that Python refuses.
        problem = Problem(str(path), "", f"not TOML: {error}", "see https://toml.io")
        raise ConfigError(str(path), [problem]) from error


def _known_keys(
    tables: Mapping[str, Any], problems: list[Problem]
) -> Iterable[tuple[str, str, Any]]:
    """The file's keys that exist, as (section, key, value); the others become problems."""
    for section, keys in tables.items():
        if section not in SECTIONS:
            problems.append(_unknown(section, "section", SECTIONS))
        elif not isinstance(keys, dict):
            problems.append(
                Problem(section, _show(keys), "is a section, not a value", f"write [{section}]")
            )
        else:
            known = _field_types(SECTIONS[section])
            for key, value in keys.items():
                if key in known:
                    yield section, key, value
                else:
                    problems.append(_unknown(key, "key", known, section))


def _unknown(name: str, what: str, known: Iterable[str], section: str = "") -> Problem:
    candidates = list(known)
    if section and not difflib.get_close_matches(name, candidates):
        # The right word under the wrong heading is the other common slip.
        homes = [other for other, kind in SECTIONS.items() if name in _field_types(kind)]
        if homes:
            remedy = f"did you mean {name} in [{homes[0]}]?"
            return Problem(f"{section}.{name}", "", f"unknown {what}", remedy)
    close = difflib.get_close_matches(name, candidates, n=1)
    listed = ", ".join(sorted(candidates)) if len(candidates) <= 16 else "see deploy/tidegate.toml"
    remedy = f"did you mean {close[0]}?" if close else f"known here: {listed}"
    return Problem(f"{section}.{name}" if section else f"[{name}]", "", f"unknown {what}", remedy)


def _environment_keys(
    environment: Mapping[str, str], problems: list[Problem]
) -> Iterable[tuple[str, str]]:
    """The environment's (section.key, variable) pairs; misspelt ones become problems."""
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX) or _is_service_link(
            variable, environment[variable]
        ):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        section = next((each for each in _LONGEST_FIRST if name.startswith(f"{each}_")), None)
        if section is None:
            continue  # other TIDEGATE_ variables belong to the command line, or to nobody
        key = name.removeprefix(f"{section}_")
        known = _field_types(SECTIONS[section])
        if key in known:
            yield f"{section}.{key}", variable
        else:
            problem = _unknown(key, "key", known, section)
            problems.append(Problem(variable, "", problem.reason, problem.remedy))


def _is_service_link(variable: str, value: str) -> bool:
    """Whether Kubernetes made this variable for a Service named `tidegate-<section>`.

    For a Service `tidegate-api` every pod of the namespace gets TIDEGATE_API_PORT=tcp://10.0.0.7:80
    and TIDEGATE_API_SERVICE_HOST and more (`enableServiceLinks`). They are not meant for us.
    """
    return bool(
        re.search(r"_SERVICE_(HOST|PORT)(_|$)|_PORT_\d+_(TCP|UDP|SCTP)", variable)
        or (variable.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", value))
    )


def _field_types(kind: type[Section]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def _take(
    name: str,
    value: Any,
    origin: str,
    values: dict[str, Any],
    origins: dict[str, str],
    problems: list[Problem],
    *,
    text: bool = False,
) -> None:
    """Converts one value and keeps it, or keeps the problem. `text`: the value came as a string."""
    section, _, key = name.partition(".")
    wanted = _field_types(SECTIONS[section]).get(key) if section in SECTIONS else None
    if wanted is None:
        known = [f"{s}.{k}" for s, kind in SECTIONS.items() for k in _field_types(kind)]
        problems.append(_unknown(name, "key", known))
        return
    if wanted == list[Namespace]:
        problems += _namespace_problems(name, value)
    try:
        if isinstance(value, str):
            value.encode()  # what came as bytes that are no UTF-8 (PEP 383) is no text
        if text and wanted in (list[str], list[Namespace]):
            value = _list_from_text(value)
        values[name] = msgspec.convert(value, wanted, strict=not text)
        origins[name] = origin
    except (msgspec.ValidationError, ValueError) as error:
        shown = "(hidden)" if name in SECRETS else _show(value)
        where = "" if origin.startswith("file") else f" (from {origin})"
        problems.append(Problem(name, shown, f"{_plain(error)}{where}", _remedy(name)))


def _list_from_text(value: Any) -> Any:
    """A list given as text: JSON if it looks like it, else words between commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return msgspec.json.decode(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def _namespace_problems(name: str, value: Any) -> list[Problem]:
    """Unknown keys inside `[[channel.namespaces]]`: msgspec would pass over them in silence."""
    known = [field.name for field in msgspec.structs.fields(Namespace)]
    return [
        _unknown(key, "key", known, f"{name}[{index}]")
        for index, table in enumerate(value if isinstance(value, list) else [])
        if isinstance(table, dict)
        for key in table
        if key not in known
    ]


def _plain(error: Exception) -> str:
    """msgspec's message in the words of a configuration: `$` is the value itself."""
    message = str(error).replace(" - at `$`", "").replace("`", "")
    return (message[:1].lower() + message[1:]).replace(" - at $", " at ")


def _remedy(name: str) -> str:
    section, _, key = name.partition(".")
    default = msgspec.to_builtins(getattr(Config(), section))[key]
    wanted = _field_types(SECTIONS[section])[key]
    hints = [
        f"use {meta.description}"
        for meta in get_args(wanted)
        if isinstance(meta, msgspec.Meta) and meta.description
    ]
    if get_origin(wanted) is Literal:
        hints.append(f"use one of {', '.join(map(_show, get_args(wanted)))}")
    elif wanted == list[str]:
        hints.append('write a list, such as ["one", "two"]')
    return "; ".join([*hints, f"the default is {_show(default)}"])


def _show(value: Any) -> str:
    """A value nearly as TOML would have it, cut to a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."


def _build(
    values: Mapping[str, Any], origins: dict[str, str], path: str, flags: dict[str, Any]
) -> Config:
    sections: dict[str, Any] = {
        section: kind(
            **{
                name.partition(".")[2]: value
                for name, value in values.items()
                if name.partition(".")[0] == section
            }
        )
        for section, kind in SECTIONS.items()
    }
    return Config(**sections, origins=origins, path=path, flags=flags)
