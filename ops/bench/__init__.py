"""The benchmarks whose results the README states: `tidegate bench NAME|all`.

Each runs on the machine at hand, against a gateway of its own, and says its goals. Where a figure
is a ratio, both sides were measured in turn within one run: only then is it worth something on a
machine that does other work too. Those that `command` names are the benchmarks; `subject`,
`caller`, `usage`, `settings` and `endings` are what they measure with, beside the clients of
`ops.load`, and `nginx`, `nats`, `centrifugo` and `peer_*` what stands beside the gateway;
`result`, `report` and `plot` are what stays.
"""
