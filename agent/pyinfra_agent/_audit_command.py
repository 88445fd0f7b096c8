"""`pyinfra-agent audit`: what the agent has logged, filtered, from the systemd journal or from JSON lines."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, TextIO

from pyinfra_agent_protocol import KeyFormatError

from ._keys import StateError
from ._log import FIELD_PREFIX, IDENTIFIER, shown

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

__all__ = ["add_audit_options", "audit"]

#: Lines of these events are about somebody's access; the others are about the agent.
_EVENTS: Final = frozenset(
    {"connected", "denied", "handshake-refused", "request", "session-revoked", "session-refused", "link-lost"}
)
_REFUSALS: Final = frozenset({"denied", "handshake-refused", "session-revoked", "session-refused"})
#: In which values are printed, as the agent wrote them: the journal keeps no order. Others come behind.
_ORDER: Final = {
    name: number
    for number, name in enumerate(
        (
            *("controller", "key", "peer", "cipher", "session", "request", "outcome", "reason", "exit", "signal"),
            *("what", "path", "user", "received", "sent", "ms"),
        )
    )
}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Entry = dict[str, Any]


def add_audit_options(parser: argparse.ArgumentParser) -> None:
    """Give *parser* what `audit` takes."""
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help='JSON lines, as the agent writes them to stderr with log = "json"; - is standard input'
        " (default: the systemd journal of this machine)",
    )
    parser.add_argument("--since", metavar="WHEN", help="2026-12-31, 2026-12-31T12:00 (UTC), or ago: 90s, 30m, 2h, 7d")
    parser.add_argument("--controller", metavar="WHO", help="the name or the key's fingerprint")
    parser.add_argument("--request", metavar="KIND", help="exec, put, get, stat, info or close-session")
    parser.add_argument("--user", metavar="NAME", help="only what was done as this user")
    parser.add_argument(
        "--failed", action="store_true", help="only what was refused, ended by a signal or with a status other than 0"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines")


def audit(arguments: argparse.Namespace) -> int:
    """Print what fits *arguments*; returns the exit status."""
    since = _moment(arguments.since) if arguments.since else None
    entries = _from_journal(since) if arguments.file is None else _from_file(arguments.file)
    for entry in entries:
        if _fits(entry, arguments, since):
            print(json.dumps(entry) if arguments.json else _line(entry))
    return 0


def _fits(entry: Entry, arguments: argparse.Namespace, since: datetime | None) -> bool:
    return (
        entry.get("event") in _EVENTS
        and (since is None or _time_of(entry) >= since)
        and (arguments.controller is None or arguments.controller in (entry.get("controller"), entry.get("key")))
        and (arguments.request is None or entry.get("request") == arguments.request)
        and (arguments.user is None or entry.get("user") == arguments.user)
        and (not arguments.failed or _has_failed(entry))
    )


def _has_failed(entry: Entry) -> bool:
    if entry["event"] != "request":
        return entry["event"] in _REFUSALS
    return entry.get("outcome") != "done" or "signal" in entry or str(entry.get("exit", 0)) != "0"


def _from_file(name: str) -> Iterator[Entry]:
    if name == "-":
        yield from _json_lines(sys.stdin, "standard input")
        return
    try:
        with open(name, encoding="utf-8", errors="replace") as file:
            yield from _json_lines(file, name)
    except OSError as error:
        raise StateError(f"{name} cannot be read: {error.strerror}") from error


def _json_lines(file: TextIO, name: str) -> Iterator[Entry]:
    for number, line in enumerate(file, 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            yield entry
        elif line.strip():
            # What Python itself says at a crash stands there, too.
            print(f"pyinfra-agent: {name}: line {number} is no JSON object: left out", file=sys.stderr)


def _from_journal(since: datetime | None) -> Iterator[Entry]:
    words = ["journalctl", "-q", "-o", "json", "-t", IDENTIFIER]
    if since is not None:
        words += ["--since", f"@{int(since.timestamp())}"]
    try:
        journal = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding="utf-8")
    except OSError as error:
        raise StateError(f"journalctl cannot be run ({error.strerror}): name a FILE of JSON lines") from error
    with journal:
        assert journal.stdout is not None
        yield from _journal_entries(journal.stdout)
    if journal.returncode != 0:
        raise StateError("journalctl has failed: may this user read the journal?")


def _journal_entries(lines: Iterable[str]) -> Iterator[Entry]:
    for line in lines:
        fields = json.loads(line)
        moment = datetime.fromtimestamp(int(fields["__REALTIME_TIMESTAMP"]) / 1e6, timezone.utc)
        entry = {"time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
        for name, value in fields.items():
            if name.startswith(FIELD_PREFIX):
                # What is not UTF-8, or not printable, stands there as an array of numbers; twice the same field, too.
                text = bytes(value).decode("utf-8", "backslashreplace") if _is_bytes(value) else value
                entry[name.removeprefix(FIELD_PREFIX).lower()] = text
        yield entry


def _is_bytes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _line(entry: Entry) -> str:
    names = sorted(entry.keys() - {"time", "event"}, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))
    return " ".join([str(entry.get("time", "-")), entry["event"], *(f"{name}={shown(entry[name])}" for name in names)])


def _time_of(entry: Entry) -> datetime:
    try:
        moment = datetime.fromisoformat(str(entry.get("time")).replace("Z", "+00:00"))
    except ValueError:
        return datetime.fromtimestamp(0, timezone.utc)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _moment(text: str) -> datetime:
    number, unit = text[:-1], text[-1]
    if number.isascii() and number.isdigit() and unit in _UNITS:
        return datetime.now(timezone.utc) - timedelta(seconds=int(number) * _UNITS[unit])
    try:
        moment = datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        raise KeyFormatError(f"--since {text!r} is no time: 2026-12-31T12:00 (UTC), or ago such as 2h or 7d") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
