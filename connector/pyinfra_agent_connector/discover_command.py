"""`pyinfra-agent discover`: who is there, and why somebody is not.

Exit status: 0 everybody who should be there is, with the key that is known; 1 nobody was found, or it could not be
looked; 2 a mistake in the arguments; 3 agents were found, but one that should be there is not, or not with its key.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from .commands import _Parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from ._survey import Present, Survey

__all__ = ["discover"]

NOBODY_STATUS: Final = 1
USAGE_STATUS: Final = 2
AMISS_STATUS: Final = 3

#: Between two looks of --watch where nobody arrives or leaves: a machine that lost its power says no goodbye.
LOOK_SECONDS: Final = 5.0
_LOOK_ELSEWHERE_SECONDS: Final = 60.0
_LEAST_SECONDS: Final = 1.0
_PREFIX: Final = "@agent"
_MAX_WIDTH: Final = 40
_HEADINGS: Final = ("NAME", "ADDRESS", "GROUPS", "OS", "VERSION", "KEY", "ROUND TRIP")


def discover(argv: Sequence[str]) -> int:
    """Print the agents that a selector finds, as a table or as JSON, once or as they come and go."""
    parser = _Parser(
        prog="pyinfra-agent discover",
        description="Look for agents, ask each for its key, and say why one that should be there is not."
        " Nothing is pinned, and nobody is shown this controller's key.",
        epilog="exit status: 0 all is well, 1 nobody was found, 2 a mistake in the arguments, 3 one that should be"
        " there is not, or has another key",
    )
    parser.add_argument(
        "selector",
        metavar="SELECTOR",
        nargs="?",
        default="",
        help="where to look, as in an inventory: subnet, 10.0.0.0/24, known, dns:example.com or a name,"
        " with or without @agent/ in front (default: the attached links)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one object a line for each event")
    parser.add_argument("--watch", action="store_true", help="go on, and print who arrives and who leaves")
    parser.add_argument("--home", metavar="DIR", help="directory of known_agents (default: as host data agent_home)")
    arguments = parser.parse_args(argv)
    arguments.selector = _selector(arguments.selector)
    return _run(parser, arguments)


def _selector(text: str) -> str:
    if text == _PREFIX:
        return ""
    return text.removeprefix(f"{_PREFIX}/")


def _run(parser: _Parser, arguments: argparse.Namespace) -> int:
    # Here, and not above: --help does not wait for pyinfra.
    from pyinfra.api.exceptions import InventoryError

    from ._identity import IdentityError
    from ._known import UntrustedAgent
    from ._names import BadAgentName, parse_agent_name
    from ._survey import is_loopback

    try:
        parse_agent_name(arguments.selector)
    except BadAgentName as error:
        parser.error(str(error))
    if is_loopback(arguments.selector):
        parser.error("@agent/loopback is started when a run connects to it: there is nothing to look for")
    try:
        return _watch(arguments) if arguments.watch else _once(arguments)
    except (InventoryError, UntrustedAgent, IdentityError, ValueError) as error:
        print(f"pyinfra-agent: {error}", file=sys.stderr)
        return NOBODY_STATUS


def _once(arguments: argparse.Namespace) -> int:
    from ._survey import survey

    found = survey(arguments.selector, home=arguments.home, progress=_progress)
    if arguments.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _print(found)
    if not any(not one.problem for one in found.agents):
        if not arguments.json:
            print(f"pyinfra-agent: no agent was found: {found.searched}", file=sys.stderr)
        return NOBODY_STATUS
    return 0 if found.is_well else AMISS_STATUS


def _progress(done: int, total: int, agents: int) -> None:
    if sys.stderr.isatty():
        text = f"\r{done:,} of {total:,} addresses tried, {agents} agents"
        print(text, end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print(found: Survey) -> None:
    if found.agents:
        for line in _table([_HEADINGS, *map(_row, found.agents)]):
            print(line)
    troubled = [(one.name, one.endpoint, one.problem) for one in found.agents if one.problem]
    absent = [
        (one.name, one.address, one.reason if one.seen == "now" else f"seen {one.seen}; {one.reason}")
        for one in found.absent
    ]
    for heading, rows in (("There, but not to be used:", troubled), ("Should be there, and is not:", absent)):
        if rows:
            print(f"\n{heading}")
            for line in _table(rows):
                print(f"  {line}")
    for warning in found.warnings:
        print(f"pyinfra-agent: {warning}", file=sys.stderr)


def _row(one: Present) -> tuple[str, ...]:
    return (
        one.name,
        one.endpoint,
        ",".join(one.groups) or "-",
        one.os or "-",
        one.version or "-",
        one.key or "?",
        f"{one.round_trip_seconds * 1000:.1f} ms" if one.round_trip_seconds else "-",
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield *rows* with their columns aligned; only one column of a row may be longer than 40 characters, its last."""
    last = len(rows[0]) - 1
    cut = [[text if at == last else _cut(text) for at, text in enumerate(row)] for row in rows]
    widths = [max(len(row[at]) for row in cut) for at in range(last)]
    for row in cut:
        yield "  ".join((*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[last])).rstrip()


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_WIDTH else f"{text[: _MAX_WIDTH - 3]}..."


# --- --watch ---


def _watch(arguments: argparse.Namespace) -> int:
    from ._arrivals import Arrivals
    from ._names import NameKind, parse_agent_name
    from ._survey import survey

    is_on_links = parse_agent_name(arguments.selector).kind in (NameKind.EVERY, NameKind.SUBNET)
    seconds = LOOK_SECONDS if is_on_links else _LOOK_ELSEWHERE_SECONDS
    tell = _Teller(is_json=arguments.json)
    before: dict[str, Present] = {}
    with Arrivals() as arrivals:
        while True:
            began = time.monotonic()
            found = survey(arguments.selector, home=arguments.home)
            before = tell.changes(before, found.agents, arrivals.goodbyes)
            time.sleep(max(0.0, began + _LEAST_SECONDS - time.monotonic()))
            arrivals.wait(seconds)


class _Teller:
    """Prints what has changed from one look to the next, a line for each agent."""

    def __init__(self, *, is_json: bool) -> None:
        self._is_json = is_json

    def changes(
        self, before: dict[str, Present], now: Iterable[Present], goodbyes: Iterable[str]
    ) -> dict[str, Present]:
        """Print the changes; return those who are there, by name."""
        from ._survey import why_not

        after = {one.name: one for one in now}
        said = {name.lower() for name in goodbyes}
        for name, one in before.items():
            if name in after:
                continue
            reason = "said goodbye" if name.lower() in said else why_not(one.address, one.port)
            if reason:
                self._tell("left", one, reason)
            else:
                after[name] = one  # it answers: what was lost is a packet
        for name, one in after.items():
            old = before.get(name)
            if old is None:
                self._tell("arrived", one, one.problem)
            elif (old.address, old.port, old.fingerprint, old.problem) != (
                *(one.address, one.port),
                *(one.fingerprint, one.problem),
            ):
                self._tell("changed", one, one.problem)
        return after

    def _tell(self, event: str, one: Present, reason: str) -> None:
        at = time.strftime("%H:%M:%S")
        if self._is_json:
            line = json.dumps({"event": event, "at": int(time.time()), "reason": reason, "agent": asdict(one)})
        else:
            row = [text for text in _row(one) if text != "-"] if event != "left" else [one.name, one.endpoint]
            line = f"{at}  {event:<7}  {'  '.join(row)}" + (f"  ({reason})" if reason else "")
        print(line, flush=True)
