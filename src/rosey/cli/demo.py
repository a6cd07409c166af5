"""`rosey demo`: a recorded chat session through the bus, with a crash in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from rosey.core.errors import EventBusError
from rosey.core.signals import stop_requested
from rosey.demo import scenario
from rosey.demo.cytube import Session, SessionError, read_session
from rosey.server import LocalServer, ServerError

LINE_WIDTH = 48
"""Characters of each line of the chat log that is quoted."""


@click.command()
@click.option(
    "--session",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Replay another recording, one JSON frame a line.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    help="1 is as recorded, 10 ten times as fast.  [default: as fast as possible]",
)
@click.option("--keep", is_flag=True, help="Leave the server running at the end, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON, and only that.")
def demo(session: Path | None, speed: float | None, keep: bool, as_json: bool) -> None:
    """Replay a recorded chat session through the bus.

    A local nats-server is started, 1,358 frames of a CyTube channel are stored as events, bots
    answer the commands in them, a durable log keeps the chat, and half-way the server is killed.
    Exits 0 only if everything acknowledged is stored, every line of chat is in the log, and every
    command was answered.
    """
    try:
        outcome = asyncio.run(_run(read_session(session), speed, keep, as_json))
    except (SessionError, ServerError, EventBusError) as error:
        raise click.ClickException(str(error)) from error
    problems = outcome.problems()
    if problems:
        raise click.ClickException("; ".join(problems))


async def _run(
    session: Session, speed: float | None, keep: bool, as_json: bool
) -> scenario.Outcome:
    progress = scenario.Progress(len(session.frames))
    console = Console(quiet=as_json)
    async with LocalServer() as server:
        async with _shown(progress, console):
            outcome = await scenario.play(session, server, progress, speed)
        if as_json:
            click.echo(json.dumps(asdict(outcome) | {"ok": not outcome.problems()}))
        else:
            console.print(_table(outcome))
        if keep:
            with stop_requested() as stopping:
                console.print(f"the server keeps running at {server.url}; Ctrl-C ends it")
                await stopping.wait()
    return outcome


@asynccontextmanager
async def _shown(progress: scenario.Progress, console: Console) -> AsyncIterator[None]:
    """Show `progress` while the block runs; where nobody watches, only its end."""
    bar = Progress(
        TextColumn("{task.description:<19}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[chat]}"),
        console=console,
        expand=True,
    )
    task = bar.add_task(progress.act, total=progress.total, chat="")

    def draw() -> None:
        router = progress.router
        chat = f"{router.messages} chats, {router.answered} answers" if router else ""
        bar.update(task, completed=progress.acknowledged, description=progress.act, chat=chat)

    async def keep_drawing() -> None:
        while True:
            draw()
            await asyncio.sleep(0.05)

    with bar:
        drawing = asyncio.create_task(keep_drawing())
        try:
            yield
            progress.act = "done"
        finally:
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drawing
            draw()


def _table(outcome: scenario.Outcome) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    rate = outcome.published / outcome.duration
    rows = {
        "events published": f"{outcome.published:,} ({rate:,.0f} a second, crash included)",
        "  acknowledged": f"{outcome.acknowledged:,}",
        **{f"  stored in {name}": f"{count:,}" for name, count in sorted(outcome.stored.items())},
        "chat messages routed": f"{outcome.messages_routed:,}",
        "  missed in the crash": f"{outcome.messages_caught_up:,}, read from the stream later",
        "chat lines in the log": f"{outcome.chat_logged:,} of {outcome.chat_stored:,} stored",
        "  delivered again": f"{outcome.chat_redelivered:,}, because of the crash",
        "  dead letters": f"{outcome.dead_letters:,}",
        "commands": f"{outcome.commands:,}",
        "  answered": f"{outcome.commands_answered:,}",
        "  asked again": f"{outcome.commands_repeated:,}, because of the crash",
        "  run by two handlers": " + ".join(map(str, outcome.handled_by)),
        "  request p50, p99": f"{_ms(outcome.request_p50)}, {_ms(outcome.request_p99)}",
        "server killed, back after": _ms(outcome.restart),
        "  next event stored after": _ms(outcome.recovery) if outcome.recovery else "none was left",
        "everything took": f"{outcome.duration:.1f} s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for number, line in enumerate(outcome.log_tail):
        table.add_row("" if number else "the log ends", escape(shorten(line, LINE_WIDTH)))
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"
