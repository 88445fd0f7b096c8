"""What may stand after `@agent`, told apart by its form alone: nothing here looks anything up.

    @agent                      EVERY       all agents announced on this machine's links
    @agent/subnet               SUBNET
    @agent/known                KNOWN
    @agent/loopback             LOOPBACK
    @agent/dns:example.com      ZONE        host is the zone
    @agent/10.0.0.0/24          NETWORK     host is the network
    @agent/web1[:7963]          AGENT       host and port; also 192.0.2.1[:port], [2001:db8::1][:port], 2001:db8::1

A host that is really called known, subnet or loopback is written with its port, `known:7963`.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final

from pyinfra_agent_protocol import DEFAULT_PORT

__all__ = ["AgentName", "BadAgentName", "NameKind", "parse_agent_name", "parse_pin_name", "pin_name"]

MAX_HOST_CHARACTERS: Final = 253  # RFC 1035 section 2.3.4, as text
MAX_PORT: Final = 65535
MAX_QUOTED_CHARACTERS: Final = 80  # of a refused name in an error

# RFC 1123 section 2.1, and the underscore that DNS permits and machines in the field carry.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# What a resolver's inet_aton takes for (part of) an IPv4 address when it stands last.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
_SCOPE: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")  # an interface's name or number
_FORMS: Final = "write HOST, HOST:PORT, ADDRESS, [IPV6]:PORT, NETWORK/BITS, dns:ZONE, known, subnet or loopback"


class BadAgentName(ValueError):
    """What stands after `@agent/` has no meaning; the text says how it should look."""


class NameKind(enum.Enum):
    """What a name asks for."""

    AGENT = "agent"
    EVERY = "every"
    KNOWN = "known"
    SUBNET = "subnet"
    LOOPBACK = "loopback"
    ZONE = "zone"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class AgentName:
    """A name taken apart.

    Attributes:
        kind: what it asks for.
        host: for AGENT a lower-case name or an address in its canonical text, without brackets; for ZONE the zone;
            for NETWORK the network as ADDRESS/BITS; otherwise empty.
        port: for AGENT a TCP port; otherwise 0.
        has_port: the text says which. `web1` and `web1:7963` are equal all the same: they are one agent.
    """

    kind: NameKind
    host: str = ""
    port: int = 0
    has_port: bool = field(default=False, compare=False)


_RESERVED: Final = {
    "known": NameKind.KNOWN,
    "subnet": NameKind.SUBNET,
    "loopback": NameKind.LOOPBACK,
}


def parse_agent_name(text: str | None) -> AgentName:
    """Return what *text*, the part after `@agent/`, asks for; None and "" are the bare `@agent`.

    Raises:
        BadAgentName: it has none of the forms above.
    """
    if not text:
        return AgentName(NameKind.EVERY)
    _require_ascii(text)
    if "," in text:
        raise _bad(text, "pyinfra splits names at commas: write several @agent/... instead")
    if "@" in text:
        raise _bad(text, "an agent has no user part: leave out everything up to the last @")
    lowered = text.lower()
    if lowered in _RESERVED:
        return AgentName(_RESERVED[lowered])
    # `dns:7963` is the host called dns at that port: no zone is a number.
    if lowered.startswith("dns:") and not lowered[4:].isdigit():
        return AgentName(NameKind.ZONE, _zone(text, lowered[4:]))
    if "/" in text:
        return AgentName(NameKind.NETWORK, _network(text))
    host, port = _split_port(text)
    said = DEFAULT_PORT if port is None else port
    return AgentName(NameKind.AGENT, _host(text, host), said, port is not None)


def pin_name(host: str, port: int) -> str:
    """Return the one spelling under which the agent at *host* and *port* is pinned, such as `[2001:db8::1]:7963`.

    Raises:
        BadAgentName: *host* is neither a name nor an address, or *port* is out of bounds.
    """
    text = f"{host}:{port}"
    if not 1 <= port <= MAX_PORT:
        raise _bad(text, f"a port is a number from 1 to {MAX_PORT}")
    canonical = _host(text, host)
    return f"[{canonical}]:{port}" if ":" in canonical else f"{canonical.rstrip('.')}:{port}"


def parse_pin_name(text: str) -> str:
    """Return the pinned name that *text* spells; a host without a port has the default one.

    Raises:
        BadAgentName: *text* does not name one agent.
    """
    name = parse_agent_name(text)
    if name.kind is not NameKind.AGENT:
        raise _bad(text, "it does not name one agent: write HOST:PORT")
    return pin_name(name.host, name.port)


def _split_port(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host:
            raise _bad(text, "brackets hold an IPv6 address: write [2001:db8::1]:7963")
        if not rest:
            return host, None
        if not rest.startswith(":"):
            raise _bad(text, "only :PORT may follow the bracket: write [2001:db8::1]:7963")
        return host, _port(text, rest[1:])
    if text.count(":") > 1:  # an IPv6 address without brackets cannot carry a port
        return text, None
    host, colon, port = text.partition(":")
    return host, _port(text, port) if colon else None


def _port(text: str, digits: str) -> int:
    # At most five digits: int() of a very long text is slow, or refused.
    if digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= MAX_PORT:
        return int(digits)
    raise _bad(text, f"a port is a number from 1 to {MAX_PORT}")


def _host(text: str, host: str) -> str:
    if ":" in host:
        return _ipv6(text, host)
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        # Resolvers read 10.1 as 10.0.0.1, and 010 as octal; nobody who pins a key should have to know that.
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _bad(text, "an IPv4 address is four numbers from 0 to 255, without leading zeros") from None
    _require_ascii(text)
    lowered = host.lower()
    _check_domain(text, lowered, _FORMS)
    return lowered


def _ipv6(text: str, host: str) -> str:
    literal, percent, scope = host.partition("%")
    try:
        address = ipaddress.IPv6Address(literal)
    except ValueError:
        raise _bad(text, "this is not an IPv6 address; with a port, write [2001:db8::1]:7963") from None
    if percent and not _SCOPE.fullmatch(scope):
        raise _bad(text, "after % stands the name of an interface, such as fe80::1%eth0")
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)  # its text differs between Python's versions, and it is the same machine
    return f"{address.compressed}{percent}{scope}"


def _zone(text: str, zone: str) -> str:
    _check_domain(text, zone, "after dns: stands a DNS zone, such as dns:example.com")
    return zone.rstrip(".")


def _network(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError("a network has no interface")
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise _bad(text, "a network is ADDRESS/BITS, such as 10.0.0.0/24 or 2001:db8::/64") from None
    address = text.partition("/")[0]
    if ipaddress.ip_address(address) != network.network_address:
        raise _bad(
            text, f"the address lies inside a network: write {network} for the network, or {address} for one host"
        )
    return str(network)


def _require_ascii(text: str) -> None:
    # Before anything is lowered: a Kelvin sign would become a k, and another name.
    if not text.isascii():
        raise _bad(text, "names are ASCII: write an internationalised one in its xn-- form")


def _check_domain(text: str, domain: str, remedy: str) -> None:
    labels = domain.removesuffix(".").split(".")
    if len(domain) > MAX_HOST_CHARACTERS or not all(_LABEL.fullmatch(label) for label in labels):
        raise _bad(text, remedy)


def _bad(text: str, remedy: str) -> BadAgentName:
    shown = text if len(text) <= MAX_QUOTED_CHARACTERS else text[:MAX_QUOTED_CHARACTERS] + "..."
    return BadAgentName(f"{shown!r} after @agent/ is not understood: {remedy}")
