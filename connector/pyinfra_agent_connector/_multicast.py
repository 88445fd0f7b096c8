"""UDP sockets that ask one interface by multicast DNS (RFC 6762), on `gevent.socket`.

Two kinds. From a port of our own, with the bit that wants unicast answers: they come at once and burden nobody else
(section 6.7). And from port 5353: answers to that are multicast, which is all that a firewall lets in that knows mDNS
by its port. Unicast answers are not asked for there: port 5353 may be shared with avahi or systemd-resolved, and only
one of the sockets would get them (section 15.1).

A socket hears its own interface and no other. Linux would give it what comes to the group on every interface where any
program of this machine has joined it, and an answer from one link would be taken for one of another.
"""

from __future__ import annotations

import contextlib
import socket as plain_socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gevent import socket

from ._interfaces import Interface, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MulticastSocket", "open_sockets"]

MAX_PACKET_BYTES: Final = 9000  # RFC 6762 section 17

_PORT: Final = 5353
_IPV4_GROUP: Final = "224.0.0.251"
_IPV6_GROUP: Final = "ff02::fb"
_TTL: Final = 255  # section 11
_MAX_ADDRESSES: Final = 4  # of one interface to ask from: a responder answers only its own subnet
_RECEIVE_BUFFER_BYTES: Final = 1024 * 1024
#: linux/in.h and in6.h, from Linux 2.6.31 and 4.20 on; Python has no names for them.
_IP_MULTICAST_ALL: Final = 49
_IPV6_MULTICAST_ALL: Final = 29


@dataclass(frozen=True, eq=False)
class MulticastSocket:
    """One socket on one interface.

    Attributes:
        interface: that it asks.
        is_shared: it is bound to port 5353 and hears what is said to all.
    """

    sock: Any
    interface: Interface
    is_shared: bool
    _target: tuple[Any, ...]

    def send(self, packet: bytes) -> None:
        """Send *packet* to all; an interface that is down or without multicast gets nothing."""
        with contextlib.suppress(OSError):
            self.sock.sendto(packet, self._target)

    def receive(self) -> tuple[bytes, str] | None:
        """Return the next packet that is waiting and may be believed to come from this link, and who sent it.

        The packet is empty if it may not; None if nothing is waiting.
        """
        try:
            data, source = self.sock.recvfrom(MAX_PACKET_BYTES + 1)
        except OSError:
            return None
        host = source[0].partition("%")[0]
        # Sections 6 and 11. What came to the group came from this link, whatever address it bears.
        if source[1] != _PORT or len(data) > MAX_PACKET_BYTES or not (self.is_shared or self._is_attached(host)):
            return b"", host
        return data, host

    def _is_attached(self, host: str) -> bool:
        address = parse_address(host)
        return address is not None and (address.is_link_local or self.interface.is_attached(address))


def open_sockets(interface: Interface) -> Iterator[MulticastSocket]:
    """Yield the sockets by which *interface* can be asked, which may be none."""
    ipv4 = [str(address) for address in interface.addresses if address.version == 4]
    has_ipv6 = any(address.version == 6 for address in interface.addresses)
    for address in ipv4[:_MAX_ADDRESSES]:
        yield from _opened(interface, plain_socket.AF_INET, False, _bind_ipv4(address))
    if ipv4:
        yield from _opened(interface, plain_socket.AF_INET, True, _join_ipv4(ipv4[0]))
    if has_ipv6:
        yield from _opened(interface, plain_socket.AF_INET6, False, _bind_ipv6(interface.index))
        yield from _opened(interface, plain_socket.AF_INET6, True, _join_ipv6(interface.index))


def _opened(
    interface: Interface,
    family: int,
    is_shared: bool,
    prepare: Callable[[Any], None],
) -> Iterator[MulticastSocket]:
    try:
        sock = socket.socket(family, plain_socket.SOCK_DGRAM)
    except OSError:
        return  # no IPv6 in this kernel, or no descriptor left
    try:
        sock.setblocking(False)
        sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        prepare(sock)
    except OSError:
        sock.close()
        return
    ipv6_target = (_IPV6_GROUP, _PORT, 0, interface.index)
    target = (_IPV4_GROUP, _PORT) if family == plain_socket.AF_INET else ipv6_target
    yield MulticastSocket(sock, interface, is_shared, target)


def _bind_ipv4(address: str) -> Callable[[Any], None]:
    def prepare(sock: Any) -> None:  # noqa: ANN401 - gevent has no types
        _ask_from_ipv4(sock, address)
        sock.bind((address, 0))

    return prepare


def _join_ipv4(address: str) -> Callable[[Any], None]:
    def prepare(sock: Any) -> None:  # noqa: ANN401
        _ask_from_ipv4(sock, address)
        # To the group and not to every address: unicast to port 5353 is for a responder that lives here.
        _bind_shared(sock, (_IPV4_GROUP, _PORT))
        group = plain_socket.inet_aton(_IPV4_GROUP) + plain_socket.inet_aton(address)
        sock.setsockopt(plain_socket.IPPROTO_IP, plain_socket.IP_ADD_MEMBERSHIP, group)

    return prepare


def _ask_from_ipv4(sock: Any, address: str) -> None:  # noqa: ANN401
    _hear_what_was_joined(sock, plain_socket.IPPROTO_IP, _IP_MULTICAST_ALL)
    sock.setsockopt(plain_socket.IPPROTO_IP, plain_socket.IP_MULTICAST_IF, plain_socket.inet_aton(address))
    sock.setsockopt(plain_socket.IPPROTO_IP, plain_socket.IP_MULTICAST_TTL, _TTL)


def _bind_ipv6(index: int) -> Callable[[Any], None]:
    def prepare(sock: Any) -> None:  # noqa: ANN401
        _ask_from_ipv6(sock, index)
        sock.bind(("::", 0))

    return prepare


def _join_ipv6(index: int) -> Callable[[Any], None]:
    def prepare(sock: Any) -> None:  # noqa: ANN401
        _ask_from_ipv6(sock, index)
        _bind_shared(sock, (_IPV6_GROUP, _PORT, 0, index))
        group = plain_socket.inet_pton(plain_socket.AF_INET6, _IPV6_GROUP) + struct.pack("@I", index)
        sock.setsockopt(plain_socket.IPPROTO_IPV6, plain_socket.IPV6_JOIN_GROUP, group)

    return prepare


def _ask_from_ipv6(sock: Any, index: int) -> None:  # noqa: ANN401
    _hear_what_was_joined(sock, plain_socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL)
    sock.setsockopt(plain_socket.IPPROTO_IPV6, plain_socket.IPV6_V6ONLY, 1)
    sock.setsockopt(plain_socket.IPPROTO_IPV6, plain_socket.IPV6_MULTICAST_IF, index)
    sock.setsockopt(plain_socket.IPPROTO_IPV6, plain_socket.IPV6_MULTICAST_HOPS, _TTL)


def _bind_shared(sock: Any, address: tuple[Any, ...]) -> None:  # noqa: ANN401
    sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":
        # SO_REUSEADDR is enough there, beside whoever has set it too. Sockets with SO_REUSEPORT are one group, of which
        # Linux 6.18 was seen to give a packet that is for one of them alone to another.
        with contextlib.suppress(OSError):
            sock.bind(address)
            return
    sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_REUSEPORT, 1)
    sock.bind(address)


def _hear_what_was_joined(sock: Any, level: int, option: int) -> None:  # noqa: ANN401
    # Where it cannot be said it is the custom, or there is nothing to be done about it.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            sock.setsockopt(level, option, 0)
