"""`tidegate doctor` on the machine that runs the tests, and the line at a gateway's start."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway, running_gateway

TIMEOUT_S = 60.0
MAIN = [sys.executable, "-m", "ops.cli"]

SCHEMA: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "status": (str,),
    "now": (int, float, str, type(None)),
    "wanted": (int, float, str, type(None)),
    "unit": (str,),
    "holds": (int, type(None)),
    "why": (str,),
    "remedy": (str,),
}
STATUSES = {"ok", "note", "warning", "cannot"}
VERDICTS = {"ok": 0, "warning": 1, "cannot": 2}

# What is the machine's and not a namespace's is covered by copies; the rest is the namespace's own.
IN_PRIVATE = """
set -e
for covered in /proc/sys/fs /sys/kernel/mm/transparent_hugepage; do
    copy={spare}/$(basename $covered)
    mkdir "$copy"
    cp -r --no-preserve=all $covered/. "$copy" 2>/dev/null || true
    mount --bind "$copy" $covered
done
echo 4096 > /proc/sys/fs/nr_open
echo 64 > /proc/sys/net/core/somaxconn
exec "$@"
"""

AS_A_STRANGER = """
import os
from pathlib import Path
from ops.tune import NotRoot, apply
os.setuid(54321)
try:
    apply([], Path("/"))
except NotRoot as error:
    print(error.code)
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(*MAIN, "doctor", *arguments)


@pytest.fixture
def spare() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tidegate-") as made:
        yield Path(made)


