"""`rosey server`: a nats-server for this machine, in the foreground."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from rosey.server import LocalServer, ServerError


@click.command()
@click.option(
    "--port", default=4222, show_default=True, help="Port on 127.0.0.1; 0 takes a free one."
)
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for JetStream's data.  [default: a temporary one, removed at the end]",
)
def server(port: int, store: Path | None) -> None:
    """Run a nats-server on 127.0.0.1, with JetStream, until Ctrl-C.

    For trying things out and for development: it asks nobody for a password.
    """
    try:
        asyncio.run(_serve(LocalServer(port or None, store)))
    except ServerError as error:
        raise click.ClickException(str(error)) from error


async def _serve(server: LocalServer) -> None:
    interrupted = on_interrupt()
    async with server:
        click.echo(f"nats-server is at {server.url}, its data in {server.store_dir}")
        click.echo("Ctrl-C ends it")
        await interrupted.wait()


def on_interrupt() -> asyncio.Event:
    """An event that is set at the first SIGINT or SIGTERM, which then do nothing else."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        if sys.platform == "win32":  # pragma: no cover - tested on POSIX only
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(interrupted.set))
        else:
            loop.add_signal_handler(number, interrupted.set)
    return interrupted
