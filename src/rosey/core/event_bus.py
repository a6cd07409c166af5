"""The specification's import path: `EventBus`, the events, and one global bus for a program."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Unpack

from rosey.core.bus import BusOptions, EventBus
from rosey.core.errors import (
    EventBusError,
    NotConnectedError,
    NotInitializedError,
    PublishError,
    SubscriptionError,
    WrongEventLoopError,
)
from rosey.core.events import CommandEvent, Event, EventPriority, PlatformEvent

__all__ = [
    "CommandEvent",
    "Event",
    "EventBus",
    "EventBusError",
    "EventPriority",
    "NotConnectedError",
    "PlatformEvent",
    "PublishError",
    "SubscriptionError",
    "event_bus_context",
    "get_event_bus",
    "initialize_event_bus",
    "shutdown_event_bus",
]

_logger = logging.getLogger("rosey.bus")


@dataclass(slots=True)
class _Global:
    """The global bus and who needs it: it goes when nobody does."""

    bus: EventBus
    loop: asyncio.AbstractEventLoop
    connecting: asyncio.Task[None]
    users: int = 0
    """Contexts that are open, and callers that wait for the connection."""
    initialized: bool = False
    """`initialize_event_bus` made or took it, so that the last user must not end it."""


_global: _Global | None = None


async def initialize_event_bus(
    servers: Sequence[str] | str | None = None,
    token: str | None = None,
    **options: Unpack[BusOptions],
) -> EventBus:
    """Connect the global bus, or return the one there is, with a warning.

    Several tasks may call it at once: all get the same bus. Takes the options of `EventBus` and
    raises what `EventBus.connect` raises; then there is no global bus.
    """
    if _current() is not None:
        _logger.warning("the event bus is already initialized; its first options stay")
    async with _using(servers, token, options) as found:
        found.initialized = True
    return found.bus


async def get_event_bus() -> EventBus:
    """Return the global bus. Raises `NotInitializedError` (a `RuntimeError`) if there is none."""
    found = _current()
    if found is None or not found.connecting.done():
        raise NotInitializedError(
            "the event bus is not initialized: await initialize_event_bus() first"
        )
    return found.bus


async def shutdown_event_bus() -> None:
    """Disconnect the global bus, also from under contexts that use it; without one do nothing."""
    global _global
    found = _current()
    if found is None:
        return
    _global = None
    found.connecting.cancel()
    await found.bus.disconnect()


@asynccontextmanager
async def event_bus_context(
    servers: Sequence[str] | str | None = None,
    token: str | None = None,
    **options: Unpack[BusOptions],
) -> AsyncIterator[EventBus]:
    """The global bus for the length of a block, connected if there was none.

    The last context to end disconnects it, unless `initialize_event_bus` asked for it too.
    """
    async with _using(servers, token, options) as found:
        yield found.bus


def _current() -> _Global | None:
    """The global bus, unless the loop it lived on is gone."""
    global _global
    if _global is not None and _global.loop.is_closed():
        _global = None
    if _global is not None and _global.loop is not asyncio.get_running_loop():
        raise WrongEventLoopError(
            "the global event bus is connected on another event loop; "
            "make an EventBus of your own for this one"
        )
    return _global


@asynccontextmanager
async def _using(
    servers: Sequence[str] | str | None, token: str | None, options: BusOptions
) -> AsyncIterator[_Global]:
    """Keep the global bus alive for a block; the first user connects it for all."""
    global _global
    found = _current()
    if found is None:
        bus = EventBus(servers, token, **options)
        # A task, so that a caller who is cancelled does not end it for the others.
        connecting = asyncio.create_task(bus.connect())
        found = _global = _Global(bus, asyncio.get_running_loop(), connecting)
    found.users += 1
    try:
        await asyncio.wait([found.connecting])
        if found.connecting.cancelled():
            raise NotConnectedError("the event bus was shut down while it was being initialized")
        found.connecting.result()
        yield found
    finally:
        found.users -= 1
        if found.users == 0 and not found.initialized and found is _global:
            await shutdown_event_bus()
