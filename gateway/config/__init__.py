"""The configuration: one TOML file, everything has a default, what cannot hold is refused.

config = load("/etc/tidegate/tidegate.toml")    # raises ConfigError with every problem at once
config.limits.message_bytes_max
effective(config)["limits.message_bytes_max"]   # {"value": 65536, "origin": "default"}
"""

from gateway.config.checks import Host, connections_max, worker_count
from gateway.config.load import differing_keys, effective, load, reread
from gateway.config.schema import SECTIONS, WORKERS_MAX, Config, Namespace

__all__ = [
    "SECTIONS",
    "WORKERS_MAX",
    "Config",
    "Host",
    "Namespace",
    "connections_max",
    "differing_keys",
    "effective",
    "load",
    "reread",
    "worker_count",
]
