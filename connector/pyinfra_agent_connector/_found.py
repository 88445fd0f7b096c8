"""Agents that were found, and the names that they get as pyinfra's hosts.

A name must be the same at the next run, and must not be anybody's for the asking. In this order:

1. the name under which the agent's key is pinned;
2. the name that an authority of the user's has certified;
3. the name that it announces, unless somebody else's key is pinned under it, or two agents announce it;
4. its address.

A fingerprint that is only announced can be copied. It chooses a name, and the key that goes with the name is demanded
when the host is connected to: whoever copied it is refused then.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from pyinfra_agent_protocol import DEFAULT_PORT
from pyinfra_agent_protocol.keys import fingerprint

from ._interfaces import parse_address
from ._names import BadAgentName, NameKind, parse_agent_name, pin_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._announced import Announced
    from ._authorities import Certified
    from ._known import Pin
    from ._seen import Seen

__all__ = ["FoundAgent", "Selection", "address_name", "named", "short_name"]

_DEFAULT_PORT_SUFFIX: Final = f":{DEFAULT_PORT}"


@dataclass(frozen=True, slots=True)
class FoundAgent:
    """One agent.

    Attributes:
        host: address, or in a DNS zone the name, to connect to; "" where nothing runs yet.
        port: TCP port.
        found_by: `mdns`, `probe`, `dns:ZONE`, or "" where the user named it.
        announced: what it says about itself; None if nothing was heard.
        key: that it proved to a probe; b"" if it was not probed.
        name: what stands after `@agent/`; "" before `named` has chosen it.
        is_pinned: *name* was chosen because this agent's key is pinned under it.
        seconds: until it answered.
        certificate: that it has shown, not verified; b"" for none.
        certified: what an authority of the user's says of *key*; None where none does.
        is_port_guessed: nobody has said *port*, so that the user's own data may still say another one.
    """

    host: str
    port: int
    found_by: str
    announced: Announced | None = None
    key: bytes = b""
    name: str = ""
    is_pinned: bool = False
    seconds: float = 0.0
    certificate: bytes = b""
    certified: Certified | None = None
    is_port_guessed: bool = False

    @property
    def fingerprint(self) -> str:
        """Of its key: the proved one, else the announced one, else ""."""
        if self.key:
            return fingerprint(self.key)
        return self.announced.fingerprint if self.announced is not None else ""

    @property
    def endpoint(self) -> str:
        """Where it listens, for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def host_data(self) -> dict[str, Any]:
        """Return pyinfra's host data, a new dictionary each time."""
        data: dict[str, Any] = {"agent_host": self.host} if self.host else {}
        if self.host and not self.is_port_guessed:  # what is said here beats the data of the host's groups
            data["agent_port"] = self.port
        if self.found_by:
            data["agent_found_by"] = self.found_by
        advert = self.announced.advert if self.announced is not None else None
        if advert is not None:
            said = {"os": advert.os, "arch": advert.arch, "version": advert.software}
            data["agent_announced_fingerprint"] = advert.fingerprint
            data.update({f"agent_{key}": value for key, value in said.items() if value})
        return data

    def groups(self) -> list[str]:
        """Return pyinfra's groups, a new list each time: the certified ones, else those that it announces."""
        if self.certified is not None:
            return list(dict.fromkeys(("agent", *self.certified.groups)))
        advert = self.announced.advert if self.announced is not None else None
        return list(dict.fromkeys(("agent", *(advert.groups if advert is not None else ()))))


@dataclass(frozen=True, slots=True)
class Selection:
    """What a selector found.

    Attributes:
        agents: each once, with its name.
        warnings: for people, a line each.
        searched: where it was looked and how, as the end of a sentence.
        missing: seen there in the last week, and not now.
        passed_over: announced, but of no use; `Announced.problem` says why.
    """

    agents: tuple[FoundAgent, ...]
    warnings: tuple[str, ...]
    searched: str
    missing: tuple[Seen, ...] = ()
    passed_over: tuple[Announced, ...] = ()


