"""`pyinfra-agent ca`: a fleet key, which lets ten thousand machines know each other by one line on each."""

from __future__ import annotations

import argparse
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import DEFAULT_PORT
from pyinfra_agent_protocol.certificates import format_authority, format_certificate
from pyinfra_agent_protocol.keys import fingerprint, format_public, parse_public
from pyinfra_agent_protocol.trust_lines import split_values

from ._command_line import CommandFailed, Parser, line_of, reporting, say
from ._fleet import Fleet, FleetError
from ._identity import CERTIFICATE_FILE, agent_home, own_comment
from ._names import pin_name
from ._passphrase import ask_new_passphrase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ca"]

AGENT_DAYS: Final = 365
CONTROLLER_DAYS: Final = 30
_HOUR_SECONDS: Final = 3600
_DAY_SECONDS: Final = 24 * _HOUR_SECONDS
_MAX_SECONDS: Final = 100 * 365 * _DAY_SECONDS

_AGENT_STATE: Final = "/var/lib/pyinfra-agent"
_SERIAL: Final = re.compile(r"[0-9a-f]{16}")

_EPILOG: Final = """\
  pyinfra-agent ca init --passphrase
  pyinfra-agent ca sign --agent web1 --agent web1.example.com --group web 'KEY LINE'
  pyinfra-agent ca sign --controller ci --hours 4 'KEY LINE'
  pyinfra-agent ca list
  pyinfra-agent ca revoke SERIAL

Certificates are printed on standard output, and what to do with them on standard error. The
passphrase of a fleet key comes from where that of a controller's key does, see
`pyinfra-agent identity --help`.
"""


