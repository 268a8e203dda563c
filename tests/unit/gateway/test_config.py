"""The configuration: defaults, origins, every problem at once, and the reference file."""

from __future__ import annotations

import errno
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from gateway.config import SECTIONS, Config, Host, Namespace, connections_max, derived, effective
from gateway.config.load import differing_keys, load, reread
from gateway.config.schema import ChannelSection
from gateway.errors import ConfigError, Problem
from tests.support.worker import SETTINGS as WORKER_SETTINGS
from workers.link import MESSAGE_BYTES_MAX
from workers.settings import TokenSettings

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "deploy" / "tidegate.toml"
GIB = 1 << 30
ED25519_PEM = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----"""
HOST = Host(cpus=4, memory_bytes=16 * GIB, descriptors_max=1_048_576)


def loaded(text: str = "", tmp_path: Path | None = None, **more: Any) -> Config:
    path = None
    if tmp_path is not None:
        path = tmp_path / "tidegate.toml"
        path.write_text(text)
    return load(path, **{"environment": {}, "host": HOST, **more})


def problems(text: str, tmp_path: Path, **more: Any) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, tmp_path, **more)
    return {problem.key: problem for problem in caught.value.problems}


def keys_of(tables: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value for section in tables for key, value in tables[section].items()
    }


def test_the_reference_file_has_every_default_and_nothing_else() -> None:
    written = keys_of(tomllib.loads(REFERENCE.read_text()))
    built_in = {
        f"{section}.{key}": value
        for section in SECTIONS
        for key, value in msgspec.to_builtins(getattr(Config(), section)).items()
    }
    assert written == built_in
    assert {key: type(value) for key, value in written.items()} == {
        key: type(value) for key, value in built_in.items()
    }


def test_the_reference_file_loads_and_changes_nothing() -> None:
    config = load(REFERENCE, environment={}, host=HOST)
    assert differing_keys(config, loaded()) == []
    assert {each["origin"] for each in effective(config).values()} == {f"file {REFERENCE}"}


def test_the_reference_file_explains_every_key() -> None:
    """A comment stands above each group of keys."""
    groups = [group.strip().splitlines() for group in REFERENCE.read_text().split("\n\n")]
    silent = [group[0] for group in groups if not group[0].startswith(("#", "["))]
    assert silent == []
    headings = [group for group in groups if group[0].startswith("[")]
    assert all(len(group) == 1 for group in headings)


@pytest.mark.parametrize("cpus", [1, 2, 64, 512])
@pytest.mark.parametrize("memory_bytes", [512 << 20, 2 * GIB, 1024 * GIB])
@pytest.mark.parametrize("descriptors_max", [4096, 1_048_576])
def test_the_defaults_hold_on_machines_of_every_size(
    cpus: int, memory_bytes: int, descriptors_max: int
) -> None:
    host = Host(cpus, memory_bytes, descriptors_max)
    config = loaded(host=host)
    assert 0 < connections_max(config, host) < descriptors_max


def test_every_problem_is_told_at_once_with_key_value_and_remedy(tmp_path: Path) -> None:
    found = problems(
        """
        [gateway]
        name = "No Good"
        [workers]
        count = "four"
        pin = "socket"
        [limits]
        message_bytes_max = 1
        [logs]
        capacity_bytes = 1
        """,
        tmp_path,
    )
    assert set(found) == {
        "gateway.name",
        "workers.count",
        "workers.pin",
        "limits.message_bytes_max",
        "[logs]",
    }
    assert found["gateway.name"].value == '"No Good"'
    assert "a-z" in found["gateway.name"].remedy
    assert "expected int" in found["workers.count"].reason
    assert found["workers.pin"].remedy.endswith('the default is "node"')
    assert found["[logs]"].remedy == "did you mean log?"


def test_a_misspelt_key_is_refused_with_the_likely_one(tmp_path: Path) -> None:
    found = problems("[limits]\nmesage_bytes_max = 4096\n", tmp_path)
    assert found["limits.mesage_bytes_max"].remedy == "did you mean message_bytes_max?"


def test_a_key_under_the_wrong_heading_is_refused_with_its_home(tmp_path: Path) -> None:
    found = problems("[workers]\nuplinks_max = 4\n", tmp_path)
    assert found["workers.uplinks_max"].remedy == "did you mean uplinks_max in [log]?"


def test_namespaces_are_checked_inside(tmp_path: Path) -> None:
    found = problems('[[channel.namespaces]]\nname = "a"\nallow_subscribe = true\n', tmp_path)
    remedy = found["channel.namespaces[0].allow_subscribe"].remedy
    assert remedy == "did you mean allow_subscribe_for_client?"
    found = problems('[[channel.namespaces]]\nname = "a b"\n', tmp_path)
    assert "[0].name" in found["channel.namespaces"].reason
    found = problems("[[channel.namespaces]]\nname = 'a'\n" * 2, tmp_path)
    assert found["channel.namespaces[1].name"].reason == "is there twice"


def test_a_file_that_is_not_there_or_not_toml_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", environment={}, host=HOST)
    assert "not TOML" in next(iter(problems("[gateway", tmp_path).values())).reason


@pytest.mark.parametrize(
    "text",
    [f"a = {'[' * 5000}", f"a = {'9' * 5000}", "a = 1\na = 2"],
    ids=["deep", "long", "twice"],
)
def test_what_python_cannot_read_as_toml_is_one_problem(text: str, tmp_path: Path) -> None:
    (problem,) = problems(text, tmp_path).values()
    assert "not TOML" in problem.reason


@pytest.mark.parametrize(
    ("section", "key", "remedy"),
    [
        ("gateway", "log_level", '"debug", "info", "warning", "error"'),
        ("workers", "pin", '"node", "cpu", "none"'),
        ("client", "allowed_origins", '["one", "two"]'),
    ],
)
def test_a_refused_value_comes_with_those_that_are_possible(
    section: str, key: str, remedy: str, tmp_path: Path
) -> None:
    found = problems(f"[{section}]\n{key} = true", tmp_path)
    assert remedy in found[f"{section}.{key}"].remedy


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("gateway", "run_dir", "/tmp/a\0b"),
        ("gateway", "log_file", "/tmp/a\0b"),
        ("api", "socket", "/tmp/a\0b"),
        ("gateway", "log_file", "/tmp/\udcff"),
        ("api", "key", "clé"),
        ("api", "key", "a\nb"),
        ("api", "key", " a"),
    ],
)
def test_a_text_that_cannot_be_used_where_it_goes_is_refused(
    section: str, key: str, value: str, tmp_path: Path
) -> None:
    found = problems("", tmp_path, flags={f"{section}.{key}": value})
    problem = found[f"{section}.{key}"]
    assert problem.remedy
    str(problem).encode()
    assert key != "key" or problem.value == "(hidden)"


def test_the_environment_overrides_the_file_and_flags_override_both(tmp_path: Path) -> None:
    config = loaded(
        "[workers]\ncount = 1\nstable_s = 5\n[client]\nbacklog = 7\n",
        tmp_path,
        environment={"TIDEGATE_WORKERS_COUNT": "2", "TIDEGATE_CLIENT_BACKLOG": "8"},
        flags={"workers.count": "3"},
    )
    shown = effective(config)
    assert shown["workers.count"] == {"value": 3, "origin": "flag"}
    assert shown["client.backlog"] == {
        "value": 8,
        "origin": "environment TIDEGATE_CLIENT_BACKLOG",
    }
    assert shown["workers.stable_s"]["origin"] == f"file {tmp_path / 'tidegate.toml'}"
    assert shown["workers.pin"] == {"value": "node", "origin": "default"}


@pytest.mark.parametrize(
    "text", ["https://a.example, https://b.example", '["https://a.example","https://b.example"]']
)
def test_lists_come_from_the_environment_as_words_or_json(text: str) -> None:
    config = loaded(environment={"TIDEGATE_CLIENT_ALLOWED_ORIGINS": text})
    assert config.client.allowed_origins == ["https://a.example", "https://b.example"]


def test_namespaces_come_from_the_environment_as_json() -> None:
    text = '[{"name": "news", "allow_subscribe_for_client": true}]'
    config = loaded(environment={"TIDEGATE_CHANNEL_NAMESPACES": text})
    assert [namespace.name for namespace in config.channel.namespaces] == ["news"]


def test_a_misspelt_variable_is_refused_and_foreign_ones_are_not(tmp_path: Path) -> None:
    foreign = {"TIDEGATE_SOMETHING": "1", "TIDEGATE_INSTANCE": "x", "HOME": "/"}
    found = problems("", tmp_path, environment={"TIDEGATE_API_THREDS": "1", **foreign})
    assert list(found) == ["TIDEGATE_API_THREDS"]


def test_the_variables_of_kubernetes_services_are_not_taken_for_ours() -> None:
    links = {
        "TIDEGATE_API_PORT": "tcp://10.0.0.7:80",
        "TIDEGATE_API_SERVICE_HOST": "10.0.0.7",
        "TIDEGATE_API_SERVICE_PORT": "80",
        "TIDEGATE_API_PORT_80_TCP": "tcp://10.0.0.7:80",
        "TIDEGATE_API_PORT_80_TCP_ADDR": "10.0.0.7",
    }
    assert loaded(environment=links).api.port == 8002


def test_a_wrong_secret_is_not_shown(tmp_path: Path) -> None:
    found = problems("[api]\nkey = 12345\n", tmp_path)
    assert found["api.key"].value == "(hidden)"
    config = loaded('[api]\nkey = "hush"\n', tmp_path)
    assert effective(config)["api.key"]["value"] == "(set)"


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("[limits]\nqueue_soft_bytes = 2000000", "limits.queue_soft_bytes", "queue_hard_bytes"),
        (
            "[limits]\nqueue_hard_bytes = 65536\nqueue_soft_bytes = 65536",
            "limits.queue_hard_bytes",
            "message_bytes_max = 65536 would not fit",
        ),
        (
            "[limits]\nconnections_max = 100000",
            "limits.connections_max",
            "x 4 workers x limits.queue_soft_bytes = 262144 is 100,000 MiB, "
            "the machine has 16,384 MiB",
        ),
        (
            "[limits]\nconnections_max = 1048500\nqueue_soft_bytes = 1024",
            "limits.connections_max",
            "RLIMIT_NOFILE is 1048576",
        ),
        ("[log]\ncapacity_bytes = 33554431", "log.capacity_bytes", "power of two"),
        ("[log]\ncapacity_bytes = 65536", "log.capacity_bytes", "an eighth"),
        ("[log]\ncapacity_bytes = 17179869184", "log.capacity_bytes", "over half"),
        ("[log]\nuplink_bytes = 65536", "log.uplink_bytes", "an eighth"),
        ("[log]\nuplinks_max = 4", "log.uplinks_max", "need 5 at a reload"),
        ("[websocket]\npong_timeout_s = 26", "websocket.pong_timeout_s", "ping_interval_s"),
        ("[tcp]\nheartbeat_timeout_s = 31", "tcp.heartbeat_timeout_s", "twice"),
        ("[workers]\nstall_timeout_s = 0.5", "workers.stall_timeout_s", ">= 1"),
        ("[log]\nlag_budget_ms = 5001", "log.lag_budget_ms", "set at most 5000"),
        ("[stop]\nspread_s = 11", "stop.spread_s", "stop.timeout_s"),
        ("[client]\naddress = 'localhost'", "client.address", "not an IP address"),
        ("[client]\ntcp_port = 8000", "client.tcp_port", "client.http_port"),
        ("[gateway]\nrun_dir = 'run'", "gateway.run_dir", "absolute"),
        (f"[gateway]\nrun_dir = '/{'r' * 100}'", "gateway.run_dir", "at most 107 bytes"),
    ],
)
def test_what_cannot_hold_is_refused_with_the_arithmetic(
    text: str, key: str, says: str, tmp_path: Path
) -> None:
    problem = problems(text, tmp_path)[key]
    assert says in f"{problem.reason} {problem.remedy}"
    assert problem.value
    assert problem.remedy


def test_what_the_remedy_says_is_accepted(tmp_path: Path) -> None:
    remedy = problems("[limits]\nconnections_max = 100000", tmp_path)["limits.connections_max"]
    soft = int(remedy.remedy.rsplit(" ", 1)[1])
    text = f"[limits]\nconnections_max = 100000\nqueue_soft_bytes = {soft}"
    assert loaded(text, tmp_path).limits.queue_soft_bytes == soft


def test_what_is_left_to_the_gateway_is_shown_resolved() -> None:
    shown = effective(loaded(), HOST)
    assert shown["workers.count"] == {"value": 0, "origin": "default", "resolved": 4}
    assert shown["limits.connections_max"]["resolved"] == 16 * GIB // (262144 * 4)
    assert "resolved" not in effective(loaded(flags={"workers.count": 4}), HOST)["workers.count"]


def test_two_ports_may_both_be_any_port(tmp_path: Path) -> None:
    config = loaded("[client]\nhttp_port = 0\ntcp_port = 0\n[api]\nport = 0\n", tmp_path)
    assert (config.client.http_port, config.client.tcp_port, config.api.port) == (0, 0, 0)


def test_rereading_sees_the_file_anew_and_keeps_the_flags(tmp_path: Path) -> None:
    config = loaded("[stop]\nspread_s = 1\n", tmp_path, flags={"workers.count": "3"})
    (tmp_path / "tidegate.toml").write_text("[stop]\nspread_s = 2\n")
    again = reread(config)
    assert (again.stop.spread_s, again.workers.count) == (2.0, 3)
    assert differing_keys(config, again) == ["stop.spread_s"]


NAMESPACE = "[[channel.namespaces]]\nname = 'news'\n"


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("history_size = 10", "history_ttl_s", "set both"),
        ("recovery = false\nforce_recovery = true", "force_recovery", "set recovery"),
        ("force_push_join_leave = true", "force_push_join_leave", "set join_leave"),
        ("delta_publish = true", "delta_publish", "set allowed_delta_types"),
        ("auto_cache_recover = true", "auto_cache_recover", '"cache"'),
        ("subscribe_hook = true", "subscribe_hook", "hooks.subscribe_url"),
        ("channel_regex = '('", "channel_regex", "correct"),
    ],
)
def test_options_of_a_namespace_that_need_others_are_refused_without(
    text: str, key: str, remedy: str, tmp_path: Path
) -> None:
    found = problems(f"{NAMESPACE}{text}", tmp_path)
    assert remedy in found[f"channel.namespaces[0].{key}"].remedy


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[tokens]\nrsa_public_key = 'no key'", "tokens.rsa_public_key"),
        (f'[tokens]\nrsa_public_key = """{ED25519_PEM}"""', "tokens.rsa_public_key"),
        ("[tokens]\nhmac_previous_secret = 'old'", "tokens.hmac_previous_secret"),
        ("[tokens]\nissuer = 'a'\nissuer_regex = 'b'", "tokens.issuer"),
        ("[subscription_tokens]\nissuer = 'a'", "subscription_tokens"),
        ("[client]\npersonal_channel_namespace = 'a'", "client.personal_channel_namespace"),
        ("[hooks]\nconnect_url = 'ftp://x'", "hooks.connect_url"),
        ("[hooks]\napp = 'no colon'", "hooks.app"),
    ],
)
def test_what_is_wrong_with_tokens_and_hooks_is_told_by_key(
    text: str, key: str, tmp_path: Path
) -> None:
    found = problems(text, tmp_path)
    assert key in found
    assert "old" not in found[key].value, "a secret is never shown"


def test_a_public_key_of_its_kind_is_taken(tmp_path: Path) -> None:
    config = loaded(f'[tokens]\ned25519_public_key = """{ED25519_PEM}"""', tmp_path)
    assert config.tokens.has_keys


def test_a_section_of_two_words_takes_the_environment() -> None:
    config = loaded(environment={"TIDEGATE_SUBSCRIPTION_TOKENS_HMAC_SECRET": "s"})
    assert config.subscription_tokens.hmac_secret == "s"
    shown = effective(config)["subscription_tokens.hmac_secret"]["value"]
    assert shown == "(set)"


def test_a_worker_can_be_told_of_as_much_as_may_be_configured() -> None:
    """One message of the link has it all."""
    namespaces = [Namespace(name=f"{number:064}", channel_regex="." * 100) for number in range(256)]
    told = replace(
        WORKER_SETTINGS,
        namespaces=derived.namespaces(ChannelSection(namespaces=namespaces)),
        allowed_origins=("o" * 255,) * 64,
        tokens=TokenSettings(rsa_public_key="k" * 4096, ecdsa_public_key="k" * 4096),
    )
    assert len(msgpack.packb(told.as_map())) < MESSAGE_BYTES_MAX - 16_384


def test_io_uring_can_only_be_demanded_where_the_kernel_gives_it(tmp_path: Path) -> None:
    demanded = '[workers]\nengine = "io_uring"\n'
    assert loaded(demanded, tmp_path).workers.engine == "io_uring"
    refusing = Host(4, 16 * GIB, 1_048_576, io_uring_refused=errno.EPERM)
    found = problems(demanded, tmp_path, host=refusing)
    assert "EPERM" in str(found["workers.engine"])
    assert loaded(host=refusing).workers.engine == "auto"
