"""The bus itself: nats-py and msgspec below it, nothing of ours above it."""
