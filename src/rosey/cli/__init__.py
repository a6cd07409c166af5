"""The `rosey` command: one file for each of its commands."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without its extra installed, say what to install."""
    try:
        from rosey.cli.commands import rosey
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "rich"):
            raise
        sys.exit(f"rosey's commands need {missing.name}: pip install 'rosey[cli,server]'")
    rosey(prog_name="rosey")
