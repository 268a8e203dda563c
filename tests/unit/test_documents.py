"""Tables in the documents that repeat what the code knows must repeat it exactly."""

from __future__ import annotations

import re
from pathlib import Path

from workers._engine import METRICS

ARCHITECTURE = Path(__file__).resolve().parents[2] / "ARCHITECTURE.md"


def closes_table() -> str:
    """The table of closes as the document must show it, from the metrics that count them."""
    lines = ["| code | reason | `closes_total` label | reconnect |", "|---|---|---|---|"]
    for _, name, help_text in METRICS:
        label = re.fullmatch(r'closes_total\{reason="(\w+)"\}', name)
        told = re.fullmatch(r"connections that ended with (\d+) \((.+)\)", help_text)
        if label and told:
            code = int(told[1])
            lines.append(f"| {code} | {told[2]} | `{label[1]}` | {reconnect_rule(code)} |")
    return "\n".join(lines)


def reconnect_rule(code: int) -> str:
    if code == 1009:
        # centrifuge-js stops at it too: the same message would be too large again.
        return "no"
    if code < 3000:
        return "client's choice"
    return "yes" if code < 3500 or 4000 <= code < 4500 or code >= 5000 else "no"


def test_the_table_of_closes_is_the_one_of_the_code() -> None:
    text = ARCHITECTURE.read_text()
    shown = re.search(r"<!-- closes:begin -->\n(.*)\n<!-- closes:end -->", text, re.DOTALL)
    assert shown, "ARCHITECTURE.md has no place for the table"
    assert shown[1].strip() == closes_table()
