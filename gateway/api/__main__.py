"""The API's process: `python -P -m gateway.api --link FD`, started by the supervisor."""

from __future__ import annotations

from gateway.api.server import ApiServer
from gateway.api.settings import ApiSettings
from workers import child, log
from workers.link import named_descriptors


def main() -> None:
    link = child.begin()
    message, received = link.recv()
    descriptors = named_descriptors(message, received)
    settings = ApiSettings.from_map(message["settings"])
    log.configure("api", form=settings.log_format, level=settings.log_level, path=settings.log_file)
    ApiServer(link, settings, descriptors).run()


if __name__ == "__main__":
    main()
