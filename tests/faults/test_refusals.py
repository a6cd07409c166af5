"""The server can or will no more: its disk is full, our credentials were revoked."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_table import Row
from ledger import Ledger
from waiting import eventually

from rosey import AuthenticationError, EventBus, EventBusError, NotConnectedError, State, StreamSpec
from rosey.server import LocalServer

SPEC = StreamSpec("PLATFORM_EVENTS", ("rosey.platform.>",))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_the_disk_is_full(small_disk: Path, row: Row) -> None:
    ledger = Ledger()
    text = "x" * 20_000
    slowest = 0.0
    async with LocalServer(store_dir=small_disk / "store") as server:
        async with EventBus([server.url], streams=[SPEC]) as bus:
            while len(ledger.unknown) < 3 and len(ledger.attempted) < 1000:
                number = len(ledger.attempted)
                ledger.attempted.add(number)
                began = time.perf_counter()
                try:
                    await bus.publish_js("rosey.platform.x", {"n": number, "t": text}, timeout=2)
                except EventBusError as error:
                    ledger.unknown[number] = type(error).__name__
                else:
                    ledger.acknowledged.add(number)
                slowest = max(slowest, time.perf_counter() - began)
            assert (await bus.health()).ok
        await ledger.read(server.url)
    said = ", ".join(sorted(set(ledger.unknown.values())))
    row("disk full, 2 s to publish", "P1 P3", f"{said} after {slowest:.1f} s at the most; {ledger}")
    assert ledger.unknown
    assert ledger.lost == ledger.duplicated == set()
    assert slowest < 10


async def test_credentials_are_revoked(row: Row) -> None:
    told: list[Exception] = []
    async with LocalServer(token="first") as server:
        bus = EventBus(
            [server.url],
            token="first",
            streams=(),
            on_error=lambda error, event: told.append(error),
        )
        await bus.connect()
        configuration = server._private_folder() / "nats-server.conf"
        configuration.write_text(configuration.read_text().replace("first", "second"))
        began = time.perf_counter()
        server.send_signal(signal.SIGHUP)
        await eventually(lambda: bus.state is State.CLOSED)
        took = time.perf_counter() - began
        with pytest.raises(NotConnectedError, match="credentials"):
            await bus.publish("a", {})
        await bus.disconnect()
    row("credentials revoked", "P3 ≤ 5 s", f"{type(told[-1]).__name__} after {took:.2f} s")
    assert isinstance(told[-1], AuthenticationError)
    assert took < 10
