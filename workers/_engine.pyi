"""The worker's engine: accepts, parses, subscribes, fans out. No Python object per client.

Descriptors given to this module stay the caller's: what is kept is a mapping or a duplicate.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

__all__ = ["METRICS", "Engine", "EngineFailed", "Questions", "prefer_memory_node"]

METRICS: list[tuple[Literal["counter", "gauge", "histogram"], str, str]]
"""What a worker counts: kind, name in Prometheus form (labels included), help text."""

class EngineFailed(Exception):
    """The engine cannot begin, or cannot go on."""

    code: str
    """Stable identifier of the kind of error."""

def prefer_memory_node(node: int) -> None:
    """Prefer memory of NUMA node `node` from now on (set_mempolicy(2)). Raises OSError."""

def check_pattern(pattern: str) -> None:
    """Raise ValueError where `pattern` is no regular expression that the engine can use."""

@final
class TokenVerifier:
    """Judges tokens as the engine does."""

    def __new__(cls, tokens: str, subscription_tokens: str | None = None) -> TokenVerifier:
        """Each argument is the JSON of a `TokenSettings`.

        Raises ValueError(key, reason) where a key or rule cannot be used.
        """

    def take_keys(self, keys: bytes, now_s: int) -> bool:
        """Take fetched keys: JSON, from URL to JSON Web Key Set. Whether any could be used."""

    def check_connection(self, token: str, now_s: int) -> str | None:
        """Why the gateway would not take `token` for a connection; None: it would."""

    def check_subscription(self, token: str, now_s: int) -> str | None:
        """The same for a subscription."""

@final
class Engine:
    """A reactor of one thread. It must be used by the thread that made it."""

    def __new__(
        cls,
        settings: str,
        descriptors: Mapping[str, int],
        link: int,
        keep: Mapping[str, int] | None = None,
    ) -> Engine:
        """Attach everything; clients are accepted from the first `run` on.

        `settings` is the JSON of `WorkerSettings.as_json`. `descriptors` has the keys http, tcp
        (listeners), log, channels, history, presence, stats, uplink (segments), wake and
        publisher_wake (eventfds). `keep` has the keys keep (a segment) and keeper (a link): with it
        a process is made beside this one that has the connections if this one dies (HANDOFF.md §7);
        this process must have one thread. From here on a panic ends the process with status 70.
        Raises EngineFailed, OSError, ValueError for settings that cannot be.
        """

    def ask_about(self, kinds: Sequence[str]) -> Questions:
        """Ask the application about `kinds`, which somebody has to answer from the first `run` on.

        Kinds: connect, subscribe, publish, rpc, message, refresh, sub_refresh, disconnect (to which
        no answer is expected) and keys. Raises ValueError for another kind, EngineFailed.
        """

    def run(
        self,
    ) -> tuple[
        Literal["link", "draining", "drained", "moving", "handed_over", "adopted", "notices"],
        dict[str, Any],
    ]:
        """Work until `link` is readable or there is something to tell: what, and its fields.

        "link": {}. "draining": {remaining}, at most five times a second. "drained": {closed}.
        "moving": {id, moved, remaining}, at most ten times a second while giving.
        "handed_over": {id, moved, kept, lost, reason}: the giving with that id is over; `reason`:
        "done" (all that were wanted and could be moved), "receiver_gone", "incompatible",
        "refused" (the receiver could not take a batch), "full", "system" or "busy".
        "adopted": {id, count, refused, reason, pause_us_p50, pause_us_p99, pause_us_max}: the
        taking with that id is over; `reason`: "done", "giver_gone", "incompatible", "protocol",
        "system" or "busy".
        "notices": {lines}: for the log, why clients were refused.
        Releases the GIL. Raises EngineFailed.
        """

    def hand_over(
        self, fd: int, id: int, count: int, *, keep_accepting: bool, drain_queue: bool
    ) -> None:
        """Give `count` connections (-1: all) to the worker at the other end of `fd`.

        `fd` is one end of a SOCK_SEQPACKET pair, see HANDOFF.md. Without `keep_accepting`, no
        connection is accepted from now on; with `drain_queue`, those that wait in the listeners'
        queues are accepted before, and the listeners are let go of. `run` reports with `id`, also
        that it is "busy": there is one giving at a time. Raises OSError.
        """

    def adopt(self, fd: int, id: int) -> None:
        """Take the connections that the worker at the other end of `fd` gives.

        `run` reports with `id`. Raises OSError.
        """

    def resume(self) -> None:
        """Accept connections again, after a giving that was to be this worker's last act."""

    def profile(self, duration_s: float) -> None:
        """Time the phases of turns, and count their batches, for so long from now on.

        The statistics have them. Asked again it goes on for longer, never shorter; it ends by
        itself. Raises ValueError for a time that is none.
        """

    def survey(self, fd: int) -> None:
        """Write a JSON object to the file `fd`: how many subscribers each channel has here.

        Raises OSError.
        """

    def drain(self, spread_s: float, code: int, *, accept_first: bool) -> None:
        """Stop accepting and close every connection with `code`, evenly over `spread_s` seconds.

        With `accept_first`, connections that wait in the listeners' queues are accepted before.
        Raises ValueError for a code that the close table does not have.
        """

    def stop(self, patience_s: float) -> int:
        """Close all connections with 3001, work on for `patience_s` seconds at most.

        Returns how many were closed. Raises EngineFailed.
        """

@final
class Questions:
    """What the engine wants to know of the application. Any thread may use it."""

    def fileno(self) -> int:
        """The eventfd that is readable when there are questions to take."""

    def take(self, count_max: int) -> list[tuple[int, str, bytes]]:
        """Take at most `count_max` questions: id, kind, JSON.

        The id is 0 where nobody waits for the answer, but the engine counts it nevertheless.
        Three kinds are no questions, and have text in place of the JSON: of "opened" and "closed"
        it is the kind that the engine does not ask any more, or asks again, because of too many
        failures; of "log" it is a line for the log.
        """

    def answer(self, id: int, kind: str, body: bytes) -> None:
        """Answer a question with JSON. Raises ValueError where this is no answer to its kind."""

    def fail(self, id: int, kind: str, why: Literal["failed", "timeout"]) -> None:
        """Say that there is no answer, and why."""
