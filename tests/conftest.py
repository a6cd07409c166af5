"""Servers and buses for the tests: real ones, each test its own unless NATS_URL names another."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client

from rosey import EventBus
from rosey.server import LocalServer

pytest_plugins = ["fault_table"]


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    """A server that this test may kill and configure as it likes."""
    async with LocalServer() as started:
        yield started


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """The server to talk to: the one of NATS_URL, else one of our own."""
    given = os.environ.get("NATS_URL")
    if given:
        yield given
        return
    async with LocalServer() as started:
        yield started.url


@pytest.fixture
async def bus(url: str) -> AsyncIterator[EventBus]:
    async with EventBus([url]) as connected:
        yield connected


@pytest.fixture
async def other_bus(url: str) -> AsyncIterator[EventBus]:
    """A second program on the same server."""
    async with EventBus([url], name="other") as connected:
        yield connected


@pytest.fixture
async def raw(url: str) -> AsyncIterator[Client]:
    """A program that knows nothing of our events."""
    client = await nats.connect(url)
    yield client
    await client.close()


@pytest.fixture
def unstarted_server() -> LocalServer:
    """For a test that runs event loops of its own."""
    return LocalServer()
