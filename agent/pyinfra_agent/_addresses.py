"""Where the agent can be reached: what it listens on, and interfaces and addresses as they come and go."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = ["AddressChanges", "Bound", "IpAddress", "Link", "announced_port", "bound_addresses", "own_links"]

MAX_LINKS: Final = 64
MAX_ADDRESSES: Final = 16  # a controller keeps no more of one machine

_POLL_SECONDS: Final = 10.0
#: An interface that comes up says so several times within this.
_SETTLE_SECONDS: Final = 0.3
_NOTICE_BYTES: Final = 65_536

# linux/rtnetlink.h: interfaces, IPv4 addresses, IPv6 addresses
_NETLINK_GROUPS: Final = 0x1 | 0x10 | 0x100
_SIOCGIFFLAGS: Final = 0x8913  # linux/sockios.h
_IFF_UP: Final = 0x1
_IFF_MULTICAST: Final = 0x1000

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Link:
    """An interface that is up and can multicast.

    Attributes:
        name: such as `eth0`.
        index: as the system counts them.
        addresses: those at which the agent can be reached.
    """

    name: str
    index: int
    addresses: tuple[IpAddress, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """What one socket listens on.

    Attributes:
        address: may be that of every address of its version.
        port: TCP port.
        is_dual: IPv4 comes to this IPv6 socket, too.
    """

    address: IpAddress
    port: int
    is_dual: bool = False

    def takes(self, address: IpAddress) -> bool:
        """Return whether a connection to *address* comes here."""
        if self.address.is_unspecified:
            return self.address.version == address.version or self.is_dual
        return self.address == address


def bound_addresses(sockets: Iterable[trio.socket.SocketType]) -> tuple[Bound, ...]:
    """Return what listening *sockets* can be reached by from other machines."""
    found = []
    for sock in sockets:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            continue
        name = sock.getsockname()
        address = ipaddress.ip_address(str(name[0]).partition("%")[0])
        is_ipv6 = sock.family == socket.AF_INET6
        is_dual = is_ipv6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        if not address.is_loopback:
            found.append(Bound(address, name[1], is_dual))
    return tuple(found)


def announced_port(bound: Collection[Bound]) -> int | None:
    """Return the port to tell others: that of the first socket; None where only this machine can connect."""
    return next((each.port for each in bound), None)


def own_links(bound: Collection[Bound], chosen: Collection[str] = ()) -> tuple[Link, ...]:
    """Return the interfaces at whose addresses one of *bound* listens on the announced port.

    Args:
        bound: what `bound_addresses` returned.
        chosen: names of the only interfaces to take; none are all.

    Raises:
        ModuleNotFoundError: the package ifaddr is missing.
    """
    import ifaddr  # only who announces needs it; it comes with zeroconf

    port = announced_port(bound)
    found: dict[str, dict[IpAddress, None]] = {}
    for adapter in ifaddr.get_adapters():
        name = str(adapter.name).partition(":")[0]  # eth0:1 is an address of eth0, and no interface
        if chosen and name not in chosen:
            continue
        for ip in adapter.ips:
            address = ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0].partition("%")[0])
            if not address.is_loopback and any(each.port == port and each.takes(address) for each in bound):
                found.setdefault(name, {})[address] = None
    return tuple(_links(found))


def _links(found: dict[str, dict[IpAddress, None]]) -> Iterator[Link]:
    for name, addresses in sorted(found.items())[:MAX_LINKS]:
        try:
            index = socket.if_nametoindex(name)
            if _can_multicast(name):
                yield Link(name, index, tuple(sorted(addresses, key=lambda each: (each.version, each)))[:MAX_ADDRESSES])
        except OSError:
            continue  # it went away meanwhile


def _can_multicast(name: str) -> bool:
    """An interface that is down keeps its IPv4 addresses, at which nobody reaches it."""
    if sys.platform != "linux":
        return True
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
    (flags,) = struct.unpack_from("H", answer, 16)
    return bool(flags & _IFF_UP) and bool(flags & _IFF_MULTICAST)


class AddressChanges:
    """Tells when interfaces or addresses may have changed; a context manager.

    Linux says so by netlink, at once and for nothing. Elsewhere one has to look: every 10 s, at 0.2 to 1 ms each.
    """

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None

    def __enter__(self) -> AddressChanges:
        if hasattr(socket, "AF_NETLINK"):
            # Where sandboxing forbids netlink, looking now and then is left.
            with contextlib.suppress(OSError):
                sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
                try:
                    sock.bind((0, _NETLINK_GROUPS))
                except OSError:
                    sock.close()
                    raise
                self._netlink = sock
        return self

    def __exit__(self, *exc: object) -> None:
        if self._netlink is not None:
            self._netlink.close()

    async def wait(self) -> None:
        """Return when something may have changed, once for a burst of changes."""
        if self._netlink is None:
            await trio.sleep(_POLL_SECONDS)
            return
        await trio.lowlevel.wait_readable(self._netlink)
        await trio.sleep(_SETTLE_SECONDS)
        try:
            while self._netlink.recv(_NOTICE_BYTES):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # ENOBUFS: there were more changes than the kernel kept, which is all that matters
