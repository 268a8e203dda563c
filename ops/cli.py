"""The `tidegate` command: one name for running a gateway and for everything one does to it.

Exit status of every command: 0 done, 1 "no" or something to look at, 2 error, 3 nobody answers.
Modules of commands import what they need when they run, so that `tidegate --help` is quick.
"""

from __future__ import annotations

import click

from ops import doctor, messages, observe, operate, start, token
from ops.bench import command as bench
from ops.load import command as load
from ops.profile import command as profile


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tidegate", message="%(prog)s %(version)s")
def tidegate() -> None:
    """A real-time push gateway: from a publish to every subscriber of its channel.

    \b
    Examples:
      tidegate run                              start a gateway in the foreground
      tidegate status --watch                   see it work
      tidegate publish public:news '{"a": 1}'   send a message
      tidegate subscribe public:news            receive messages
      tidegate token mint --user 42             make a token for a client
      tidegate reload                           replace all workers, one after the other
      tidegate load -n 10000 --rate 10          ten thousand clients, ten messages a second
      tidegate profile --seconds 10             see where a worker's time goes
      tidegate doctor --connections 1e6         see whether this host can hold a million

    Commands find the gateway on this host by themselves; with several, choose by -i NAME.

    \b
    Exit status: 0 done, 1 "no" or something to look at, 2 error, 3 nobody answers.
    """


for module in (start, observe, operate, messages, token, doctor, load, profile, bench):
    for command in module.COMMANDS:
        tidegate.add_command(command)


def main() -> None:
    tidegate(prog_name="tidegate")


if __name__ == "__main__":
    main()
