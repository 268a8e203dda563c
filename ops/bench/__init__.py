"""The benchmarks whose results the README states: `python -m ops.bench NAME|all`.

Each runs on the machine at hand, against a gateway of its own, and says its goals. Where a figure
is a ratio, both sides were measured in turn within one run: only then is it worth something on a
machine that does other work too. Reading order: `ring`, `fanout`, `idle`, `reload` and `peers` are
the benchmarks; `programs`, `subject`, `nginx` and `usage` are what they measure with; `result` and
`report` are what stays.
"""
