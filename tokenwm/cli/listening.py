"""Servers of verbs: how they begin to listen, and what is said of where."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from tokenwm.errors import TokenwmError


class Listening(Protocol):
    """A server that listens; ``address`` is host and port."""

    address: tuple[str, int]


Server = TypeVar("Server", bound=Listening)


def listen(make: Callable[[tuple[str, int]], Server], host: str, port: int) -> tuple[Server, str]:
    """Let a server listen.

    Args:
        make: Makes it of host and port; port 0 takes a free one.
        host: Where.
        port: The same.

    Returns:
        The server, and its URL.

    Raises:
        TokenwmError: It cannot listen there.
    """
    try:
        server = make((host, port))
    except (OSError, OverflowError) as error:
        raise TokenwmError(
            f"cannot listen on {host}:{port}: {error}; choose another --port"
        ) from error
    name, number = server.address
    return server, f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"
