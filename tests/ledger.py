"""What was tried, what was acknowledged and what is stored: the books that must balance."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

from rosey import Event, EventBus, EventBusError


@dataclass
class Ledger:
    """Every event by its number; the checker's words are Jepsen's."""

    attempted: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    unknown: dict[int, str] = field(default_factory=dict)
    """Those whose publishing raised, and what: they may be stored, or not."""
    stored: Counter[int] = field(default_factory=Counter)

    @property
    def lost(self) -> set[int]:
        """Acknowledged and not stored."""
        return self.acknowledged - self.stored.keys()

    @property
    def duplicated(self) -> set[int]:
        """Stored more than once."""
        return {number for number, count in self.stored.items() if count > 1}

    @property
    def unexpected(self) -> set[int]:
        """Stored though nobody published them."""
        return self.stored.keys() - self.attempted

    @property
    def recovered(self) -> set[int]:
        """Stored though the publisher was not told so."""
        return self.unknown.keys() & self.stored.keys()

    async def read(self, url: str, stream: str = "PLATFORM_EVENTS") -> None:
        """Count what `stream` holds, as its server at `url` says."""
        async with EventBus([url], streams=()) as bus:
            assert bus.js is not None
            js, state = bus.js, (await bus.js.stream_info(stream)).state
            sequences = iter(range(state.first_seq, state.last_seq + 1))
            # Without a consumer, which a full disk or a cluster in trouble would refuse.
            while some := list(islice(sequences, 256)):
                found = await asyncio.gather(*(js.get_msg(stream, seq=number) for number in some))
                self.stored.update(Event.from_json(one.data or b"").data["n"] for one in found)

    def __str__(self) -> str:
        return (
            f"{len(self.acknowledged):,} acknowledged, {len(self.lost)} lost, "
            f"{len(self.duplicated)} twice, {len(self.unknown)} unknown "
            f"({len(self.recovered)} of them stored), {len(self.unexpected)} unexpected"
        )


async def publish_forever(bus: EventBus, ledger: Ledger, stop: asyncio.Event) -> None:
    """Store one event after the other, and keep the books."""
    while not stop.is_set():
        number = len(ledger.attempted)
        ledger.attempted.add(number)
        try:
            await bus.publish_js("rosey.platform.x", {"n": number}, timeout=15)
        except EventBusError as error:
            ledger.unknown[number] = repr(error)
        else:
            ledger.acknowledged.add(number)
