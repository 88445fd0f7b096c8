"""Addresses that only multicast DNS knows: of a name that DNS does not have, and of an agent that has moved.

A name with a dot is DNS's, except below `.local` (RFC 6762 section 3). Any other one is asked for here when DNS does
not have it, so that a name which worked before somebody announced it goes on meaning the same machine.
"""

from __future__ import annotations

import socket as plain_socket
from typing import Any

from pyinfra_agent_protocol import DEFAULT_PORT

__all__ = ["addresses_on_link", "is_local", "may_be_on_link"]


def is_local(name: str) -> bool:
    """Return whether *name* belongs to multicast DNS alone."""
    return name.rstrip(".").endswith(".local")


def may_be_on_link(name: str) -> bool:
    """Return whether multicast DNS may know *name*, which is no address."""
    return is_local(name) or not ("." in name.rstrip(".") or ":" in name)


def addresses_on_link(name: str, port: int) -> list[Any]:
    """Return where the agent is that announces *name*, as getaddrinfo does; empty if none does.

    Args:
        name: of an instance or its machine, or the fingerprint that it announces.
        port: if this is the usual one, the agent's own counts.
    """
    from ._mdns import find_on_link

    found = []
    for agent in find_on_link(name):
        for address in agent.addresses:
            found += plain_socket.getaddrinfo(
                address,
                agent.port if port == DEFAULT_PORT else port,
                type=plain_socket.SOCK_STREAM,
                flags=plain_socket.AI_NUMERICHOST,  # needs no resolver, and does not wait
            )
    return found