def named(candidates: Iterable[FoundAgent], pins: Mapping[str, Pin]) -> tuple[tuple[FoundAgent, ...], tuple[str, ...]]:
    """Return *candidates* with their names, sorted by them, and warnings for people.

    Args:
        candidates: without names; of those at the same place only the first counts.
        pins: what `KnownAgents.pins` returns.
    """
    by_fingerprint: dict[str, list[str]] = {}
    for pinned, pin in pins.items():
        by_fingerprint.setdefault(fingerprint(pin.key), []).append(pinned)
    places = {(one.host, one.port): one for one in reversed(tuple(candidates))}
    warnings: list[str] = []
    agents = [_named_alone(one, pins, by_fingerprint, warnings) for one in places.values()]
    claims = Counter(one.name for one in agents)
    kept: dict[str, FoundAgent] = {}
    for one in sorted(agents, key=_strength):
        is_entitled = one.is_pinned or one.certified is not None
        if claims[one.name] > 1 and not (is_entitled and one.name not in kept):
            renamed = address_name(one)
            if renamed != one.name:
                warnings.append(
                    f"more than one agent goes by the name {one.name}: the one at {one.endpoint}, with key"
                    f" {one.fingerprint or 'unknown'}, is listed as @agent/{renamed}"
                )
            one = replace(one, name=renamed, is_pinned=False)
        kept.setdefault(one.name, one)
    return tuple(sorted(kept.values(), key=lambda one: (parse_address(one.name) is not None, one.name))), tuple(
        warnings
    )


def address_name(one: FoundAgent) -> str:
    """Return the name of an agent by its address alone."""
    return short_name(pin_name(one.host, one.port))


def short_name(pinned: str) -> str:
    """Return a pinned name as a person writes it: without the usual port, where that leaves the meaning as it is."""
    short = pinned.removesuffix(_DEFAULT_PORT_SUFFIX)
    if short.startswith("[") and short.endswith("]"):
        short = short[1:-1]
    try:
        parsed = parse_agent_name(short)
    except BadAgentName:
        return pinned
    is_same = parsed.kind is NameKind.AGENT and pin_name(parsed.host, parsed.port) == pinned
    return short if is_same else pinned


def _named_alone(
    one: FoundAgent, pins: Mapping[str, Pin], by_fingerprint: Mapping[str, list[str]], warnings: list[str]
) -> FoundAgent:
    own = _certified_name(one) or _announced_name(one)
    pinned = by_fingerprint.get(one.fingerprint, [])
    if pinned:
        preferred = [name for name in (own, pin_name(one.host, one.port)) if name in pinned]
        return replace(one, name=short_name((preferred or pinned)[0]), is_pinned=True)
    if own and own not in pins:
        return replace(one, name=short_name(own))
    if own:
        warnings.append(
            f"an agent at {one.endpoint} calls itself {short_name(own)}, but its key {one.fingerprint} is not the one"
            f" pinned for {short_name(own)} ({fingerprint(pins[own].key)}): it is listed as @agent/{address_name(one)}"
        )
    return replace(one, name=address_name(one))


def _certified_name(one: FoundAgent) -> str:
    """Return the first certified name that can be a host's, as a pin has it; "" if there is none."""
    for name in one.certified.names if one.certified is not None else ():
        try:
            return pin_name(name, one.port)
        except BadAgentName:
            continue
    return ""


def _announced_name(one: FoundAgent) -> str:
    """Return the announced name as a pin has it; "" if there is none, or none that can be a host's."""
    instance = one.announced.instance if one.announced is not None else ""
    if not instance or parse_address(instance) is not None:
        return ""  # an address is taken from where it was found, and not from what somebody says
    try:
        return pin_name(instance, DEFAULT_PORT)
    except BadAgentName:
        return ""


def _strength(one: FoundAgent) -> tuple[bool, bool, bool, str, int]:
    """Pinned before certified, proved before claimed, and then by address, so that it is the same each time."""
    return not one.is_pinned, one.certified is None, not one.key, one.host, one.port
