"""The demo's plot: replay a session, kill the server half-way, and count what came of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from statistics import quantiles

from rosey.core.consumers import Consumer
from rosey.core.event_bus import EventBus
from rosey.core.events import Event
from rosey.core.streams import DEFAULT_STREAMS
from rosey.demo.bots import CHAT, ChatLog, CommandHandler, Router, catch_up
from rosey.demo.cytube import Frame, Session, to_event
from rosey.server import LocalServer

IN_FLIGHT = 32
"""Events that may wait for their acknowledgement at a time."""
PATIENCE = 30.0
"""Seconds that an event may take to be stored, the crash included."""
SHOWN = 3
"""Lines of the chat log that the outcome quotes."""


@dataclass(slots=True)
class Progress:
    """Where the demo is; updated as it runs, for whoever shows it."""

    total: int
    act: str = "starting the server"
    published: int = 0
    acknowledged: int = 0
    router: Router | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found; times are seconds."""

    frames: int
    published: int
    acknowledged: int
    stored: dict[str, int]
    """Events in each stream, as the server counts them."""
    messages_routed: int
    messages_caught_up: int
    chat_stored: int
    chat_logged: int
    chat_redelivered: int
    log_tail: list[str]
    """The last lines of the chat log."""
    dead_letters: int
    commands: int
    commands_answered: int
    commands_repeated: int
    handled_by: list[int]
    request_p50: float
    request_p99: float
    restart: float
    """From the kill until the server listens again."""
    recovery: float | None
    """From the kill until the next event was acknowledged, if one was left to publish."""
    duration: float

    def problems(self) -> list[str]:
        """What did not come out as promised; empty if all did."""
        found = []
        stored = self.stored["PLATFORM_EVENTS"]
        if self.published != self.acknowledged:
            found.append(f"{self.published - self.acknowledged} events were never acknowledged")
        if stored != self.acknowledged:
            found.append(f"{self.acknowledged} events were acknowledged, but {stored} are stored")
        if self.commands != self.commands_answered:
            found.append(f"{self.commands - self.commands_answered} commands were never answered")
        if self.chat_logged != self.chat_stored:
            found.append(f"{self.chat_stored} lines of chat are stored, {self.chat_logged} logged")
        if self.dead_letters:
            found.append(f"{self.dead_letters} events are dead letters")
        return found


async def play(
    session: Session, server: LocalServer, progress: Progress, speed: float | None = None
) -> Outcome:
    """Play the session on `server`, which must be running; `speed` None is as fast as possible."""
    began = time.perf_counter()
    async with EventBus([server.url], name="connector") as connector:
        async with EventBus([server.url], name="bots") as bots:
            router = progress.router = Router(bots)
            handlers = [CommandHandler(bots), CommandHandler(bots)]
            log = ChatLog(bots)
            logging = await log.start()
            chat = await router.start()
            for handler in handlers:
                await handler.start()
            crash = await _replay_with_a_crash(connector, server, session.frames, speed, progress)
            progress.act = "catching up"
            await chat.drain(timeout=PATIENCE)
            caught_up = await catch_up(router, await _last_sequence(connector))
            await _all_logged(logging)
        # The bots' bus has drained: whatever they had begun is done.
        stored = await _stored(connector)
        dead = len([letter async for letter in connector.dead_letters])
        lines = await _chat_lines(connector)
    p50, p99 = _percentiles(router.seconds)
    return Outcome(
        frames=len(session.frames),
        published=progress.published + router.answered,
        acknowledged=progress.acknowledged + router.replies_stored,
        stored=stored,
        messages_routed=router.messages,
        messages_caught_up=caught_up,
        chat_stored=lines,
        chat_logged=len(log.lines),
        chat_redelivered=logging.stats.redelivered,
        log_tail=[log.lines[number] for number in sorted(log.lines)[-SHOWN:]],
        dead_letters=dead,
        commands=router.commands,
        commands_answered=router.answered,
        commands_repeated=router.repeated,
        handled_by=[handler.handled for handler in handlers],
        request_p50=p50,
        request_p99=p99,
        restart=crash.restart,
        recovery=crash.recovery,
        duration=time.perf_counter() - began,
    )


@dataclass(slots=True)
class _Crash:
    """The crash half-way, as a stopwatch sees it."""

    killed_at: float = 0.0
    restart: float = 0.0
    recovery: float | None = None


async def _replay_with_a_crash(
    connector: EventBus,
    server: LocalServer,
    frames: tuple[Frame, ...],
    speed: float | None,
    progress: Progress,
) -> _Crash:
    """Publish `frames` in order, a bounded number at a time; kill the server in their midst."""
    crash = _Crash()
    free = asyncio.Semaphore(IN_FLIGHT)
    began = time.perf_counter()
    progress.act = "replaying"

    async def publish(event: Event) -> None:
        await connector.publish_js(event, timeout=PATIENCE)
        free.release()
        progress.acknowledged += 1
        if crash.restart and crash.recovery is None:
            crash.recovery = time.perf_counter() - crash.killed_at

    try:
        async with asyncio.TaskGroup() as publishing:
            for number, frame in enumerate(frames):
                if speed is not None:
                    due = began + (frame.t - frames[0].t) / speed
                    await asyncio.sleep(due - time.perf_counter())
                if number == len(frames) // 2:
                    # What is in flight now is not waited for: that is the point.
                    publishing.create_task(_crash(server, crash, progress))
                await free.acquire()
                progress.published += 1
                publishing.create_task(publish(to_event(frame)))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return crash


async def _crash(server: LocalServer, crash: _Crash, progress: Progress) -> None:
    progress.act = "server killed"
    crash.killed_at = time.perf_counter()
    await server.kill()
    await server.start()
    crash.restart = time.perf_counter() - crash.killed_at
    progress.act = "replaying"


async def _last_sequence(bus: EventBus) -> int:
    await bus.health(PATIENCE)  # waits for the connection: the crash may have been a moment ago
    assert bus.js is not None
    return (await bus.js.stream_info("PLATFORM_EVENTS")).state.last_seq


async def _all_logged(logging: Consumer) -> None:
    async with asyncio.timeout(PATIENCE):
        while (info := await logging.info()).pending or info.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _chat_lines(bus: EventBus) -> int:
    assert bus.js is not None
    info = await bus.js.stream_info("PLATFORM_EVENTS", subjects_filter=CHAT)
    return sum((info.state.subjects or {}).values())


async def _stored(bus: EventBus) -> dict[str, int]:
    assert bus.js is not None
    infos = [await bus.js.stream_info(spec.name) for spec in DEFAULT_STREAMS]
    return {info.config.name or "": info.state.messages for info in infos}


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    if len(seconds) < 2:
        return (seconds or [0.0])[0], (seconds or [0.0])[0]
    cuts = quantiles(seconds, n=100, method="inclusive")
    return cuts[49], cuts[98]
