"""Listening sockets that the service manager opened (systemd.socket(5)).

They stay open while the agent restarts, so that connections wait and none is refused. Other descriptors come the same
way (`_fdstore`), and are left alone.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import trio

from ._fdstore import listed_descriptors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["passed_listeners"]


def passed_listeners(environment: Mapping[str, str]) -> list[trio.SocketListener]:
    """Return the listening TCP sockets that this process was started with; to be called once."""
    return [
        trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))
        for _, descriptor in listed_descriptors(environment)
        if _listens(descriptor)
    ]


def _listens(descriptor: int) -> bool:
    try:
        probe = socket.socket(fileno=os.dup(descriptor))
    except OSError:  # not a socket
        return False
    with probe:
        return (
            probe.family in (socket.AF_INET, socket.AF_INET6)
            and probe.type == socket.SOCK_STREAM
            and bool(probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        )
