"""Where failures go that have no caller to raise to: the log and the bus's error hook."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from rosey.core.errors import EventBusError
from rosey.core.events import Event

ErrorHook = Callable[[Exception, Event | None], object]
"""Called with the error and the event it concerns, if there is one; must not block."""

_logger = logging.getLogger("rosey.bus")


class ErrorReports:
    """Logs each failure and hands it to the hook, whose own failures end here."""

    def __init__(self, hook: ErrorHook | None) -> None:
        self._hook = hook
        self._quiet_until: dict[str, float] = {}

    def report(
        self, error: Exception, event: Event | None = None, *, where: str = "", once: str = ""
    ) -> None:
        """Report `error`; of those with the same `once` at most one a second is logged."""
        if not once or self.is_due(once):
            ours = isinstance(error, EventBusError) and error.__cause__ is None
            _logger.error(
                "%s%s%s",
                f"{where}: " if where else "",
                error if ours else _shown(error),
                f" [{event!r}]" if event is not None else "",
                exc_info=None if ours else error,
            )
        if self._hook is None:
            return
        try:
            self._hook(error, event)
        except Exception:
            _logger.exception("the error hook failed")

    def is_due(self, once: str) -> bool:
        """Whether the last time that this was asked and true is over a second ago."""
        now = time.monotonic()
        if now < self._quiet_until.get(once, 0.0):
            return False
        self._quiet_until[once] = now + 1.0
        return True


def _shown(error: Exception) -> str:
    try:
        return repr(error)
    except Exception:
        return f"{type(error).__name__} (its repr fails)"
