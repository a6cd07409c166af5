"""How late the event loop is: what blocks it delays every handler and every heartbeat."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

INTERVAL = 0.25
"""Seconds between looks at the clock."""
WARN_AFTER = 1.0
"""Seconds of lateness that are logged."""
_KEPT = 40  # looks: 10 seconds

_logger = logging.getLogger("rosey.bus")


class LoopLag:
    """Measures, while started, by how much a timer of the loop comes late."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_KEPT)
        self._timer: asyncio.TimerHandle | None = None
        self.blocked_until = 0.0
        """Loop time of the last look that came so late that it was logged."""

    @property
    def worst(self) -> float:
        """Seconds, the worst of the last ten seconds."""
        return max(self._recent, default=0.0)

    def start(self) -> None:
        """Begin to measure the running loop."""
        self.stop()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(INTERVAL, self._look, loop, loop.time() + INTERVAL)

    def stop(self) -> None:
        """End measuring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now = loop.time()
        late = max(0.0, now - due)
        self._recent.append(late)
        if late >= WARN_AFTER:
            self.blocked_until = now
            _logger.warning(
                "the event loop was blocked for %.1f s: something in a handler does not await; "
                "use asyncio.to_thread for it",
                late,
            )
        self._timer = loop.call_later(INTERVAL, self._look, loop, now + INTERVAL)
