"""The Rust side of shared memory: formats, the publisher's loop, producers, statistics.

Descriptors given to this module stay the caller's: what is kept is a mapping or a duplicate.
A descriptor that cannot be used raises OSError; a segment of another kind or version, FormatError.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, Self, TypedDict, final, type_check_only

class RingError(Exception):
    """Root of this module's errors: what is wrong, what to do, and a code that programs compare."""

    code: str
    message: str
    remedy: str

class FormatError(RingError):
    """The segment has another magic, kind, version or size, or is not ready."""

class BadRequest(RingError):
    """The publish itself is wrong: channel name, JSON, tags (status 107 on the wire)."""

class TooLarge(RingError):
    """The publish can never fit the uplink or the log (status 106 on the wire)."""

class Full(RingError):
    """The uplink has no room now: the publisher is behind. Try again, or give up."""

MetricKind = Literal["counter", "gauge", "histogram"]
Metric = tuple[MetricKind, str, str]
"""Kind, name in Prometheus form (labels included), help text."""

METRICS: list[Metric]
"""What the publisher counts."""

ROLE_SUPERVISOR: int
ROLE_PUBLISHER: int
ROLE_WORKER: int
ROLE_API: int

CHANNEL_BYTES_MAX: int
"""The longest channel name, in bytes of UTF-8."""

def log_size(capacity_bytes: int, readers: int, topics: int) -> int:
    """Bytes of a log segment. Raises FormatError for a capacity that is no power of two.

    `topics`: rows of interest, as many as there are channels. With fewer, readers are woken for
    what does not concern them more often.
    """

def channels_size(channels_max: int) -> int:
    """Bytes of a channel table that holds at least `channels_max` channels."""

def stats_size(metrics: list[Metric], rows: int) -> int: ...
def uplink_size(capacity_bytes: int) -> int: ...
def keep_size(slots_max: int, arena_bytes: int) -> tuple[int, int]:
    """Length of a keep's segment, and how much of it is to be reserved when it is made."""

def heap_size(memory_bytes: int) -> int:
    """Bytes of a history or presence segment for `memory_bytes` of entries."""

# `identity` is the generation of the segment, and its owner's pid and start time.
def format_log(
    fd: int, capacity_bytes: int, readers: int, topics: int, identity: tuple[int, int, int]
) -> None: ...
def format_channels(fd: int, channels_max: int, identity: tuple[int, int, int]) -> None: ...
def format_stats(
    fd: int, metrics: list[Metric], rows: int, identity: tuple[int, int, int]
) -> None: ...
def extend_stats(fd: int, metrics: list[Metric], *, only_check: bool = False) -> None:
    """Adds what the schema lacks of `metrics`, for whoever attaches from now on.

    Raises FormatError where there is no room for them, or one is of another kind than before.
    """

def format_uplink(fd: int, capacity_bytes: int, identity: tuple[int, int, int]) -> None:
    """The generation differs among all uplinks that ever have the same id in one instance."""

def format_history(fd: int, memory_bytes: int, identity: tuple[int, int, int]) -> None: ...
def format_presence(fd: int, memory_bytes: int, identity: tuple[int, int, int]) -> None: ...
def format_keep(
    fd: int, slots_max: int, arena_bytes: int, identity: tuple[int, int, int]
) -> None: ...

@type_check_only
class Header(TypedDict):
    kind: Literal["log", "channels", "stats", "uplink", "history", "presence", "keep"]
    version: int
    generation: int
    owner_pid: int
    owner_start: int
    size: int

def inspect(fd: int) -> Header | None:
    """The header of a segment; None where nothing was formatted there yet."""

HistoryRule = tuple[str, int, float]
"""Of a namespace: its name, most publications of a channel, seconds that one is kept."""