def in_private(spare: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """The command as root of private namespaces, in which settings reach nobody else."""
    script = IN_PRIVATE.format(spare=spare)
    return run("unshare", "--net", "--mount", "sh", "-c", script, "sh", *command)


@pytest.mark.parametrize("arguments", [(), ("--connections", "100"), ("--connections", "1e9")])
def test_the_json_has_one_schema_and_the_exit_status_is_its_verdict(
    arguments: tuple[str, ...],
) -> None:
    done = doctor("--json", *arguments)
    told: dict[str, Any] = json.loads(done.stdout)
    assert set(told) == {"schema", "connections", "workers", "verdict", "holds", "checks"}
    assert told["schema"] == 1
    assert done.returncode == VERDICTS[told["verdict"]]
    for check in told["checks"]:
        assert set(check) == set(SCHEMA)
        assert all(isinstance(check[key], types) for key, types in SCHEMA.items()), check
        assert check["status"] in STATUSES
        assert bool(check["remedy"]) <= (check["status"] != "ok")
    names = [check["name"] for check in told["checks"]]
    assert len(names) == len(set(names))
    assert {"RLIMIT_NOFILE", "fs.nr_open", "memory", "/dev/shm", "io_uring", "kTLS"} <= set(names)


def test_no_machine_holds_a_thousand_million() -> None:
    done = doctor("--connections", "1e9")
    assert done.returncode == 2
    assert "CANNOT hold 1,000,000,000 connections" in done.stdout


def test_each_check_has_its_row_for_people() -> None:
    shown = doctor("--connections", "1000").stdout
    for word in ("CHECK", "NOW", "WANTED", "HOLDS", "WHY", "net.ipv4.tcp_mem", "clocksource"):
        assert word in shown


def test_what_the_configuration_comes_to_is_what_is_checked() -> None:
    flags = ("--set", "limits.connections_max=300", "--set", "workers.count=3")
    told = json.loads(doctor("--json", *flags).stdout)
    assert (told["connections"], told["workers"]) == (900, 3)


def test_a_configuration_that_this_machine_cannot_hold_is_diagnosed_and_not_refused() -> None:
    flags = ("--set", "limits.connections_max=16000000", "--set", "workers.count=128")
    done = doctor("--json", *flags)
    assert done.returncode == 2
    assert json.loads(done.stdout)["verdict"] == "cannot"


def test_the_limits_of_another_process_can_be_judged() -> None:
    with subprocess.Popen(
        ["sh", "-c", "ulimit -n 300; echo; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        told = json.loads(doctor("--json", "--pid", str(other.pid)).stdout)
        other.communicate(b"\n")
    descriptors = next(check for check in told["checks"] if check["name"] == "RLIMIT_NOFILE")
    assert descriptors["now"] == 300
    gone = doctor("--pid", str(other.pid))
    assert gone.returncode == 2
    assert "no such process" in gone.stderr


@pytest.mark.parametrize("connections", ["0", "-1", "1.5", "many", "inf", "nan", "1e10"])
def test_a_number_of_connections_that_is_none_is_refused(connections: str) -> None:
    done = doctor("--connections", connections)
    assert done.returncode == 2
    assert "--connections" in done.stderr


def test_the_fix_script_passes_the_shell(spare: Path) -> None:
    script = spare / "fix.sh"
    script.write_text(doctor("--connections", "1e6", "--fix-script").stdout)
    assert script.read_text().startswith("#!/bin/sh\n")
    assert run("sh", "-n", str(script)).returncode == 0


def test_a_script_is_neither_json_nor_applied() -> None:
    for other in ("--json", "--apply"):
        done = doctor("--fix-script", other)
        assert done.returncode == 2
        assert "leave out" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="private namespaces need root")
def test_apply_raises_what_it_can_and_tells_what_it_cannot(spare: Path) -> None:
    before = Path("/proc/sys/fs/nr_open").read_text(), Path("/proc/sys/fs/file-max").read_text()
    apply = [*MAIN, "doctor", "--connections", "1e6", "--set", "workers.count=2", "--apply"]
    done = in_private(spare, *apply, "--json")
    told = json.loads(done.stdout)
    outcomes = {outcome["name"]: outcome for outcome in told["applied"]}
    somaxconn, nr_open = outcomes["net.core.somaxconn"], outcomes["fs.nr_open"]
    assert (somaxconn["before"], somaxconn["after"]) == ("64", "4096")
    assert (nr_open["before"], nr_open["after"]) == ("4096", "500256")
    after = {check["name"]: check for check in told["checks"]}
    assert after["net.core.somaxconn"]["status"] == "ok"
    assert after["fs.nr_open"]["now"] == 500256
    for outcome in told["applied"]:
        assert outcome["reason"] or outcome["before"] != outcome["after"]
    # Nothing of it left the namespaces.
    assert before == (
        Path("/proc/sys/fs/nr_open").read_text(),
        Path("/proc/sys/fs/file-max").read_text(),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="private namespaces need root")
@pytest.mark.skipif(shutil.which("sysctl") is None, reason="there is no sysctl here")
def test_the_fix_script_does_what_it_says(spare: Path) -> None:
    flags = ("--connections", "1e6", "--set", "workers.count=2", "--fix-script")
    script = f"""
        mount -t tmpfs tmpfs /etc/sysctl.d
        {shlex.join([*MAIN, "doctor", *flags])} | sh
        cat /proc/sys/net/core/somaxconn /proc/sys/fs/nr_open /etc/sysctl.d/*
    """
    lines = in_private(spare, "sh", "-c", script).stdout.splitlines()
    assert {"4096", "500256", "net.core.somaxconn = 4096", "fs.nr_open = 500256"} <= set(lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's identity needs root")
def test_apply_is_for_root() -> None:
    # The modules are loaded before the identity changes: their folder may be closed to strangers.
    done = run(sys.executable, "-c", AS_A_STRANGER)
    assert done.stdout == "not_root\n"


# ---- the line at a gateway's start


def warnings(gateway: Gateway) -> list[str]:
    return [line for line in gateway.log().splitlines() if "tidegate doctor" in line]


def test_a_start_with_few_descriptors_warns_once(spare: Path) -> None:
    gateway = Gateway(spare)
    script = 'ulimit -n 1024; exec "$@"'
    run_it = [*MAIN, "run", "-c", str(gateway.config_path)]
    with gateway.log_path.open("ab") as log:
        gateway.process = subprocess.Popen(
            ["sh", "-c", script, "sh", *run_it],
            env=os.environ | {"NOTIFY_SOCKET": str(spare / "notify")},
            stdout=log,
            stderr=log,
        )
    try:
        gateway.wait_notified("READY=1")
        gateway.control("reload")
    finally:
        gateway.close()
    (line,) = warnings(gateway)
    assert "WARNING" in line.upper()
    assert "holds 1,536 connections" in line
    assert "RLIMIT_NOFILE is 1024" in line


def test_a_start_that_lacks_nothing_says_nothing() -> None:
    with running_gateway({"limits": {"connections_max": 100}}) as gateway:
        assert warnings(gateway) == []
