"""A bus with a server of its own: for a first try, a test, or a small bot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Unpack

from rosey.core.bus import BusOptions, EventBus


@asynccontextmanager
async def local_event_bus(
    store_dir: str | Path | None = None, **options: Unpack[BusOptions]
) -> AsyncIterator[EventBus]:
    """Start a nats-server for the length of a block and connect to it.

    Events are kept in `store_dir`, or in a temporary directory that is removed at the end.
    Takes the options of `EventBus`; raises what `EventBus.connect` and
    `rosey.server.LocalServer` raise, a missing server binary included.
    """
    from rosey.server import LocalServer  # subprocess and the rest only where they are used

    async with (
        LocalServer(store_dir=store_dir) as server,
        EventBus([server.url], **options) as bus,
    ):
        yield bus
