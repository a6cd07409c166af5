"""The signals that ask a program to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requested() -> Iterator[asyncio.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the program at once.

    For the main thread. What handled the signals before does so again after the block.
    """
    requested = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore() -> None:
        for number in STOP_SIGNALS:
            if sys.platform != "win32":
                loop.remove_signal_handler(number)

    def request() -> None:
        requested.set()
        restore()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    for number in STOP_SIGNALS:
        if sys.platform == "win32":  # pragma: no cover - tested on POSIX only
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(request))
        else:
            loop.add_signal_handler(number, request)
    try:
        yield requested
    finally:
        restore()
        for number, handler in before.items():
            signal.signal(number, handler)
