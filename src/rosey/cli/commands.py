"""All commands under their one name."""

from __future__ import annotations

import click

from rosey import __version__
from rosey.cli.demo import demo
from rosey.cli.server import server


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rosey")
def rosey() -> None:
    """The event bus that a chat bot and its plugins run on."""


rosey.add_command(demo)
rosey.add_command(server)
