"""Looks for agents and asks each one for its key: who is there, who should be and is not, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from gevent.pool import Pool

from pyinfra_agent_protocol import DEFAULT_PORT
from pyinfra_agent_protocol.keys import fingerprint

from ._authorities import authorities_of
from ._certified import certified_as
from ._errors import one_line
from ._found import address_name
from ._identity import agent_home
from ._interfaces import parse_address
from ._known import KnownAgents
from ._mdns import find_on_link
from ._names import BadAgentName, NameKind, parse_agent_name, parse_pin_name
from ._probe import Outcome, Probed, probe
from ._search import resolve_selector
from ._seen import age_text
from ._trust import KNOWN_AGENTS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._announced import Announced
    from ._authorities import Authorities
    from ._found import FoundAgent, Selection
    from ._known import Pin
    from ._seen import Seen

__all__ = ["CERTIFIED", "CHANGED", "NEW", "PINNED", "Absent", "Present", "Survey", "is_loopback", "survey", "why_not"]

PINNED: Final = "pinned"
CERTIFIED: Final = "certified"
CHANGED: Final = "changed"
NEW: Final = "new"

_AT_ONCE: Final = 64
_REASONS: Final = {
    Outcome.REFUSED: "port closed: the machine is up, and no agent listens there",
    Outcome.SILENT: "no answer: the machine is down, or a firewall drops what is sent to it",
}


@dataclass(frozen=True, slots=True)
class Present:
    """An agent that was found; all texts are printable.

    Attributes:
        name: what stands after `@agent/`.
        address: it was found at; in a DNS zone a name.
        port: TCP port.
        groups: the certified ones, else those that it says it belongs to.
        os: in its own words; "" if it does not say, as with the next two.
        arch: of its processor.
        version: of its software.
        key: `pinned`, `changed` (another one is pinned for this name), `certified` (by an authority of the user's) or
            `new`; "" if it did not prove one.
        fingerprint: of the key that it proved, else of the one that it announces.
        round_trip_seconds: to it and back; 0.0 if it did not answer.
        found_by: `mdns`, `probe` or `dns:ZONE`; "" where its name was given.
        problem: why it cannot be used; "" if it can.
    """

    name: str
    address: str
    port: int
    groups: tuple[str, ...]
    os: str
    arch: str
    version: str
    key: str
    fingerprint: str
    round_trip_seconds: float
    found_by: str
    problem: str

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Absent:
    """An agent that should be there.

    Attributes:
        name: what stands after `@agent/`, or what it announces.
        address: where it was, or says it is; "" if that is not known.
        seen: how long ago it was found; "now" if it announces itself and cannot be used.
        reason: why it is not among the others.
    """

    name: str
    address: str
    seen: str
    reason: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look found.

    Attributes:
        agents: that are there.
        absent: that should be.
        warnings: for people, a line each.
        searched: where it was looked and how, as the end of a sentence.
    """

    agents: tuple[Present, ...]
    absent: tuple[Absent, ...]
    warnings: tuple[str, ...]
    searched: str

    @property
    def is_well(self) -> bool:
        """Everybody who should be there is, with the key that is known."""
        return not self.absent and not any(one.problem or one.key == CHANGED for one in self.agents)

    def as_json(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        return {
            "agents": [asdict(one) for one in self.agents],
            "absent": [asdict(one) for one in self.absent],
            "warnings": list(self.warnings),
            "searched": self.searched,
        }


def survey(
    selector: str | None,
    *,
    home: str | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, agents: None,
) -> Survey:
    """Look for the agents that *selector* asks for, and knock at each; pins nothing, and shows nobody our key.

    Args:
        selector: as `resolve_selector`.
        home: directory of known_agents, as host data `agent_home`.
        progress: as `_probe.sweep`.

    Raises:
        InventoryError: the selector has no meaning, or the place that it names cannot be searched.
        UntrustedAgent: known_agents cannot be read.
        ValueError: as `browse_seconds`.
    """
    selection = resolve_selector(selector, home=home, progress=progress)
    place = agent_home(home)
    pins = KnownAgents(place / KNOWN_AGENTS_FILE).pins()
    authorities = authorities_of(place)
    pool = Pool(_AT_ONCE)
    agents = pool.map(lambda one: _present(one, pins, authorities), selection.agents)
    absent = pool.map(_absent, selection.missing)
    useless = [_passed_over(one) for one in selection.passed_over]
    searched = selection.searched or _asked_for(selection)
    # Those who are passed over have a line of their own below.
    warnings = tuple(one_line(text) for text in selection.warnings if " is passed over: " not in text)
    return Survey(tuple(agents), (*absent, *useless), warnings, searched)


def why_not(address: str, port: int = DEFAULT_PORT) -> str:
    """Return why an agent that was at *address* is not found; "" if it answers there."""
    found = probe(address, port)
    return "" if found.outcome is Outcome.AGENT else _reason(found)


def _named_by_user(one: FoundAgent) -> FoundAgent:
    """Return where an agent is that was not looked for: by its address, the link's word for it, or the system's."""
    if one.found_by:
        return one
    name = one.name or (f"{one.host}:{one.port}" if one.port != DEFAULT_PORT else one.host)
    if parse_address(one.host) is None:
        for announced in find_on_link(one.host):
            if announced.addresses and not announced.problem:
                return replace(
                    one,
                    name=name,
                    host=announced.addresses[0],
                    port=announced.port,
                    found_by="mdns",
                    announced=announced,
                )
    return replace(one, name=name)


def _present(found: FoundAgent, pins: Mapping[str, Pin], authorities: Authorities) -> Present:
    one = _named_by_user(found)
    version = one.announced.advert.software if one.announced is not None and one.announced.advert is not None else ""
    # Whom the user has named, nobody has asked yet; the key is the one that is pinned.
    key, seconds, problem, refusal = one.key if found.found_by else b"", one.seconds, "", ""
    if not key:
        probed = probe(one.host, one.port)
        key, seconds, problem = probed.key, probed.seconds, _reason(probed)
        version = probed.version or version
        if key and not found.found_by:
            # Others were asked when they were found. This one was named, and connecting will ask for that name.
            one = replace(one, key=key, certificate=probed.certificate)
            certified, refusal = certified_as(found.host, one, authorities)
            one = replace(one, certified=certified)
    announced = one.announced.fingerprint if one.announced is not None else ""
    if key and announced and fingerprint(key) != announced:
        problem = (
            f"it announces the key {announced} and has another: somebody copied an announcement, or answers for it"
        )
    status = _status(one, key, pins) if key else ""
    if status == NEW:
        problem = problem or refusal
    if status == CHANGED:
        problem = (
            problem or f"another key is pinned for {_claimed(one)}: was it installed anew, or is it somebody else?"
        )
    data = one.host_data()
    return Present(
        name=one_line(one.name),
        address=one_line(one.host),
        port=one.port,
        groups=tuple(group for group in one.groups() if group != "agent"),
        os=data.get("agent_os", ""),
        arch=data.get("agent_arch", ""),
        version=one_line(version),
        key=status,
        fingerprint=fingerprint(key) if key else announced,
        round_trip_seconds=seconds / 2 if key else 0.0,  # a handshake up to the key is one for TCP, and one more
        found_by=one.found_by,
        problem=problem,
    )


def _claimed(one: FoundAgent) -> str:
    is_by_address = one.name == address_name(one) and one.announced is not None
    return one_line(one.announced.instance if is_by_address and one.announced is not None else one.name)


def _status(one: FoundAgent, key: bytes, pins: Mapping[str, Pin]) -> str:
    # The second name is a claim that was not believed: whoever has that name should know that somebody else does.
    for name in (one.name, one.announced.instance if one.announced is not None else ""):
        try:
            pin = pins.get(parse_pin_name(name))
        except BadAgentName:
            continue
        if pin is not None:
            return PINNED if pin.key == key else CHANGED
    return CERTIFIED if one.certified is not None else NEW


def _absent(seen: Seen) -> Absent:
    reason = why_not(seen.address) or (
        "an agent answers there, but it is not announced as before: was it renamed, or does multicast not reach it?"
    )
    return Absent(seen.name, seen.address, age_text(seen), reason)


def _passed_over(one: Announced) -> Absent:
    return Absent(one_line(one.instance), one.addresses[0] if one.addresses else "", "now", one_line(one.problem))


def _reason(found: Probed) -> str:
    if found.outcome is Outcome.AGENT:
        return ""
    return _REASONS.get(found.outcome) or one_line(f"{found.outcome.value}: {found.problem}")


def _asked_for(selection: Selection) -> str:
    return "asked for one agent by its name" if selection.agents else "nothing was asked for"


def is_loopback(selector: str | None) -> bool:
    """Return whether *selector* names an agent that is only started when a run connects to it."""
    try:
        return parse_agent_name(selector).kind is NameKind.LOOPBACK
    except BadAgentName:
        return False
