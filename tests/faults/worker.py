"""A program that consumes: may be killed at any moment.

Run as `python worker.py URL WHAT`, with WHAT one of:
    ledger   its effects are events, stored once; handled in order for each key
    suicide  dies inside the handler of event 7
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from rosey import Event, EventBus, Retry


async def credit(event: Event) -> None:
    event.publish("ledger.credited", {"n": event.data["n"], "key": event.data["key"]})


async def die_of_seven(event: Event) -> None:
    if event.data["n"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    event.publish("ledger.credited", {"n": event.data["n"], "key": 0})


async def main(url: str, what: str) -> None:
    async with EventBus([url], streams=(), connect_timeout=20) as bus:
        if what == "ledger":
            await bus.consume(
                "in.>",
                credit,
                durable="bank",
                once=True,
                key="data.key",
                concurrency=16,
                max_in_flight=64,
                ack_wait=2.0,
                retry=Retry(attempts=50),
                timeout=20,
            )
        else:
            await bus.consume(
                "in.>", die_of_seven, durable="bank", once=True, ack_wait=0.5, timeout=20
            )
        print("ready", flush=True)
        await bus.run_until_signal()


logging.disable()
asyncio.run(main(sys.argv[1], sys.argv[2]))
