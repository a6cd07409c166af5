"""What becomes of an event whose handler failed: tried again, later, or never."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from rosey.core.errors import InvalidOptionError

Backoff = Callable[[int], float]
"""Takes the number of the attempt that failed, 1 for the first; returns seconds to wait."""

FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0


def exponential(attempt: int) -> float:
    """Half a second, doubled for each attempt, a minute at most; up to a fifth less by chance."""
    return min(FIRST_DELAY * 2.0 ** (attempt - 1), LONGEST_DELAY) * random.uniform(0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often an event is handled before it is a dead letter, and how long between.

    `attempts` counts all of them, those that ended with their worker's death included.
    """

    attempts: int = 5
    backoff: Backoff = exponential

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidOptionError("Retry.attempts must be at least 1")


class Reject(Exception):  # noqa: N818 - a handler's verdict, which reads `raise Reject(...)`
    """Raised by a handler: this event can never be handled, so it is a dead letter at once."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RetryLater(Exception):  # noqa: N818 - as above
    """Raised by a handler: not now, but in so many seconds; that is no failed attempt."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"in {seconds:g} s")
        self.seconds = seconds
