"""What the supervisor counts; the publisher's and the workers' metrics are beside their code."""

from __future__ import annotations

from gateway.keeper import LOSSES
from shm import _ring

LOSS_REASONS = (*LOSSES, "unrecorded", "in_message", "no_worker", "no_keeper")
"""Why connections are lost; ARCHITECTURE.md says what each means."""

METRICS: list[_ring.Metric] = [
    *(
        ("counter", f'process_deaths_total{{process="{process}"}}', "Processes that died unasked.")
        for process in ("worker", "publisher", "api")
    ),
    ("counter", "processes_stalled_total", "Processes killed because their heartbeat stood still."),
    *(
        ("counter", f'reloads_total{{result="{result}"}}', "Reloads by how they ended.")
        for result in ("done", "failed", "refused")
    ),
    ("counter", "guard_rollbacks_total", "Canaries that their guard began to roll back."),
    *(
        ("counter", f'upgrades_total{{result="{result}"}}', "Upgrades by how they ended.")
        for result in ("done", "failed")
    ),
    *(
        (
            "counter",
            f'connections_lost_total{{reason="{reason}"}}',
            "Connections that ended with the death of their worker.",
        )
        for reason in LOSS_REASONS
    ),
    (
        "counter",
        "connections_rescued_total",
        "Connections that went on in another worker after the death of theirs.",
    ),
    ("counter", "control_requests_total", "Requests on the control socket."),
    *(
        (
            "counter",
            f'control_rejections_total{{reason="{reason}"}}',
            "Control connections and requests turned away.",
        )
        for reason in ("level", "clients", "frame", "verb")
    ),
    (
        "counter",
        "control_progress_dropped_total",
        "Progress of long verbs dropped because the client did not read.",
    ),
    ("counter", "uplinks_opened_total", "Uplinks given to workers and producers."),
    ("counter", "uplinks_reclaimed_total", "Uplinks taken back from ended producers."),
    ("counter", 'uplinks_refused_total{reason="limit"}', "Uplinks refused by log.uplinks_max."),
    ("gauge", "uplinks_open", "Uplinks in use."),
]
