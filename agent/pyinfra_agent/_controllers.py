"""The text of `authorized_controllers`: one key or authority a line, with what it may do in front of it.

    [OPTIONS] pyinfra-agent-key BASE64 comment
    cert-authority [names="..."] [groups="..."] [OPTIONS] pyinfra-agent-authority BASE64 comment

A line that cannot be read admits nobody, and the others are read all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import fingerprint, parse_public
from pyinfra_agent_protocol.trust_lines import meaningful_lines, parse_authority_line, split_options

from ._policy import Policy

if TYPE_CHECKING:
    from pyinfra_agent_protocol.certificates import Authority

__all__ = ["BadLine", "Controller", "Entry", "Roster", "parse_line"]

_AUTHORITY_OPTION: Final = "cert-authority"
#: What an authority's line says of certificates, beside what all lines can say.
_AUTHORITY_LIMITS: Final = ("names", "groups")


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller that is let in.

    Attributes:
        key: its static key.
        comment: what its line calls it, or the first name of its certificate.
        policy: what it may do.
        ends: seconds since 1970 from which on it is not let in any more; None is never.
        certificate: what it has shown, where that is why it is let in.
    """

    key: bytes
    comment: str
    policy: Policy = field(default_factory=Policy)
    ends: float | None = None
    certificate: bytes = b""

    def __str__(self) -> str:
        return self.comment or self.fingerprint

    @property
    def fingerprint(self) -> str:
        """The short form of its key."""
        return _fingerprint(self.key)

    def to_state(self) -> dict[str, Any]:
        """Return plain values from which `from_state` makes the same controller in another process."""
        return {
            "key": self.key,
            "comment": self.comment,
            "options": self.policy.format(),
            "ends": self.ends,
            "certificate": self.certificate,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Controller:
        """Return the controller that `to_state` has described; raises `KeyFormatError` if it did not."""
        options, _ = split_options(f"{state['options']} pyinfra-agent-key")
        return cls(state["key"], state["comment"], Policy.parse(options), state["ends"], state["certificate"])


@lru_cache(maxsize=4096)
def _fingerprint(key: bytes) -> str:
    return fingerprint(key)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one line says: exactly one of *key* and *authority* is there."""

    policy: Policy
    comment: str
    key: bytes | None = None
    authority: Authority | None = None

    @property
    def fingerprint(self) -> str:
        """The short form of its key, whichever it is."""
        if self.authority is not None:
            return self.authority.fingerprint
        assert self.key is not None
        return fingerprint(self.key)

    @property
    def subject(self) -> tuple[bool, bytes]:
        """What it is about: whether that is an authority, and the key."""
        if self.authority is not None:
            return True, self.authority.public
        assert self.key is not None
        return False, self.key


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that admits nobody: its number from 1, and why."""

    number: int
    reason: str


class Roster:
    """Everything that a file says.

    Attributes:
        controllers: by key.
        authorities: those that `certificates.open_certificate` takes, by their id.
        policies: what the controllers of each authority may do, by its id.
        entries: every readable line with its number.
        broken: the lines that were left out.
    """

    def __init__(self, text: str = "") -> None:
        self.controllers: dict[bytes, Controller] = {}
        self.authorities: dict[bytes, Authority] = {}
        self.policies: dict[bytes, Policy] = {}
        self.entries: list[tuple[int, Entry]] = []
        self.broken: list[BadLine] = []
        self._lines: dict[tuple[bool, bytes], int] = {}
        for number, line in meaningful_lines(text):
            try:
                self._add(number, parse_line(line))
            except KeyFormatError as error:
                self.broken.append(BadLine(number, str(error)))

    def _add(self, number: int, entry: Entry) -> None:
        # The first one counts, as with OpenSSH; that another one says something else must not go unnoticed.
        earlier = self._lines.setdefault(entry.subject, number)
        if earlier != number:
            raise KeyFormatError(f"this key stands in line {earlier} already, which counts: remove one of them")
        self.entries.append((number, entry))
        if entry.authority is not None:
            self.authorities[entry.authority.id] = entry.authority
            self.policies[entry.authority.id] = entry.policy
        elif entry.key is not None:
            self.controllers[entry.key] = Controller(entry.key, entry.comment, entry.policy, entry.policy.expires)


def parse_line(line: str) -> Entry:
    """Return what one *line* says; raises `KeyFormatError`."""
    options, rest = split_options(line)
    if _AUTHORITY_OPTION not in options:
        # Reads the key first: a secret key in the wrong place is told as such, whatever stands before it.
        public = parse_public(rest)
        return Entry(Policy.parse(options), public.comment, key=public.key)
    if options.pop(_AUTHORITY_OPTION) is not None:
        raise KeyFormatError(f"the option {_AUTHORITY_OPTION} takes no value")
    limits = {name: options.pop(name) for name in _AUTHORITY_LIMITS if name in options}
    words = " ".join(f"{name}={_quoted(value or '')}" for name, value in limits.items())
    authority = parse_authority_line(f"{words} {rest}")
    return Entry(Policy.parse(options), authority.comment, authority=authority)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
