"""The power goes: what had reached the disk is all there is."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nats.js.errors
import pytest
from fault_table import CYCLES, Row
from ledger import Ledger, publish_forever

from rosey import EventBus, StreamSpec
from rosey.server import LocalServer

pytestmark = [
    pytest.mark.skipif(CYCLES < 20, reason="takes minutes: `make chaos` runs it"),
    pytest.mark.timeout(900),
]

SPEC = StreamSpec("PLATFORM_EVENTS", ("rosey.platform.>",))


def run(*command: str | Path) -> bool:
    return subprocess.run([str(part) for part in command], capture_output=True).returncode == 0


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    folder = image.with_suffix(".mounted")
    folder.mkdir()
    if not run("mount", "-o", "loop", image, folder):
        pytest.skip("this machine lets nobody mount a disk image")
    try:
        yield folder
    finally:
        assert run("umount", folder)


def server_on(disk: Path, sync: str) -> LocalServer:
    store = disk / "store"
    config = f'jetstream {{ store_dir: "{store}", sync_interval: {sync} }}'
    return LocalServer(store_dir=store, jetstream=False, config=config)


async def cut_after(seconds: float, sync: str, folder: Path) -> Ledger:
    """Publish for so long, take the disk as it then is to another machine, and read it there."""
    ledger, stop = Ledger(), asyncio.Event()
    before, after = folder / "before.img", folder / "after.img"
    assert run("truncate", "-s", "512M", before)
    assert run("mkfs.ext4", "-q", before)
    with mounted(before) as disk:
        server = server_on(disk, sync)
        await server.start()
        bus = EventBus([server.url], streams=[SPEC])
        await bus.connect()
        publishing = [asyncio.create_task(publish_forever(bus, ledger, stop)) for _ in range(16)]
        await asyncio.sleep(seconds)
        server.send_signal(signal.SIGSTOP)
        assert run("cp", "--sparse=always", before, after)
        stop.set()
        for task in publishing:
            task.cancel()
        await asyncio.wait(publishing)
        await server.kill()
        await bus.disconnect(timeout=0)
        await server.stop()
    with mounted(after) as disk:
        async with server_on(disk, sync) as server:
            with suppress(nats.js.errors.NotFoundError):  # the whole stream may be gone
                await ledger.read(server.url)
    return ledger


async def test_nothing_is_lost_with_sync_always(
    tmp_path: Path, cycles: int, rng: random.Random, row: Row
) -> None:
    books = []
    for number in range(cycles // 10):
        folder = tmp_path / str(number)
        folder.mkdir()
        books.append(await cut_after(rng.uniform(0.5, 5.0), "always", folder))
    acknowledged = sum(len(book.acknowledged) for book in books)
    lost = sum(len(book.lost) for book in books)
    twice = sum(len(book.duplicated) for book in books)
    row(
        "power cut, sync_interval always",
        "P1 P2",
        f"{len(books)} cuts: {acknowledged:,} acknowledged, {lost} lost, {twice} twice",
    )
    assert lost == twice == 0
    assert acknowledged > 0


@pytest.mark.parametrize("seconds", [8, 45])
async def test_what_the_servers_default_loses(tmp_path: Path, seconds: int, row: Row) -> None:
    ledger = await cut_after(seconds, '"2m"', tmp_path)
    part = len(ledger.lost) / len(ledger.acknowledged)
    row(
        f"power cut after {seconds} s, the server's default sync_interval (2 minutes)",
        "none",
        f"{len(ledger.lost):,} of {len(ledger.acknowledged):,} acknowledged lost ({part:.0%})",
    )
