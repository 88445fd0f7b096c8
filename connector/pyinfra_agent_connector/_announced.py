"""Records put together: one agent for each instance that is announced, whatever it is worth.

Records are kept apart by who sent them. Two machines that announce the same instance are two agents here, and which
of them is meant is decided later, by keys: mixed, the address of one would come with the fingerprint of the other.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol.advert import SERVICE, Advert, BadAdvert, parse_advert

from ._dns import Address, Kind, Name, Pointer, Question, Record, Service, Text, label_text, name_text, to_name
from ._interfaces import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ._interfaces import Interface, IpAddress

__all__ = ["Announced", "Responder", "merged", "service_name"]

PROTOCOL_VERSION: Final = 1

MAX_INSTANCES: Final = 256  # of one responder
MAX_ADDRESSES: Final = 16  # of one name


@dataclass(frozen=True, slots=True)
class Announced:
    """An agent as it announces itself. Nothing here is proved.

    Attributes:
        instance: name of the instance, printable.
        server: name of its machine, without the final dot.
        port: TCP port.
        addresses: best first; link-local IPv6 ones with their interface.
        advert: what its TXT record says; None if that is no advert.
        problem: why it cannot be used; "" if it can.
        heard_on: interface or DNS zone.
        seconds: from the question to the first answer.
    """

    instance: str
    server: str
    port: int
    addresses: tuple[str, ...]
    advert: Advert | None
    problem: str
    heard_on: str
    seconds: float

    @property
    def fingerprint(self) -> str:
        """The announced one; "" if none is."""
        return self.advert.fingerprint if self.advert is not None else ""


def service_name(domain: str) -> Name:
    """Return the name to browse for agents in *domain*."""
    return to_name(f"{SERVICE}.{domain}")


@dataclass
class Responder:
    """What one source has said: only PTR records of *service* and what belongs to them is kept.

    Attributes:
        service: name that is browsed.
        heard_on: for people.
        interface: it was heard on; None for a DNS zone, whose agents are reached by name.
        missing: records that its instances lack.
        limit: of instances.
        instances: with the time to live of their PTR record, and when they were first heard.
    """

    service: Name
    heard_on: str
    interface: Interface | None = None
    limit: int = MAX_INSTANCES
    missing: tuple[Question, ...] = ()
    instances: dict[Name, tuple[int, float]] = field(default_factory=dict)
    services: dict[Name, Service] = field(default_factory=dict)
    texts: dict[Name, Text] = field(default_factory=dict)
    addresses: dict[Name, dict[str, None]] = field(default_factory=dict)

    def take(self, records: Sequence[Record], seconds: float, room: int | None = None) -> set[Name]:
        """Keep what belongs to the instances of this source, and to at most *room* more; return those that are new.

        Args:
            records: of one answer.
            seconds: after which it came.
            room: None is as many as `limit`.
        """
        before = set(self.instances)
        # In this order, so that nothing is kept that no instance leads to.
        for record in records:
            if isinstance(record.data, Pointer) and record.name == self.service:
                self._point(record.data.target, record.ttl, seconds, self.limit if room is None else room)
        for record in records:
            if record.ttl and record.name in self.instances:  # a time to live of 0 takes a record back
                if isinstance(record.data, Service):
                    self.services[record.name] = record.data
                elif isinstance(record.data, Text):
                    self.texts[record.name] = record.data
        servers = {service.target for service in self.services.values()}
        for record in records:
            if record.ttl and isinstance(record.data, Address) and record.name in servers:
                known = self.addresses.setdefault(record.name, {})
                if len(known) < MAX_ADDRESSES:
                    known[record.data.text] = None
        self.missing = tuple(self._missing())
        return self.instances.keys() - before

    def _point(self, target: Name, ttl: int, seconds: float, room: int) -> None:
        # An instance is one label in front of the service (RFC 6763 section 4.1).
        if target[1:] != self.service:
            return
        if not ttl:  # a goodbye
            self.instances.pop(target, None)
        elif target not in self.instances and len(self.instances) < self.limit and room > 0:
            self.instances[target] = ttl, seconds

    def _missing(self) -> Iterator[Question]:
        for instance in self.instances:
            if instance not in self.texts:
                yield Question(instance, Kind.TXT)
            if instance not in self.services:
                yield Question(instance, Kind.SRV)
            elif self.interface is not None and (server := self.services[instance].target) not in self.addresses:
                yield Question(server, Kind.A)
                yield Question(server, Kind.AAAA)

    def announced(self) -> Iterator[Announced]:
        """Yield the instances that say where they are."""
        for instance, (_ttl, seconds) in self.instances.items():
            service = self.services.get(instance)
            if service is None:
                continue
            advert, problem = _read(self.texts.get(instance))
            addresses = tuple(self._usable(service.target))
            if not addresses and self.interface is not None:
                problem = problem or "it announces no address that can be used"
            yield Announced(
                label_text(instance[0]),
                name_text(service.target),
                service.port,
                addresses,
                advert,
                problem,
                self.heard_on,
                seconds,
            )

    def _usable(self, server: Name) -> Iterator[str]:
        addresses = [ipaddress.ip_address(text) for text in self.addresses.get(server, ())]
        usable = [address for address in addresses if _is_somebodys(address)]
        for address in sorted(usable, key=self._rank):
            if address.is_link_local and address.version == 6:
                if self.interface is not None:
                    yield f"{address}%{self.interface.name}"
            else:
                yield str(address)

    def _rank(self, address: IpAddress) -> tuple[bool, int, bool, IpAddress]:
        # Attached to the link it was heard on first: others may be a bridge inside that machine, which this one has
        # an equal of.
        is_attached = self.interface is not None and self.interface.is_attached(address)
        return not is_attached, address.version, address.is_link_local, address


def merged(announced: Iterable[Announced]) -> tuple[Announced, ...]:
    """Return each agent once that was heard several times: on two links, by IPv4 and IPv6, through a reflector.

    It is the same agent if it has the same name, machine, port and key.
    """
    found: dict[tuple[str, str, int, str], Announced] = {}
    for one in announced:
        key = one.instance.lower(), one.server.lower(), one.port, one.fingerprint
        before = found.get(key)
        if before is None:
            found[key] = one
            continue
        best, other = sorted((before, one), key=lambda each: (bool(each.problem), _family(each), each.seconds))
        found[key] = replace(
            best,
            addresses=tuple(dict.fromkeys(best.addresses + other.addresses)),
            heard_on=best.heard_on if best.heard_on == other.heard_on else f"{before.heard_on}, {one.heard_on}",
            seconds=min(best.seconds, other.seconds),
        )
    return tuple(sorted(found.values(), key=lambda one: (one.instance, one.server, one.port, one.fingerprint)))


def _family(one: Announced) -> int:
    """IPv4 in front, and never what only another interface's addresses could say."""
    address = parse_address(one.addresses[0]) if one.addresses else None
    return address.version if address is not None else 9


def _is_somebodys(address: IpAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return False
    return not (address.is_loopback or address.is_multicast or address.is_unspecified)


def _read(text: Text | None) -> tuple[Advert | None, str]:
    if text is None:
        return None, "it does not describe itself: there is no TXT record"
    try:
        advert = parse_advert(text.strings)
    except BadAdvert as error:
        return None, str(error)
    if advert.version != PROTOCOL_VERSION:
        return advert, f"it speaks version {advert.version} of the protocol, and this controller {PROTOCOL_VERSION}"
    return advert, ""