@type_check_only
class SequencerSettings(Protocol):
    """What the publisher's loop is told; read once, by attribute."""

    @property
    def stats_row(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def lag_budget_ms(self) -> int: ...
    @property
    def history(self) -> Sequence[HistoryRule]: ...

@final
class Sequencer:
    """The publisher's loop: takes requests from uplinks, gives each its place, writes the log."""

    def __new__(
        cls,
        log_fd: int,
        channels_fd: int,
        history_fd: int,
        presence_fd: int,
        stats_fd: int,
        wake_fd: int,
        settings: SequencerSettings,
        awaited: list[int] = ...,
    ) -> Self:
        """Opens the log and finishes what an earlier publisher had prepared.

        Nothing is sequenced before the uplinks in `awaited` are attached or detached: all that
        lived when an earlier publisher died.
        """

    def attach_reader(self, seat: int, wake_fd: int) -> None: ...
    def detach_reader(self, seat: int) -> None: ...
    def attach_uplink(self, id: int, uplink_fd: int, reply_wake_fd: int) -> None:
        """First answers again what was published from it, and perhaps not answered, before."""

    def detach_uplink(self, id: int) -> None:
        """Takes what all producers committed, then lets go, and takes the clients that it served
        out of their channels."""

    def run(self, link_fd: int) -> list[int]:
        """Sequences until `link_fd` is readable. Releases the GIL.

        Returns early where uplinks had to be dropped for what their producers wrote: their ids.
        """

    def drain(self) -> None:
        """Takes once what all uplinks hold now."""

Reply = tuple[int, int, str, int]
"""Request id, status (0 or an error code of the client API), epoch, offset."""

@final
class Producer:
    """The producer's end of an uplink. Threads may publish while others wait for replies."""

    def __new__(cls, uplink_fd: int, publisher_wake_fd: int, reply_wake_fd: int) -> Self: ...
    def publish(
        self,
        channel: str,
        data: bytes | str,
        *,
        tags: bytes | str | None = None,
        idempotency_key: str | None = None,
        skip_history: bool = False,
        version: int = 0,
        version_epoch: str | None = None,
        delta: bool = False,
        binary: bool = False,
        want_reply: bool = True,
    ) -> int:
        """Hand one message to the publisher and return the id that its reply will carry.

        `data` is JSON text, or any bytes where `binary`; `tags` is a JSON object. JSON is checked
        and compacted. A publish to a channel with the idempotency key of an earlier one gets that
        one's reply for five minutes, and is not published; nor is one with a `version` that is not
        above that of the channel's newest, whose place the reply then carries, unless that one was
        of another `version_epoch`. With `skip_history`
        it gets no offset, and only those who are there get it; with `delta`, subscribers that asked
        for it get the difference to the one before. Raises BadRequest, TooLarge, and Full where the
        uplink has no room now or too many requests wait for their replies.
        """

    def order(self, order: bytes | str, *, want_reply: bool = True) -> int:
        """Let all workers have an order, a JSON object. Raises as `publish` does."""

    def history_remove(self, channel: str, *, want_reply: bool = True) -> int:
        """Forget what was published to a channel; epoch and offsets go on. Raises as `publish`."""

    def replies(self, timeout_s: float) -> list[Reply]:
        """Replies that came, waiting at most `timeout_s` for the first. Releases the GIL.

        For one thread at a time: of two that sleep, only one is woken.
        """

@type_check_only
class Row(TypedDict):
    row: int
    role: int
    pid: int
    start: int
    slot: int
    generation: int
    heartbeat_ns: int
    state: int
    values: list[int | Histogram]

@type_check_only
class Histogram(TypedDict):
    """Bucket `i` counts values up to `HISTOGRAM_BOUNDS[i]`; the last one has no bound."""

    buckets: list[int]
    sum: int
    count: int

HISTOGRAM_BOUNDS: list[int]
"""Upper bounds, inclusive, of all buckets but the last."""

@final
class Stats:
    """Reads the statistics of all processes, without asking any of them."""

    def __new__(cls, fd: int) -> Self: ...
    def schema(self) -> list[Metric]: ...
    def rows(self) -> list[Row]:
        """Every claimed row; `values` in the order of the schema. Consistent with `fold`."""

    def heartbeat_ns(self, row: int) -> int:
        """CLOCK_MONOTONIC of the row's last heartbeat; 0 where there was none yet."""

@final
class StatsRow:
    """One process's own row, which nobody else writes."""

    def __new__(cls, fd: int, row: int, role: int, slot: int, generation: int) -> Self:
        """Claims the row for this process and zeroes it."""

    @staticmethod
    def resume(fd: int, row: int) -> StatsRow:
        """The row that this process claimed before it executed other code, values and all."""

    def add(self, name: str, amount: int = 1) -> None:
        """Raises KeyError for a name that the schema lacks, as `set` and `record` do."""

    def set(self, name: str, value: int) -> None: ...
    def record(self, name: str, value: int) -> None: ...
    def set_state(self, state: int) -> None: ...
    def heartbeat(self) -> None: ...
    def fold(self, row: int) -> None:
        """Take over the counters of a dead process's row and free it, so that sums never fall."""

@type_check_only
class ClientInfo(TypedDict):
    """A client as others see it; `conn_info` and `chan_info` are JSON text, or empty."""

    user: str
    client: str
    conn_info: bytes
    chan_info: bytes

@type_check_only
class Publication(TypedDict):
    """`offset` is 0 where it has none; `info` is that of the client that published it."""

    channel: str
    epoch: str
    offset: int
    data: bytes
    binary: bool
    tags: bytes
    time_ms: int
    delta: bool
    info: ClientInfo | None

@type_check_only
class PlacedPublication(Publication):
    position: int

@final
class LogTail:
    """Reads publications from the log as they come, for tools and tests.

    With a seat the publisher waits for this reader, as for a worker; without, it never does.
    """

    def __new__(cls, log_fd: int, seat: int | None = None) -> Self: ...
    def read(self, records_max: int = 1024) -> list[PlacedPublication]:
        """What was committed since the last read; starts at the tail of the moment of attaching."""

    @property
    def position(self) -> int: ...
    @property
    def lapped(self) -> int:
        """How often the writer overtook this reader: each time, publications were missed."""

    def leave(self) -> None:
        """Give the seat back."""

@final
class Channels:
    """Reads the channel table."""

    def __new__(cls, fd: int) -> Self: ...
    def top(self, channel: str) -> tuple[str, int]:
        """Epoch and newest offset; offset 0 where nothing was published to the channel."""

@final
class History:
    """Reads what channels of namespaces with a history rule keep. Asks no process."""

    def __new__(cls, history_fd: int, channels_fd: int) -> Self: ...
    def top(self, channel: str) -> tuple[str, int]:
        """As `Channels.top`."""

    def read(
        self,
        channel: str,
        since_offset: int | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Publication]:
        """Publications after `since_offset`, ascending; or before it, descending, if `reverse`.

        At most `limit` of them, and 64 MiB together. Releases the GIL while it reads.
        """

@final
class Presence:
    """Reads who is in a channel, across all workers. Asks no process."""

    def __new__(cls, presence_fd: int, channels_fd: int) -> Self: ...
    def stats(self, channel: str) -> tuple[int, int]:
        """How many clients, and how many users. Costs the same for any number."""

    def members(self, channel: str, clients_max: int | None = None) -> list[ClientInfo]:
        """Those who came last come first. Releases the GIL while it reads."""
