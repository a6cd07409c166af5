"""Streams changed on purpose: the plan says what will be done, and does nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from nats.js.api import StreamConfig

from rosey import EventBus, PlanRefusedError, StreamSpec

SPEC = StreamSpec("LOG", ("log.>",), max_age=timedelta(days=1), max_messages=10)


async def test_a_plan_says_what_it_will_do_and_does_it(bus: EventBus) -> None:
    plan = await bus.plan([SPEC])
    assert not plan.empty
    assert str(plan).splitlines()[0] == "+ LOG: create"
    assert "    subjects: log.>" in str(plan)
    await plan.apply()
    assert (await bus.plan([SPEC])).empty
    assert str(await bus.plan([SPEC])) == "  LOG: as specified"
    assert (await bus.plan()).empty  # the bus's own
    wider = replace(SPEC, subjects=("log.>", "more.>"), max_messages=20)
    plan = await bus.plan([wider])
    assert "~ LOG: change" in str(plan)
    assert "    max_msgs: 10 -> 20" in str(plan)
    await plan.apply()
    assert (await bus.plan([wider])).empty


async def test_what_would_lose_data_is_refused_until_told(bus: EventBus) -> None:
    await (await bus.plan([SPEC])).apply()
    for n in range(5):
        await bus.publish_js("log.x", {"n": n})
    smaller = replace(SPEC, max_messages=2, max_age=timedelta(hours=1), subjects=("log.x",))
    plan = await bus.plan([smaller])
    assert "! max_msgs of 2 deletes the oldest of 5" in str(plan)
    assert "! a shorter max_age" in str(plan)
    assert "! what is published on log.> will no longer be kept" in str(plan)
    with pytest.raises(PlanRefusedError, match="allow_data_loss=True"):
        await plan.apply()
    assert bus.js is not None
    assert (await bus.js.stream_info("LOG")).state.messages == 5
    await plan.apply(allow_data_loss=True)
    assert (await bus.js.stream_info("LOG")).state.messages == 2


async def test_what_the_server_cannot_change_is_refused_before_anything_is_done(
    bus: EventBus,
) -> None:
    await (await bus.plan([SPEC])).apply()
    other = StreamSpec("OTHER", ("other.>",))
    plan = await bus.plan([other, replace(SPEC, storage="memory")])
    assert "x LOG: refuse" in str(plan)
    with pytest.raises(PlanRefusedError, match="file and memory"):
        await plan.apply(allow_data_loss=True)
    assert (await bus.plan([other])).changes[0].action == "create"


async def test_what_is_not_specified_stays(bus: EventBus) -> None:
    assert bus.js is not None
    config = StreamConfig(name="LOG", subjects=["log.>"], description="mine", max_consumers=7)
    await bus.js.add_stream(config)
    await (await bus.plan([StreamSpec("LOG", ("log.>",), max_bytes=10**6)])).apply()
    found = (await bus.js.stream_info("LOG")).config
    assert (found.description, found.max_consumers, found.max_bytes) == ("mine", 7, 10**6)


async def test_a_stream_may_become_one_that_keeps_marks(bus: EventBus) -> None:
    await (await bus.plan([SPEC])).apply()
    marked = replace(SPEC, once=True)
    plan = await bus.plan([marked])
    assert "allow_atomic" in str(plan)
    await plan.apply()
    assert (await bus.plan([marked])).empty
