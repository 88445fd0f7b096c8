"""This machine's network interfaces: where it can ask, and which addresses are directly attached."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

__all__ = ["Interface", "IpAddress", "IpNetwork", "interfaces", "parse_address"]

MAX_INTERFACES: Final = 64

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface that has an address.

    Attributes:
        name: such as `eth0`.
        index: as the system counts them.
        addresses: its own, those of loopback left out.
        networks: that they are in, in the same order.
    """

    name: str
    index: int
    addresses: tuple[IpAddress, ...]
    networks: tuple[IpNetwork, ...]

    def is_attached(self, address: IpAddress) -> bool:
        """Return whether *address* is reached on this interface without a router."""
        return any(address in network for network in self.networks)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.networks))})"


def interfaces() -> tuple[Interface, ...]:
    """Return the interfaces that have an address beside loopback's, as they are now."""
    import ifaddr  # only who browses needs it

    found: dict[str, list[tuple[IpAddress, IpNetwork]]] = {}
    for adapter in ifaddr.get_adapters():
        name = str(adapter.name).partition(":")[0]  # eth0:1 is an address of eth0, and no interface
        for ip in adapter.ips:
            address = ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0].partition("%")[0])
            if not address.is_loopback:
                network = ipaddress.ip_network((address, ip.network_prefix), strict=False)
                found.setdefault(name, []).append((address, network))
    made = []
    for name, pairs in list(found.items())[:MAX_INTERFACES]:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            continue  # it went away meanwhile
        addresses, networks = zip(*pairs, strict=True)
        made.append(Interface(name, index, addresses, networks))
    return tuple(made)


def parse_address(text: str) -> IpAddress | None:
    """Return the address that *text* is, an interface behind `%` left out; None if it is none."""
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
