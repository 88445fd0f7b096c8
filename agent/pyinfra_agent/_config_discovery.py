"""Values of the configuration file that say how the agent is found; each `read_` raises ValueError for what is none."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Final

from pyinfra_agent_protocol.advert import Advert, BadAdvert

from ._register import DNS_PORT
from ._settings import DnsZone

__all__ = ["DNS_EXPECTED", "GROUPS_EXPECTED", "read_dns", "read_groups", "read_interfaces", "show_dns"]

GROUPS_EXPECTED: Final = (
    'a list of group names of letters, digits and . _ -, like ["web", "berlin"], together of at most 240 bytes'
)
DNS_EXPECTED: Final = (
    '{zone = "example.com", server = "192.0.2.53", key_file = "/etc/pyinfra-agent/dns.key"}, or {} for no zone'
)

_INTERFACE: Final = re.compile(r"[^\s/:%]{1,15}")  # IFNAMSIZ
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_MAX_ZONE_CHARACTERS: Final = 160  # what stands in front of it in our records needs the rest of 255
_MAX_PORT: Final = 65_535
_SOME_FINGERPRINT: Final = "-".join(["aaaaa"] * 5)


def read_groups(value: object) -> tuple[str, ...]:
    """Return the groups, each once."""
    groups = tuple(dict.fromkeys(_texts(value)))
    try:
        Advert(_SOME_FINGERPRINT, groups).strings()
    except BadAdvert as error:
        raise ValueError(str(error)) from None
    return groups


def read_interfaces(value: object) -> tuple[str, ...]:
    """Return names of interfaces, each once."""
    names = tuple(dict.fromkeys(_texts(value)))
    if not all(_INTERFACE.fullmatch(name) for name in names):
        raise ValueError
    return names


def read_dns(value: object) -> DnsZone | None:
    """Return the zone; None for an empty table."""
    if value == {}:
        return None
    if not isinstance(value, dict) or value.keys() != {"zone", "server", "key_file"}:
        raise ValueError
    zone, server, key_file = (value[key] for key in ("zone", "server", "key_file"))
    if not all(isinstance(text, str) and text.isprintable() for text in (zone, server, key_file)):
        raise ValueError
    zone = zone.lower().removesuffix(".")
    if len(zone) > _MAX_ZONE_CHARACTERS or not all(_LABEL.fullmatch(label) for label in zone.split(".")):
        raise ValueError
    if not os.path.isabs(key_file):
        raise ValueError
    return DnsZone(zone, _server(server), Path(key_file))


def show_dns(zone: DnsZone | None) -> dict[str, str]:
    """Return what `read_dns` makes *zone* of."""
    if zone is None:
        return {}
    return {"zone": zone.zone, "server": zone.server_text, "key_file": str(zone.key_file)}


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError
    return value


def _server(text: str) -> tuple[str, int]:
    """Read HOST, HOST:PORT, an IPv6 address or [IPV6]:PORT."""
    try:
        return str(ipaddress.ip_address(text)), DNS_PORT
    except ValueError:
        pass
    host, colon, port = text.partition(":")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        ipaddress.IPv6Address(host)
        if not bracket:
            raise ValueError
    elif not all(_LABEL.fullmatch(label) for label in host.lower().removesuffix(".").split(".")):
        raise ValueError
    if not colon:
        if port:
            raise ValueError
        return host, DNS_PORT
    if colon != ":" or not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= _MAX_PORT:
        raise ValueError
    return host, int(port)
