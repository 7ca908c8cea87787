"""Sockets that listen, for both front-ends."""

from __future__ import annotations

import socket
from typing import Final

BACKLOG: Final = 1024


def bound_socket(address: str, port: int, reuse_port: bool) -> socket.socket:
    """A socket that listens there; port 0 is any free one. Raises OSError, naming the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((address, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"cannot listen on {address}:{port}: {error.strerror}") from None
    return bound
