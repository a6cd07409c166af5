"""What a handler is, and what it says of itself by its annotations."""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from rosey.core.events import Event

Handler = Callable[[Any], Any]
"""Takes an `Event`, async or not. What it returns, a dict or an `Event`, is the reply."""

current_worker: ContextVar[asyncio.Task[None] | None] = ContextVar("current_worker", default=None)
"""The task that runs the handler that we are in, also in tasks which that handler started."""


def event_type_of(handler: Handler) -> type[Event]:
    """The kind of event that a handler's first parameter is annotated with, else `Event`."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(handler))
        first = next(iter(inspect.signature(handler).parameters), "")
    except (NameError, TypeError, ValueError, AttributeError):
        return Event  # names that only a type checker sees, or a callable without a signature
    hint = hints.get(first)
    if typing.get_origin(hint) is list:  # a handler of batches
        hint = typing.get_args(hint)[0]
    return hint if isinstance(hint, type) and issubclass(hint, Event) else Event


def take_back_cancellation() -> None:
    """Go on in a task that a handler, or what it awaited, had cancelled."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
