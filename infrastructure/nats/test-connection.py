"""Asks the server whether it works: publish and subscribe, request and reply, a stored message.

Reads NATS_URL (nats://127.0.0.1:4222) and NATS_TOKEN; needs nats-py. Exits 0 if all three work,
1 if one does not, 2 if there is no connection: no server there, or the wrong token.
"""

import asyncio
import os
import sys
import uuid
from collections.abc import Awaitable, Callable

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

TIMEOUT = 5  # seconds for each step
HELLO = b"hello"


async def publish_and_subscribe(client: Client) -> bytes:
    subject = client.new_inbox()
    subscription = await client.subscribe(subject)
    await client.publish(subject, HELLO)
    return (await subscription.next_msg(TIMEOUT)).data


async def request_and_reply(client: Client) -> bytes:
    async def echo(message: Msg) -> None:
        await message.respond(message.data)

    service = client.new_inbox()
    await client.subscribe(service, cb=echo)
    return (await client.request(service, HELLO, TIMEOUT)).data


async def jetstream(client: Client) -> bytes | None:
    context = client.jetstream(timeout=TIMEOUT)
    stream = f"test-connection-{uuid.uuid4().hex[:8]}"
    await context.add_stream(name=stream, subjects=[stream])
    try:
        stored = await context.publish(stream, HELLO)
        return (await context.get_msg(stream, stored.seq)).data
    finally:
        await context.delete_stream(stream)


async def works(
    name: str, step: Callable[[Client], Awaitable[bytes | None]], client: Client
) -> bool:
    try:
        received = await asyncio.wait_for(step(client), 3 * TIMEOUT)
    except Exception as error:
        print(f"{name:22} does not work: {type(error).__name__}: {error}")
        return False
    print(f"{name:22} {'works' if received == HELLO else 'does not work: other bytes came back'}")
    return received == HELLO


async def main() -> int:
    url = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")

    async def silent(_: Exception) -> None:
        """What matters is raised, too."""

    try:
        client = await nats.connect(
            url,
            token=os.environ.get("NATS_TOKEN"),
            allow_reconnect=False,
            connect_timeout=TIMEOUT,
            error_cb=silent,
        )
    except Exception as error:
        print(f"test-connection: not connected: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    try:
        results = [
            await works("publish and subscribe", publish_and_subscribe, client),
            await works("request and reply", request_and_reply, client),
            await works("JetStream", jetstream, client),
        ]
    finally:
        await client.close()
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
