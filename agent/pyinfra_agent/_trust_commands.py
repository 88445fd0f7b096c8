"""`pyinfra-agent authorize`, `revoke` and `controllers`: who may speak to the agent of this machine."""

from __future__ import annotations

import os
import pwd
import re
import sys
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import parse_public
from pyinfra_agent_protocol.trust_lines import split_options

from ._controllers import Entry, parse_line
from ._editing import TrustFiles
from ._keys import StateError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from ._policy import Policy

__all__ = ["add_authorize_options", "authorize", "list_controllers", "revoke"]

_FLAGS: Final = {
    "no-exec": "no commands",
    "no-put": "no file is written",
    "no-get": "no file is read or looked at",
    "no-pty": "no command gets a terminal",
}
_SERIAL: Final = re.compile(r"[0-9a-f]{16}")
_KEY_PREFIX: Final = "pyinfra-agent-key"


def add_authorize_options(parser: argparse.ArgumentParser) -> None:
    """Give *parser* what `authorize` takes beside the state directory."""
    parser.add_argument("line", metavar="'KEY LINE'", nargs="+", help="[OPTIONS] pyinfra-agent-key BASE64 [comment]")
    parser.add_argument(
        "--authority",
        action="store_true",
        help="the line is an authority's, and every controller that it has certified is let in:"
        " pyinfra-agent-authority BASE64 [comment]",
    )
    parser.add_argument("--names", metavar="PATTERN,...", help="with --authority: only certificates with such a name")
    parser.add_argument("--groups", metavar="GROUP,...", help="with --authority: only certificates of such a group")
    parser.add_argument("--from", dest="source", metavar="CIDR,...", help="only from these networks or addresses")
    parser.add_argument("--user", metavar="NAME", help="commands run, and files are read and written, as this user")
    parser.add_argument("--expires", metavar="DATE", help="let in until then (UTC): 2027-01-31 or 2027-01-31T12:00")
    for flag, what in _FLAGS.items():
        parser.add_argument(f"--{flag}", action="store_true", help=what)


def authorize(arguments: argparse.Namespace, state_dir: Path) -> int:
    """Let a controller or the controllers of an authority in; returns the exit status."""
    # Unquoted, a key line is several words: what was meant is plain.
    line = " ".join(arguments.line).strip()
    options = _options(arguments)
    if options:
        if split_options(line)[0]:
            raise KeyFormatError("give options in front of the key or as --options, not both")
        line = f"{options} {line}"
    entry = parse_line(line)
    if entry.policy.user is not None:
        _require_account(entry.policy.user)
    files = TrustFiles(state_dir)
    entry = files.authorize(line, widens=bool(split_options(line)[0]))
    print(f"{files.controllers}: {_subject(entry)} {_gives(entry.policy)}")
    return 0


def revoke(wanted: str, state_dir: Path) -> int:
    """Let nobody in any more whom *wanted* names; returns the exit status.

    Args:
        wanted: a key line, a fingerprint, the comment of a line, or the serial of a certificate.
        state_dir: the agent's.
    """
    files = TrustFiles(state_dir)
    wanted = wanted.strip()
    if not wanted:
        raise KeyFormatError("whom? Name a key, a fingerprint, a comment or a serial")
    if _SERIAL.fullmatch(wanted):
        files.revoke_serial(int(wanted, 16))
        print(f"{files.revoked}: the certificate {wanted} is not accepted any more")
        return 0
    key = parse_public(wanted).key if wanted.startswith(_KEY_PREFIX) else None
    found = [entry for _, entry in files.read().entries if _matches(entry, wanted, key)]
    if not found and key is None:
        raise StateError(f"{files.controllers}: no line has this fingerprint or comment: see pyinfra-agent controllers")
    if len(found) > 1:
        known = ", ".join(entry.fingerprint for entry in found)
        raise StateError(f"{files.controllers}: several lines have this comment: name one by its fingerprint: {known}")
    for entry in files.remove(lambda entry: any(entry.subject == other.subject for other in found)):
        print(f"{files.controllers}: {_subject(entry)} is not let in any more")
    keys = {entry.key: entry.comment for entry in found if entry.key is not None}
    if key is not None:
        keys.setdefault(key, parse_public(wanted).comment)
    if not found or files.read().authorities:
        # Its line is gone, and a certificate may still let it in.
        for revoked, comment in keys.items():
            files.revoke_key(revoked, comment)
            print(f"{files.revoked}: nor by a certificate")
    return 0


def list_controllers(state_dir: Path) -> int:
    """Print who is let in; returns the exit status, 1 if there are lines that cannot be read."""
    files = TrustFiles(state_dir)
    roster = files.read()
    for _, entry in roster.entries:
        words = [entry.fingerprint, "authority" if entry.authority is not None else "key"]
        print("  ".join([*words, _all_options(entry) or "-", entry.comment]).rstrip())
    for line in roster.broken:
        print(f"pyinfra-agent: {files.controllers}: line {line.number} admits nobody: {line.reason}", file=sys.stderr)
    return 1 if roster.broken else 0


def _options(arguments: argparse.Namespace) -> str:
    words = ["cert-authority"] if arguments.authority else []
    for name, value in (
        ("names", arguments.names),
        ("groups", arguments.groups),
        ("from", arguments.source),
        ("user", arguments.user),
        ("expires", arguments.expires),
    ):
        if value is None:
            continue
        if name in ("names", "groups") and not arguments.authority:
            raise KeyFormatError(f"--{name} belongs to --authority")
        if not value.isprintable() or '"' in value or "\\" in value:
            raise KeyFormatError(f"--{name} {value!r} holds a character that cannot stand there")
        words.append(f'{name}="{value}"')
    words += [flag for flag in _FLAGS if getattr(arguments, flag.replace("-", "_"))]
    return ",".join(words)


def _require_account(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise StateError(f"this machine has no user {name}: make the account first") from None


def _matches(entry: Entry, wanted: str, key: bytes | None) -> bool:
    if key is not None:
        return entry.key == key
    return wanted in (entry.fingerprint, entry.comment)


def _subject(entry: Entry) -> str:
    named = f"{entry.fingerprint} {entry.comment}".rstrip()
    if entry.authority is None:
        return named
    limits = [
        f"{what} {', '.join(values)}"
        for what, values in (("named", entry.authority.names), ("in the groups", entry.authority.groups))
        if values is not None
    ]
    return f"every controller certified by {named}{''.join(f', {limit},' for limit in limits)}"


def _all_options(entry: Entry) -> str:
    words = []
    if entry.authority is not None:
        for name, values in (("names", entry.authority.names), ("groups", entry.authority.groups)):
            if values is not None:
                words.append(f'{name}="{",".join(values)}"')
    return ",".join([*words, *filter(None, [entry.policy.format()])])


def _gives(policy: Policy) -> str:
    """Return what *policy* gives away, in words that leave no doubt."""
    own = "root" if os.geteuid() == 0 else "this user"
    if policy.user is not None and pwd.getpwnam(policy.user).pw_uid != os.geteuid():
        text = f"may now do what the user {policy.user} can"
        limits = [flag for flag in _FLAGS if getattr(policy, flag.replace("-", "_"))]
        return f"{text}, less {', '.join(limits)}" if limits else text
    if policy.no_exec and policy.no_put and policy.no_get:
        return "may now connect, and neither run a command nor read or write a file"
    text = f"may now do everything this agent can, as {own}"
    limits = [flag for flag in ("no-exec", "no-put", "no-get") if getattr(policy, flag.replace("-", "_"))]
    if limits:
        return f"{text}: {', '.join(limits)} is no boundary, because what is left is enough to get around it"
    return text
