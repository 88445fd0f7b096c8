"""Looks for agents where a selector says: on the links, in a network, in a DNS zone, among the user's pins."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import gevent
from pyinfra.api.exceptions import InventoryError

from pyinfra_agent_protocol import DEFAULT_PORT
from pyinfra_agent_protocol.keys import fingerprint

from ._authorities import authorities_of
from ._certified import with_certificates
from ._found import FoundAgent, Selection, named, short_name
from ._identity import agent_home
from ._interfaces import Interface, interfaces, parse_address
from ._known import KnownAgents, Pin, UntrustedAgent
from ._mdns import Browsed, browse
from ._names import AgentName, BadAgentName, NameKind, parse_agent_name
from ._probe import PROBE_SECONDS, Probed, Swept, TooManyAddresses, count_addresses, sweep
from ._seen import Seen, recall, remember
from ._trust import KNOWN_AGENTS_FILE
from ._zone import ZoneError, browse_zone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ._announced import Announced
    from ._interfaces import IpNetwork

__all__ = ["resolve_selector"]


_Progress = Callable[[int, int, int], None]


def resolve_selector(
    selector: str | None,
    *,
    home: str | None = None,
    progress: _Progress = lambda done, total, agents: None,
) -> Selection:
    """Look for the agents that *selector*, the part after `@agent/`, asks for; each call looks anew.

    Args:
        selector: None and "" are the bare `@agent`; one that names a single agent is not looked up.
        home: directory of known_agents, as host data `agent_home`.
        progress: as `_probe.sweep`.

    Raises:
        InventoryError: the selector has no meaning, or the place that it names cannot be searched.
    """
    try:
        name = parse_agent_name(selector)
        place = agent_home(home)
        trusted = _Trusted(place, KnownAgents(place / KNOWN_AGENTS_FILE).pins())
        return _SEARCHES[name.kind](name, trusted, progress)
    except (BadAgentName, UntrustedAgent, ZoneError, TooManyAddresses, ValueError) as error:
        raise InventoryError(str(error)) from None


@dataclass(frozen=True, slots=True)
class _Trusted:
    """Whom the user trusts: the directory in which that stands, and the pins of known_agents."""

    home: Path
    pins: Mapping[str, Pin]


def _search_one(name: AgentName, trusted: _Trusted, progress: _Progress) -> Selection:
    return Selection((FoundAgent(name.host, name.port, ""),), (), "")


def _search_links(name: AgentName, trusted: _Trusted, progress: _Progress) -> Selection:
    browsed = browse()
    candidates = [_candidate(one, one.addresses[0]) for one in browsed.agents if one.addresses]
    return _selection(candidates, browsed.agents, trusted, _asked(browsed), _networks(browsed.interfaces))


def _search_subnet(name: AgentName, trusted: _Trusted, progress: _Progress) -> Selection:
    browsed = browse()
    networks = _networks(browsed.interfaces)
    inside = _inside(browsed.agents, networks)
    return _selection(inside, browsed.agents, trusted, f"{_asked(browsed)}, inside these networks", networks)


def _search_network(name: AgentName, trusted: _Trusted, progress: _Progress) -> Selection:
    network = ipaddress.ip_network(name.host)
    if isinstance(network, ipaddress.IPv6Network):
        browsed = browse()
        searched = f"{_asked(browsed)}; addresses of IPv6 networks are too many to be tried"
        return _selection(_inside(browsed.agents, [network]), browsed.agents, trusted, searched, [network])
    count_addresses(network)  # refuses before anybody is asked
    is_attached = any(own.overlaps(network) for own in _networks(interfaces()) if own.version == 4)
    # Multicast and knocking at once; multicast knows nothing about a network behind a router.
    asking = gevent.spawn(browse, PROBE_SECONDS) if is_attached else None
    swept = sweep(network, DEFAULT_PORT, is_attached=is_attached, progress=progress)
    browsed = asking.get() if asking is not None else Browsed((), (), 0.0)
    searched = f"knocked on port {DEFAULT_PORT} of {swept}" + (f"; {_asked(browsed)}" if is_attached else "")
    candidates = _with_keys(_inside(browsed.agents, [network]), swept)
    return _selection(candidates, browsed.agents, trusted, searched, [network])


def _search_zone(name: AgentName, trusted: _Trusted, progress: _Progress) -> Selection:
    where = f"dns:{name.host}"
    zoned = browse_zone(name.host)
    candidates = [_candidate(one, one.server, where) for one in zoned.agents if _is_host(one.server)]
    searched = f"asked {', '.join(zoned.servers)} for {name.host}"
    return _selection(candidates, zoned.agents, trusted, searched, [where])


def _search_known(name: AgentName, trusted: _Trusted, progress: _Progress) -> Selection:
    agents = []
    for pinned, pin in trusted.pins.items():
        parsed = parse_agent_name(pinned)
        agents.append(FoundAgent(parsed.host, parsed.port, "", None, pin.key, short_name(pinned), True))
    return Selection(tuple(agents), (), f"read {trusted.home / KNOWN_AGENTS_FILE}, which pins {len(agents)}")


_SEARCHES: Final = {
    NameKind.AGENT: _search_one,
    NameKind.LOOPBACK: _search_one,
    NameKind.EVERY: _search_links,
    NameKind.SUBNET: _search_subnet,
    NameKind.NETWORK: _search_network,
    NameKind.ZONE: _search_zone,
    NameKind.KNOWN: _search_known,
}


def _candidate(one: Announced, host: str, found_by: str = "mdns") -> FoundAgent:
    return FoundAgent(host, one.port, found_by, one, seconds=one.seconds)


def _inside(agents: Iterable[Announced], networks: Iterable[IpNetwork]) -> list[FoundAgent]:
    """Return *agents* at the first of their addresses that is in one of *networks*; without those that have none."""
    within = list(networks)
    found = []
    for one in agents:
        for text in one.addresses:
            address = parse_address(text)
            if any(address in network for network in within):
                found.append(_candidate(one, text))
                break
    return found


def _with_keys(announced: list[FoundAgent], swept: Swept) -> list[FoundAgent]:
    """Join what was announced and what answered: the same place is the same agent, and so is the same key."""
    answered = {(probed.address, probed.port): probed for probed in swept.agents}
    found = []
    keys: set[bytes] = set()
    for one in announced:
        probed = answered.get((one.host, one.port))
        if probed is not None and fingerprint(probed.key) == one.fingerprint:
            found.append(_probed(probed, "mdns", one.announced))
            keys.add(probed.key)
        elif probed is None:
            found.append(one)
        # Else somebody announces a key that is not there. What was proved counts, and comes below.
    for probed in swept.agents:
        if probed.key not in keys:  # the lowest address of several
            keys.add(probed.key)
            found.append(_probed(probed))
    return found


def _probed(probed: Probed, found_by: str = "probe", announced: Announced | None = None) -> FoundAgent:
    return FoundAgent(
        probed.address,
        probed.port,
        found_by,
        announced,
        probed.key,
        seconds=probed.seconds,
        certificate=probed.certificate,
    )


def _selection(
    candidates: list[FoundAgent],
    heard: Iterable[Announced],
    trusted: _Trusted,
    searched: str,
    places: Iterable[IpNetwork | str],
) -> Selection:
    useless = tuple(one for one in heard if one.problem)
    usable = [one for one in candidates if one.announced is None or not one.announced.problem]
    certified, refused = with_certificates(usable, authorities_of(trusted.home))
    agents, warnings = named(certified, trusted.pins)
    passed = tuple(f"{one.instance} on {one.heard_on} is passed over: {one.problem}" for one in useless)
    where = {one.name: _place(one, places) for one in agents}
    missing = _missing(agents, {str(place) for place in places})
    remember((one.name, one.host, one.fingerprint, where[one.name]) for one in agents if where[one.name])
    return Selection(agents, (*warnings, *refused, *passed), searched, missing, useless)


def _place(one: FoundAgent, places: Iterable[IpNetwork | str]) -> str:
    address = parse_address(one.host)
    for place in places:
        if isinstance(place, str) or (address is not None and address in place):
            return str(place)
    return ""


def _missing(agents: Iterable[FoundAgent], places: set[str]) -> tuple[Seen, ...]:
    names = {one.name for one in agents}
    fingerprints = {one.fingerprint for one in agents}
    return tuple(
        seen
        for seen in recall()
        if seen.where in places and seen.name not in names and seen.fingerprint not in fingerprints
    )


def _asked(browsed: Browsed) -> str:
    if not browsed.interfaces:
        return "no network interface of this machine has an address"
    return f"asked by multicast DNS for {browsed.seconds:.1f} s on {', '.join(map(str, browsed.interfaces))}"


def _networks(own: Iterable[Interface]) -> list[IpNetwork]:
    return [network for interface in own for network in interface.networks]


def _is_host(text: str) -> bool:
    try:
        return parse_agent_name(text).kind is NameKind.AGENT
    except BadAgentName:
        return False
