"""What it costs a server to let an SDK's client in, with a token and without.

Both are the same but for that: upgrade, connect and one subscription that can be recovered, as the
SDKs say it. Each client has a token of its own (HS256), which is checked.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from ops.bench.connect import let_in
from ops.bench.result import Measure, Result
from ops.bench.subject import Subject

WORKERS = 2
TOKEN_EXPIRES_S = 3600


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 10_000
    pairs: int = 5


QUICK = Size(connections=2_000, pairs=1)


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    secret = secrets.token_hex(32)
    settings = {"client.allow_anonymous": "true", "tokens.hmac_secret": secret}
    claims = {"exp": int(time.time()) + TOKEN_EXPIRES_S}
    tokens = {"secret": secret, "user_claim": "sub", "claims": claims}
    shown, bare = [], []
    with Subject(workers=WORKERS, settings=settings) as subject:
        place = (subject.address, subject.pids, size.connections)
        let_in(*place, transport="centrifuge", tokens=tokens)  # Caches and allocators warm up.
        for pair in range(size.pairs):
            shown.append(let_in(*place, transport="centrifuge", tokens=tokens))
            bare.append(let_in(*place, transport="centrifuge"))
            say(
                f"pair {pair + 1}: {shown[-1].cost_us:.1f} µs CPU per client with a token, "
                f"{bare[-1].cost_us:.1f} without"
            )
    ratios = tuple(one.cost_us / other.cost_us for one, other in zip(shown, bare, strict=True))
    return Result(
        benchmark="session",
        parameters={"connections": size.connections, "workers": WORKERS, "subscriptions": 1},
        measures=(
            Measure(
                f"{size.connections:,} SDK clients connect and subscribe (JSON), a token each: "
                "CPU per client, all processes of the gateway",
                "µs",
                tuple(each.cost_us for each in shown),
            ),
            Measure("— without tokens", "µs", tuple(each.cost_us for each in bare)),
            Measure("— with tokens, against without", "x", ratios),
            Measure("— clients a second, with tokens", "/s", tuple(each.per_s for each in shown)),
            Measure("— without", "/s", tuple(each.per_s for each in bare)),
        ),
    )
