"""Asks the server whether it works: publish and subscribe, request and reply, a stored message.

Reads NATS_URL (nats://127.0.0.1:4222) and NATS_TOKEN; needs nats-py. Exits 0 if all three work.
"""

import asyncio
import os
import sys

import nats
from nats.js.api import StorageType

TIMEOUT = 5


async def main() -> None:
    url = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")

    async def silent(_: Exception) -> None:
        """The exception is raised, too."""

    client = await nats.connect(
        url, token=os.environ.get("NATS_TOKEN"), allow_reconnect=False, error_cb=silent
    )
    try:
        subject = client.new_inbox()
        subscription = await client.subscribe(subject)
        await client.publish(subject, b"hello")
        assert (await subscription.next_msg(TIMEOUT)).data == b"hello"
        print("publish and subscribe  works")

        service = client.new_inbox()

        async def answer(message: nats.aio.msg.Msg) -> None:
            await message.respond(message.data.upper())

        await client.subscribe(service, cb=answer)
        assert (await client.request(service, b"hello", TIMEOUT)).data == b"HELLO"
        print("request and reply      works")

        jetstream = client.jetstream()
        stream = "test-connection"
        await jetstream.add_stream(name=stream, subjects=[stream], storage=StorageType.MEMORY)
        try:
            await jetstream.publish(stream, b"hello", timeout=TIMEOUT)
            assert (await jetstream.get_last_msg(stream, stream)).data == b"hello"
        finally:
            await jetstream.delete_stream(stream)
        print("JetStream              works")
    finally:
        await client.close()


if __name__ == "__main__":
    try:
        asyncio.run(asyncio.wait_for(main(), 4 * TIMEOUT))
    except Exception as error:
        sys.exit(f"test-connection: {type(error).__name__}: {error}")