def ca(argv: Sequence[str]) -> int:
    """Make a fleet key, sign, list and revoke; returns the exit status."""
    parser = Parser(
        prog="pyinfra-agent ca",
        description="A fleet key: one line on each machine, and its certificates let agents and controllers in.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="init | sign | revoke | list", required=True)
    init = verbs.add_parser("init", help="make a fleet key")
    init.add_argument("--passphrase", action="store_true", help="ask for a passphrase to keep it under")
    init.add_argument("--comment", metavar="TEXT", default=f"fleet of {own_comment()}", help="of its public line")
    sign = verbs.add_parser("sign", help="sign the key of an agent or a controller")
    whose = sign.add_mutually_exclusive_group(required=True)
    whose.add_argument("--agent", metavar="NAME", action="append", help="a name it is reached by, repeatable")
    whose.add_argument("--controller", metavar="NAME", action="append", help="its name for logs, repeatable")
    sign.add_argument("--group", metavar="GROUP", action="append", default=[], help="a group it is in, repeatable")
    time_ = sign.add_mutually_exclusive_group()
    time_.add_argument(
        "--days",
        type=_count,
        metavar="N",
        help=f"it is good for (default: {AGENT_DAYS} for an agent, {CONTROLLER_DAYS} for a controller)",
    )
    time_.add_argument("--hours", type=_count, metavar="N", help="it is good for, as in CI")
    sign.add_argument("words", metavar="'KEY LINE'|FILE|-", nargs="+", help="the key to sign")
    revoke = verbs.add_parser("revoke", help="take back a certificate, or a key with all it ever had")
    revoke.add_argument("words", metavar="SERIAL|FINGERPRINT|'KEY LINE'", nargs="+", help="what to take back")
    listing = verbs.add_parser("list", help="print what was signed")
    for verb in (init, sign, revoke, listing):
        verb.add_argument(
            "--dir", metavar="DIR", type=Path, help="of the fleet key (default: ca in this controller's directory)"
        )
    arguments = parser.parse_args(argv)
    fleet = Fleet(arguments.dir or agent_home() / "ca")
    run: Callable[[Fleet, argparse.Namespace], None] = _VERBS[arguments.verb]

    def reported() -> None:
        try:
            run(fleet, arguments)
        except FleetError as error:
            raise CommandFailed(str(error)) from None

    return reporting(reported)


def _init(fleet: Fleet, arguments: argparse.Namespace) -> None:
    passphrase = ask_new_passphrase(f"the fleet key {fleet.key_path}") if arguments.passphrase else None
    authority = fleet.create(arguments.comment, passphrase)
    line = shlex.quote(format_authority(authority.public, authority.comment))
    say(f"The fleet key {authority.fingerprint} is in {fleet.key_path}: whoever has it has the fleet.")
    say("On each agent, to let in controllers that it certifies (--help shows how to limit them):")
    print(f"pyinfra-agent authorize --authority {line}")
    say("On each controller, to trust agents that it certifies, and no others with host data agent_trust=ca:")
    print(f"pyinfra-agent trust add --authority {line}")


def _sign(fleet: Fleet, arguments: argparse.Namespace) -> None:
    public = parse_public(line_of(arguments.words))
    is_agent = arguments.agent is not None
    names = (
        tuple(map(_agent_name, arguments.agent))
        if is_agent
        else split_values("--controller", ",".join(arguments.controller))
    )
    groups = split_values("--group", ",".join(arguments.group)) if arguments.group else ()
    if arguments.hours:
        seconds = arguments.hours * _HOUR_SECONDS
    else:
        seconds = (arguments.days or (AGENT_DAYS if is_agent else CONTROLLER_DAYS)) * _DAY_SECONDS
    if seconds > _MAX_SECONDS:
        raise CommandFailed("a certificate is good for a hundred years at most")
    data, certificate = fleet.sign(public.key, "agent" if is_agent else "controller", names, groups, seconds)
    until = _date(certificate.not_after)
    say(f"{certificate.role} {', '.join(names)}, key {fingerprint(public.key)}, serial {certificate.serial_text},")
    say(f"until {until}. Write this line into the file")
    if is_agent:
        say(f"{_AGENT_STATE}/{CERTIFICATE_FILE} of that machine, which takes effect at once:")
    else:
        say(f"{CERTIFICATE_FILE} in the directory of that controller's key, such as {agent_home() / CERTIFICATE_FILE},")
        say("or, in CI, into $PYINFRA_AGENT_CERTIFICATE:")
    print(format_certificate(data, f"{names[0]} {certificate.serial_text} until {until}"))


def _revoke(fleet: Fleet, arguments: argparse.Namespace) -> None:
    fleet.authority()  # before a list is made where no fleet key is
    text = " ".join(arguments.words).strip()
    signed = fleet.ledger()
    if _SERIAL.fullmatch(text.lower()):
        text = text.lower()
        of = [one for one in signed if one.serial == text]
        if not of:
            say(f"{text} is not in {fleet.ledger_path}: it is revoked all the same")
        line = " ".join((text, *(", ".join(one.names) for one in of)))
    else:
        by_fingerprint = {fingerprint(one.key): one for one in signed}
        if text in by_fingerprint:
            one = by_fingerprint[text]
            line = format_public(one.key, ", ".join(one.names)[:200])
        elif text.startswith("pyinfra-agent-"):
            public = parse_public(text)
            line = format_public(public.key, public.comment)
        else:
            raise CommandFailed(
                f"{text[:80]!r} is neither a serial of 16 hexadecimal digits, nor a key line, nor the fingerprint of a"
                " key that was signed here: pyinfra-agent ca list shows what was"
            )
    is_new = fleet.revoke(line)
    say(f"{'Revoked' if is_new else 'It was revoked already'}: {line}")
    say(f"It counts where {fleet.revoked_path} is. Bring it to every agent,")
    target = f"src={shlex.quote(str(fleet.revoked_path))} dest={_AGENT_STATE}/revoked mode=600"
    print(f"pyinfra @agent/known files.put {target}")
    say("and to the directory of every controller's key:")
    print(f"cp {shlex.quote(str(fleet.revoked_path))} {shlex.quote(str(agent_home() / 'revoked'))}")


def _list(fleet: Fleet, arguments: argparse.Namespace) -> None:
    authority = fleet.authority()
    revoked = fleet.revocations()
    now = time.time()
    print(f"authority {authority.fingerprint} {authority.comment}".rstrip())
    for one in fleet.ledger():
        names = ",".join(one.names) + (f" groups={','.join(one.groups)}" if one.groups else "")
        validity = f"{_date(one.not_before)} to {_date(one.not_after)}"
        print(f"{one.serial}  {one.role:10}  {fingerprint(one.key)}  {validity}  {one.state(revoked, now):7}  {names}")


_VERBS: Final = {"init": _init, "sign": _sign, "revoke": _revoke, "list": _list}


def _agent_name(text: str) -> str:
    """Return a host name or address as it is asked for."""
    name = pin_name(text, DEFAULT_PORT).removesuffix(f":{DEFAULT_PORT}")
    return name[1:-1] if name.startswith("[") else name


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(seconds))
