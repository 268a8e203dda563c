"""What the API counts, in each worker's row of the statistics segment."""

from __future__ import annotations

from gateway.api.requests import ERROR_TEXTS
from gateway.api.requests import METHODS as KNOWN
from shm import _ring

METHODS = tuple(KNOWN)
"""Methods with a counter of their own; every other one is counted as `other`."""

REJECTIONS = ("unauthorized", "too_large", "not_json", "http_method", "not_found", "http")
"""Why a request was not read as one: each has an HTTP status of its own (`http`: all others)."""

METRICS: list[_ring.Metric] = [
    *(
        ("counter", f'api_requests_total{{method="{method}"}}', "Requests to the HTTP API.")
        for method in (*METHODS, "other")
    ),
    *(
        ("counter", f'api_errors_total{{code="{code}"}}', "Errors answered by the HTTP API.")
        for code in sorted(ERROR_TEXTS)
    ),
    *(
        (
            "counter",
            f'api_rejections_total{{reason="{reason}"}}',
            "HTTP requests turned away before they were read as an API request.",
        )
        for reason in REJECTIONS
    ),
]


def request_name(method: str) -> str:
    return f'api_requests_total{{method="{method if method in METHODS else "other"}"}}'


def error_name(status: int) -> str:
    return f'api_errors_total{{code="{status if status in ERROR_TEXTS else 100}"}}'


def rejection_name(reason: str) -> str:
    return f'api_rejections_total{{reason="{reason}"}}'
