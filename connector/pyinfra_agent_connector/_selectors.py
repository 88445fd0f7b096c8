"""From what stands after `@agent` to hosts: looks where it says, once per process, and hands out what was found.

@agent                    announced on the attached links          nothing is typed twice, nothing is trusted
@agent/subnet             the same, inside this machine's own networks
@agent/10.0.0.0/24        announced there, and every address is knocked at
@agent/dns:example.com    listed in a DNS zone
@agent/known              pinned by the user; nobody is asked
@agent/NAME               exactly what was typed; looked up when it is connected to
@agent/loopback           started when it is connected to
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from pyinfra.api.exceptions import InventoryError

from ._found import FoundAgent, Selection, address_name
from ._names import AgentName, BadAgentName, NameKind, parse_agent_name
from ._seen import age_text

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["hosts_for"]

_logger: Final = logging.getLogger("pyinfra")

_MISSING_NAMED: Final = 5  # in one warning
_PROGRESS_ADDRESSES: Final = 1024  # from which on a sweep is worth a line
_MAX_FRAMES: Final = 8


def hosts_for(selector: str | None) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yield name, data and groups of each host that *selector* asks for: what `make_names_data` returns.

    It is looked once in a process for each selector, as pyinfra's command asks twice, but data and groups are new each
    time, as pyinfra changes them. What an inventory has already is not given to it again: pyinfra would leave the first
    of two hosts of one name behind in its groups.

    Raises:
        InventoryError: as `resolve_selector`, or nothing was found.
    """
    shown = f"@agent/{selector}" if selector else "@agent"
    given = _given_to_caller()
    for one in _looked_up(selector, shown).agents:
        host = f"@agent/{one.name}"
        before = given.get(host)
        if before is not None and _differ(before.agent, one):
            _logger.warning(
                f"{shown} found another {host} than {before.selector}: the one at {one.endpoint} is listed as"
                f" @agent/{address_name(one)}"
            )
            host = f"@agent/{address_name(one)}"
            before = given.get(host)
        if before is not None:
            _logger.warning(
                f"{host} is in this inventory by {before.selector} already: what {shown} would add to it, data and"
                " groups, is left out"
            )
            continue
        given[host] = _Given(shown, one)
        yield host, one.host_data(), one.groups()


_selections: Final[dict[AgentName, Selection]] = {}


def _looked_up(selector: str | None, shown: str) -> Selection:
    name = _parsed(selector)
    if name in _selections:
        return _selections[name]
    if name.kind in (NameKind.AGENT, NameKind.LOOPBACK):
        return Selection((_typed(name, selector or ""),), (), "")
    # Here, and not above: who names each agent does not wait until all of discovery is loaded.
    from ._search import resolve_selector

    selection = resolve_selector(selector, progress=_Progress(shown))
    if not selection.agents:
        raise InventoryError(f"{shown} found no agent: {selection.searched}{_advice(name)}{_missing_text(selection)}")
    for warning in selection.warnings:
        _logger.warning(f"{shown}: {warning}")
    if selection.missing:
        _logger.warning(f"{shown}{_missing_text(selection)}")
    _selections[name] = selection
    return selection


def _parsed(selector: str | None) -> AgentName:
    try:
        return parse_agent_name(selector)
    except BadAgentName as error:
        raise InventoryError(str(error)) from None


def _typed(name: AgentName, text: str) -> FoundAgent:
    if name.kind is NameKind.LOOPBACK:
        return FoundAgent("", 0, "", name="loopback")
    return FoundAgent(name.host, name.port, "", name=text, is_port_guessed=not name.has_port)


def _advice(name: AgentName) -> str:
    if name.kind is NameKind.KNOWN:
        return "; connect to an agent by its name first, @agent/HOST"
    if name.kind is NameKind.ZONE:
        return "; does the zone list them under _pyinfra-agent._tcp?"
    return "; is `pyinfra-agent serve` running there? Elsewhere: @agent/HOST, @agent/NETWORK/BITS or @agent/dns:ZONE"


def _missing_text(selection: Selection) -> str:
    if not selection.missing:
        return ""
    shown = [f"{seen.name} ({seen.address}, {age_text(seen)})" for seen in selection.missing[:_MISSING_NAMED]]
    more = len(selection.missing) - len(shown)
    return f"; seen lately and not now: {', '.join(shown)}" + (f" and {more} more" if more else "")


class _Progress:
    """One line on a terminal that is written over, or one line in a log."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._has_begun = False

    def __call__(self, done: int, total: int, agents: int) -> None:
        if total < _PROGRESS_ADDRESSES:
            return
        text = f"{self._shown}: {done:,} of {total:,} addresses tried, {agents} agents"
        if sys.stderr.isatty():
            print(f"\r{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif not self._has_begun:
            print(text, file=sys.stderr, flush=True)
        self._has_begun = True


@dataclass(frozen=True, slots=True)
class _Given:
    selector: str
    agent: FoundAgent


_given: Final[WeakKeyDictionary[Any, dict[str, _Given]]] = WeakKeyDictionary()


def _given_to_caller() -> dict[str, _Given]:
    """Return what the inventory that is being made has got so far, by name of the host.

    pyinfra does not say for which inventory it asks. So the frames of the callers are looked at: one of them is a
    method of the inventory. Without one everything is given, as to anybody who calls `make_names_data` by hand.
    """
    frame = sys._getframe(1)
    for _ in range(_MAX_FRAMES):
        caller = frame.f_locals.get("self")
        if type(caller).__name__ == "Inventory" and type(caller).__module__.startswith("pyinfra."):
            return _given.setdefault(caller, {})
        if frame.f_back is None:
            break
        frame = frame.f_back
    return {}


def _differ(first: FoundAgent, second: FoundAgent) -> bool:
    return bool(first.fingerprint and second.fingerprint) and first.fingerprint != second.fingerprint
