"""The gateway: supervisor, publisher, control socket and HTTP API."""
