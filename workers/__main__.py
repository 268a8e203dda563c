"""A worker's process: holds client connections. Started by the supervisor, never by hand.

Everything it does per connection or message is Rust (`workers._engine`). This shell boots it and
turns the supervisor's messages into drains and stops.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from workers import affinity, child, log
from workers._engine import Engine, EngineFailed
from workers.link import Link, LinkClosed, LinkError, close_all, named_descriptors
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from workers.hooks import Hooks

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1

# How long clients may take to learn of a stop: close frames fit the socket buffers, so that this
# is the time of a few turns; who has not taken them by then does not read at all.
STOP_PATIENCE_S = 1.0
# How long the application may take for what it was asked and told before the end. Both together
# have to fit into what the supervisor gives a worker to stop.
HOOKS_PATIENCE_S = 0.8


def main() -> int:
    """Serve until the supervisor says stop, or is gone. Returns the exit status."""
    link = child.begin()
    try:
        booted = _boot(link)
        if booted is None:
            return EXIT_FAILED
        engine, hooks = booted
        link.send({"type": "ready"})
        _serve(link, engine)
        if hooks is not None:
            hooks.stop(HOOKS_PATIENCE_S)
    except LinkClosed:
        # The supervisor is gone: a worker without one serves nobody, and none may outlive it.
        return EXIT_FAILED
    except LinkError as error:
        logger.error("the link to the supervisor is broken", extra={"reason": error})
        return EXIT_FAILED
    except EngineFailed as error:
        _failed(link, error.code, str(error))
        return EXIT_FAILED
    return EXIT_OK


def _boot(link: Link) -> tuple[Engine, Hooks | None] | None:
    message, fds = link.recv()
    if message["type"] == "stop":
        close_all(fds)
        return None
    descriptors = named_descriptors(message, fds)
    try:
        settings = WorkerSettings.from_map(message["settings"])
        log.configure(
            f"worker-{settings.slot}",
            form=settings.log_format,
            level=settings.log_level,
            path=settings.log_file,
        )
        affinity.settle(settings)
        keep = descriptors if "keep" in descriptors else None
        hooks = _hooks(settings)
        engine = Engine(settings.as_json(), descriptors, link.fileno(), keep)
        if hooks is not None:
            hooks.start(engine.ask_about(hooks.kinds))
        return engine, hooks
    except (OSError, TypeError, ValueError) as error:
        _failed(link, "worker_boot", str(error))
        return None
    finally:
        # The engine has duplicates: the listeners of a slot must close when the engine does.
        close_all(fds)


def _hooks(settings: WorkerSettings) -> Hooks | None:
    """Whoever answers the engine's questions. Raises ValueError (HookError) for who cannot.

    None where there is nobody to ask: then no thread is started and nothing more is imported.
    """
    tokens = (settings.tokens, settings.subscription_tokens)
    fetches_keys = any(each is not None and each.jwks_url for each in tokens)
    if not (settings.hooks.app or settings.hooks.urls or fetches_keys):
        return None
    from workers.hooks import Hooks

    return Hooks(settings)


def _serve(link: Link, engine: Engine) -> None:
    """Work until there is nothing left to do."""
    while True:
        event, fields = engine.run()
        if event == "notices":
            for line in fields["lines"]:
                logger.warning(line)
            continue
        if event != "link":
            link.send({"type": event, **fields})
            if event == "drained":
                return
            continue
        message, fds = link.recv()
        try:
            if _obey(link, engine, message, named_descriptors(message, fds)):
                return
        finally:
            # The engine has duplicates of what it keeps.
            close_all(fds)


def _obey(link: Link, engine: Engine, message: dict[str, Any], descriptors: dict[str, int]) -> bool:
    """Act on a message of the supervisor; true: this worker is done."""
    match message["type"]:
        case "hand_over" | "adopt" | "resume":
            _move(engine, message, descriptors)
        case "drain" | "leave" as kind:
            leaves = kind == "leave"
            engine.drain(message["spread_s"], message["code"], accept_first=leaves)
        case "stop":
            closed = engine.stop(STOP_PATIENCE_S)
            logger.info("stopped", extra={"closed": closed})
            return True
        case "survey":
            try:
                engine.survey(descriptors["survey"])
            except OSError as error:
                logger.error("a survey is not answered", extra={"reason": error})
            else:
                link.send({"type": "surveyed", "id": message["id"]})
        case "profile":
            engine.profile(message["duration_s"])
        case "reopen_logs":
            try:
                log.reopen()
            except OSError as error:
                logger.error("the log file stays as it was", extra={"reason": error})
        case kind:
            logger.warning("a message that is not for a worker", extra={"type": kind})
    return False


def _move(engine: Engine, message: dict[str, Any], descriptors: dict[str, int]) -> None:
    """Begin to give or take connections (HANDOFF.md), or go on as before a giving."""
    match message["type"]:
        case "hand_over":
            engine.hand_over(
                descriptors["handoff"],
                message["id"],
                message["count"],
                keep_accepting=message["keep_accepting"],
                drain_queue=message["drain_queue"],
            )
        case "adopt":
            engine.adopt(descriptors["handoff"], message["id"])
        case "resume":
            engine.resume()


def _failed(link: Link, code: str, message: str) -> None:
    logger.error("the worker cannot go on", extra={"code": code, "reason": message})
    link.send({"type": "failed", "code": code, "message": message})


if __name__ == "__main__":
    sys.exit(main())
