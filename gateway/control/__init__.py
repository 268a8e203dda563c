"""The control socket: how the command line, the API and local producers speak to the supervisor."""
