"""What can go wrong with a server of one's own."""


class ServerError(Exception):
    """The local server cannot do what was asked."""


class ServerNotFoundError(ServerError):
    """There is no nats-server program to run."""


class ServerStartError(ServerError):
    """The server ended or did not become ready; the message ends with its last log lines."""


class StoreLockedError(ServerError):
    """Another server uses the store directory; two on one store lose data."""
