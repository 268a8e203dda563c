"""The WSGI application: routes, keys, limits and the shape of answers.

A request that was read is answered 200, with `{"result": …}` or `{"error": {code, message}}`,
unless its caller asks for errors as HTTP statuses (`ERROR_MODE_HEADER: transport`).
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable

import falcon
import msgspec

from gateway.api import metrics, requests
from gateway.api.methods import Answer, Counters, Methods

logger = logging.getLogger(__name__)

BODY_BYTES_MAX = 4 * 1024 * 1024
"""Of a request; twice a message where messages may be larger. Most of it is for batches."""

ERROR_MODE_HEADER = "X-Centrifugo-Error-Mode"
"""The name that API clients already send; its one value is `transport`."""

HTTP_STATUSES = {
    requests.INTERNAL: 500,
    requests.UNKNOWN_CHANNEL: 404,
    requests.METHOD_NOT_FOUND: 404,
    requests.LIMIT_EXCEEDED: 429,
    requests.BAD_REQUEST: 400,
    requests.NOT_AVAILABLE: 400,
    requests.UNRECOVERABLE_POSITION: 416,
    requests.CONFLICT: 409,
}
"""What an error becomes in transport mode."""


class KeyCheck:
    """Lets only callers that know the key reach `/api`; health is for everybody."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        if req.path.startswith("/api") and not self._knows_the_key(req):
            raise falcon.HTTPUnauthorized

    def _knows_the_key(self, req: falcon.Request) -> bool:
        shown = req.get_header("X-API-Key")
        if shown is None:
            scheme, _, value = (req.get_header("Authorization") or "").partition(" ")
            shown = value.strip() if scheme.lower() == "apikey" else None
        if shown is None:
            shown = req.get_param("api_key")
        # In constant time, so that the answer's delay tells nothing of the key. Without a
        # configured key nobody may come in, not even with an empty one.
        given = (shown or "").encode("utf-8", "surrogateescape")
        return bool(self._key) and hmac.compare_digest(given, self._key)


class ApiResource:
    """`POST /api/<method>`, and `POST /api` with the method in the body."""

    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        # Twice: base64 and JSON's escapes make a message longer.
        self._body_bytes_max = max(BODY_BYTES_MAX, 2 * methods.message_bytes_max)

    def on_post(self, req: falcon.Request, resp: falcon.Response, method: str) -> None:
        try:
            answer = self._methods.answer(method, _read_body(req, self._body_bytes_max))
        except requests.NotJson as error:
            raise falcon.HTTPBadRequest(description=f"the body is not JSON: {error}") from error
        if "error" in answer and _wants_http_errors(req):
            answer = answer["error"]
            resp.status = falcon.code_to_http_status(HTTP_STATUSES.get(answer["code"], 500))
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode(answer)

    def on_post_commands(self, req: falcon.Request, resp: falcon.Response) -> None:
        """`POST /api`, as back ends did it before each method had a path: commands, a line each."""
        try:
            commands = requests.decode_commands(_read_body(req, self._body_bytes_max))
        except requests.NotJson as error:
            raise falcon.HTTPBadRequest(description=f"not lines of commands: {error}") from error
        # From here on things are done: who was answered 400 now would do them a second time.
        answers = [self._answered(command) for command in commands]
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.Encoder().encode_lines(answers)

    def _answered(self, command: requests.Command) -> Answer:
        answer = self._methods.answer(
            command.method, bytes(command.params), requests.decode_one_of_several
        )
        # Only a batch answers with anything but a result, and its place is within one here.
        if "replies" in answer:
            answer = {"result": answer}
        return {"id": command.id, **answer} if command.id else answer


class HealthResource:
    """`GET /health`: 200 `{}` while `problem` finds none, else 503 with what it found.

    `/health` and `/health/ready` say whether a publish would reach clients; a proxy takes this
    instance out of rotation by them. `/health/live` only says that this process answers: restart
    by that one, never by readiness, or a short fault of one process restarts all.
    """

    def __init__(self, problem: Callable[[], str]) -> None:
        self._problem = problem

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.cache_control = ["no-store"]
        problem = self._problem()
        resp.media = {"problem": problem} if problem else {}
        resp.status = falcon.HTTP_503 if problem else falcon.HTTP_200


def build(
    key: str, methods: Methods, counters: Counters, problem: Callable[[], str]
) -> falcon.App[falcon.Request, falcon.Response]:
    """The application. `problem` says in one line why this gateway is not ready, or nothing."""
    app = falcon.App(middleware=[KeyCheck(key)])
    api = ApiResource(methods)
    app.add_route("/api/{method}", api)
    app.add_route("/api", api, suffix="commands")
    for path, check in (
        ("/health", problem),
        ("/health/ready", problem),
        ("/health/live", lambda: ""),
    ):
        app.add_route(path, HealthResource(check))
    app.set_error_serializer(_serialize_rejection)
    app.add_error_handler(falcon.HTTPError, _rejection_counter(counters))
    app.add_error_handler(Exception, _failure_answerer(counters))
    return app


def _wants_http_errors(req: falcon.Request) -> bool:
    return (req.get_header(ERROR_MODE_HEADER) or "").lower() == "transport"


def _read_body(req: falcon.Request, bytes_max: int) -> bytes:
    """The whole body. Raises falcon.HTTPContentTooLarge without reading more than the limit."""
    too_large = falcon.HTTPContentTooLarge(
        description=f"the body is above {bytes_max} bytes; send several requests"
    )
    if (req.content_length or 0) > bytes_max:
        raise too_large
    # A chunked body tells no length, so one byte above the limit is asked for.
    body: bytes = req.stream.read(bytes_max + 1)
    if len(body) > bytes_max:
        raise too_large
    return body


def _serialize_rejection(
    req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError
) -> None:
    """Plain text; nothing at all to those without the key."""
    resp.content_type = falcon.MEDIA_TEXT
    if error.status != falcon.HTTP_401:
        resp.text = f"{error.description or error.title}\n"


def _rejection_counter(counters: Counters) -> Callable[..., None]:
    reasons = {401: "unauthorized", 413: "too_large", 400: "not_json"}
    reasons |= {405: "http_method", 404: "not_found"}

    def count(
        req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: object
    ) -> None:
        counters.add(metrics.rejection_name(reasons.get(error.status_code, "http")))
        resp.status = error.status
        if error.headers:
            resp.set_headers(error.headers)
        _serialize_rejection(req, resp, error)

    return count


def _failure_answerer(counters: Counters) -> Callable[..., None]:
    """For our own mistakes: the caller learns the error's number, the log everything."""

    def answer(
        req: falcon.Request, resp: falcon.Response, error: Exception, params: object
    ) -> None:
        logger.error("request failed", exc_info=error, extra={"path": req.path})
        counters.add(metrics.error_name(requests.INTERNAL))
        shown = {"code": requests.INTERNAL, "message": requests.ERROR_TEXTS[requests.INTERNAL]}
        resp.content_type = falcon.MEDIA_JSON
        if req.path.startswith("/api") and not _wants_http_errors(req):
            resp.data = msgspec.json.encode({"error": shown})
        else:
            resp.status = falcon.HTTP_500
            resp.data = msgspec.json.encode(shown)

    return answer
