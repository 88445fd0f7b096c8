"""Connections that have not yet proved who they are: few, for a short time, and nobody is locked out.

When the pool is full, one connection of the source that holds most of it makes room, chosen at
random.  "The oldest goes" would be a denial of service: a scanner opens thousands of connections a
second, so a newcomer would live for milliseconds.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Admission", "source_of"]

_IPV6_SOURCE_BITS: Final = 64


def source_of(peer: str) -> str:
    """Return what counts as one source: an IPv4 address, or an IPv6 /64, which is one customer or one link.

    *peer* is `host:port`, IPv6 in brackets; a peer has as many ports as it likes.
    """
    host = peer.rpartition(":")[0].strip("[]")
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_SOURCE_BITS), strict=False))
    return str(parsed)


class Admission:
    """The pool of connections that are shaking hands, at most *most* of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[trio.CancelScope, str] = {}

    @contextmanager
    def admit(self, peer: str, seconds: float) -> Iterator[trio.CancelScope]:
        """Bound a handshake with *peer* (`host:port`) to *seconds*; cancelled earlier if it has to make room."""
        if len(self._waiting) >= self._most:
            self._make_room()
        with trio.move_on_after(seconds) as scope:
            self._waiting[scope] = source_of(peer)
            try:
                yield scope
            finally:
                self._waiting.pop(scope, None)

    def _make_room(self) -> None:
        largest, _ = Counter(self._waiting.values()).most_common(1)[0]
        victim = secrets.choice([scope for scope, source in self._waiting.items() if source == largest])
        del self._waiting[victim]
        victim.cancel()
