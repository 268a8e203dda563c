"""The HTTP API for backends: one more producer, served by gunicorn."""
