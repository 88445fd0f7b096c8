"""`pyinfra-agent trust`: which agents this user knows, and whose certificates this user believes."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import fingerprint, parse_public
from pyinfra_agent_protocol.trust_lines import parse_authority_line

from ._authorities import Authorities
from ._command_line import CommandFailed, Parser, add_home, line_of, reporting, say
from ._identity import agent_home
from ._known import KnownAgents, PinResult
from ._names import parse_agent_name, parse_pin_name
from ._trust import KNOWN_AGENTS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyinfra_agent_protocol.certificates import Authority

__all__ = ["trust"]

_FETCH_SECONDS: Final = 10.0

_EPILOG: Final = """\
  pyinfra-agent trust list
  pyinfra-agent trust add web1 'pyinfra-agent-key BASE64 comment'
  pyinfra-agent trust add web1:7963          asks the agent, and then whether its key is right
  pyinfra-agent trust add --authority '[names="*.example.com"] pyinfra-agent-authority BASE64'
  pyinfra-agent trust remove web1            or a fingerprint, of a key or of an authority

The files are known_agents and authorities in this controller's directory; an editor will do, too.
"""


def trust(argv: Sequence[str]) -> int:
    """List, add and remove pinned agents and authorities; returns the exit status."""
    parser = Parser(
        prog="pyinfra-agent trust",
        description="Which agents this user knows, and whose certificates this user believes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="list | add | remove", required=True)
    add_home(verbs.add_parser("list", help="print names, fingerprints and comments"))
    add = verbs.add_parser("add", help="pin an agent's key, or believe an authority")
    add_home(add)
    add.add_argument("--yes", action="store_true", help="do not ask whether the key that an agent shows is right")
    add.add_argument("--authority", action="store_true", help="the line is that of an authority")
    add.add_argument("words", metavar="NAME[:PORT] ['KEY LINE']", nargs="+", help="of the agent")
    remove = verbs.add_parser("remove", help="forget an agent, a key or an authority")
    add_home(remove)
    remove.add_argument("what", metavar="NAME|FINGERPRINT")
    arguments = parser.parse_args(argv)
    home = agent_home(arguments.home)
    known, authorities = KnownAgents(home / KNOWN_AGENTS_FILE), Authorities(home)
    if arguments.verb == "list":
        return reporting(partial(_list, known, authorities))
    if arguments.verb == "remove":
        return reporting(partial(_remove, known, authorities, arguments.what))
    if arguments.authority:
        return reporting(partial(_add_authority, authorities, arguments.words))
    name, *words = arguments.words
    return reporting(partial(_add, known, authorities, name, words, is_sure=arguments.yes))


def _list(known: KnownAgents, authorities: Authorities) -> None:
    following = known.next_pins()
    rows = []
    for name, pin in known.pins().items():
        rows.append((name, fingerprint(pin.key), pin.comment))
        if name in following:
            rows.append((name, fingerprint(following[name].key), "(announced for after its rotation)"))
    rows += [("authority", one.fingerprint, _described(one)) for one in authorities.all().values()]
    _print_table(rows)
    for problem in (*known.problems(), *authorities.problems()):
        say(f"pyinfra-agent: {problem}")


def _described(authority: Authority) -> str:
    limits = [f"{word}={','.join(values)}" for word, values in _limits(authority) if values is not None]
    return " ".join((*limits, authority.comment))


def _limits(authority: Authority) -> Iterable[tuple[str, tuple[str, ...] | None]]:
    return ("names", authority.names), ("groups", authority.groups)


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _add(known: KnownAgents, authorities: Authorities, name: str, words: Sequence[str], *, is_sure: bool) -> None:
    pinned = parse_pin_name(name.removeprefix("@agent/"))
    comment = ""
    if words:
        public = parse_public(line_of(words))
        key, comment = public.key, public.comment
    else:
        key = _fetched(pinned, authorities, is_sure=is_sure)
    authorities.require_not_revoked(pinned, key)
    result = known.pin(pinned, key, comment)
    was = "was already pinned" if result is PinResult.KNOWN else "is pinned"
    print(f"{known.path}: {pinned} {was} with {fingerprint(key)}")


def _fetched(pinned: str, authorities: Authorities, *, is_sure: bool) -> bytes:
    from ._fetch import fetch

    name = parse_agent_name(pinned)
    key, certificate = fetch(name.host, name.port, _FETCH_SECONDS)
    if is_sure:
        return key
    say(f"{pinned} shows the key {fingerprint(key)}{_certified_text(authorities, key, certificate, name.host)}")
    if not sys.stdin.isatty():
        raise CommandFailed(
            "there is no terminal to ask whether that is right: compare it with what `pyinfra-agent key` shows there,"
            " and give --yes"
        )
    print("Does `pyinfra-agent key` on that machine show the same? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandFailed(f"{pinned} was not pinned")
    return key


def _certified_text(authorities: Authorities, key: bytes, certificate: bytes, host: str) -> str:
    from pyinfra_agent_protocol.certificates import CertificateRefused

    try:
        certified = authorities.certified(key, certificate, [host])
    except CertificateRefused as error:
        return f"; careful: {error}"
    return ", and an authority of yours says that it is right" if certified is not None else ""


def _add_authority(authorities: Authorities, words: Sequence[str]) -> None:
    authority = parse_authority_line(line_of(words))
    is_new = authorities.add(authority)
    was = "is believed from now on" if is_new else "was already believed"
    limits = " ".join(f"{word}={','.join(values)}" for word, values in _limits(authority) if values is not None)
    print(f"{authorities.path}: {authority.fingerprint} {was}, for {limits or 'every name and group'}")


def _remove(known: KnownAgents, authorities: Authorities, what: str) -> None:
    removed = known.remove(what.removeprefix("@agent/"))
    for name in removed:
        print(f"{known.path}: {name} is not pinned any more")
    gone = authorities.remove(what)
    for authority in gone:
        print(f"{authorities.path}: {authority.fingerprint} is not believed any more")
    if not removed and not gone:
        try:
            shown = parse_pin_name(what.removeprefix("@agent/"))
        except (KeyFormatError, ValueError):
            shown = what
        raise CommandFailed(f"{shown} is not in {known.path}: pyinfra-agent trust list shows what is")
