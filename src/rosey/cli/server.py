"""`rosey server`: a nats-server for this machine, in the foreground."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from rosey.core.signals import stop_requested
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
    with stop_requested() as stopping:
        async with server:
            click.echo(f"nats-server is at {server.url}, its data in {server.store_dir}")
            click.echo("Ctrl-C ends it")
            await stopping.wait()
