"""Whose certificates this user believes, and what was taken back: two files in the directory of the controller's key.

    authorities     [names="*.example.com"] [groups="web"] pyinfra-agent-authority BASE64 comment
    revoked         0123456789abcdef comment, or a key line

Both are read again when they change. A line of `authorities` that cannot be read lets nobody in. A line of `revoked`
that cannot be read may be the one that matters: until it is mended no agent is believed at all.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.certificates import (
    Authority,
    Certificate,
    CertificateRefused,
    Revocations,
    certified_groups,
    check_certificate,
    open_certificate,
)
from pyinfra_agent_protocol.keys import fingerprint
from pyinfra_agent_protocol.trust_lines import (
    format_authority_line,
    meaningful_lines,
    parse_authority_line,
    parse_revocations,
)

from ._known import UntrustedAgent
from ._private_file import replace_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["AUTHORITIES_FILE", "REVOKED_FILE", "Authorities", "Certified", "authorities_of"]

AUTHORITIES_FILE: Final = "authorities"
REVOKED_FILE: Final = "revoked"

_MAX_FILE_BYTES: Final = 16 * 1024 * 1024

_Signature = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Certified:
    """What a trusted authority says of an agent.

    Attributes:
        names: those of the certificate that its authority may give, in their order.
        groups: those that its authority may give.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]


class Authorities:
    """The authorities and revocations in *home*; neither file need exist."""

    def __init__(self, home: Path) -> None:
        self.path = home / AUTHORITIES_FILE
        self.revoked_path = home / REVOKED_FILE
        self._authorities: dict[bytes, Authority] = {}
        self._problems: tuple[str, ...] = ()
        self._revocations = Revocations()
        self._signatures: dict[Path, _Signature | None] = {}

    def all(self) -> Mapping[bytes, Authority]:
        """Return the authorities by their id.

        Raises:
            UntrustedAgent: the file cannot be read.
        """
        text = self._changed_text(self.path)
        if text is not None:
            self._authorities, self._problems = _parse(text, self.path)
        return self._authorities

    def problems(self) -> tuple[str, ...]:
        """Return one text for each line of `authorities` that is ignored; raises as `all`."""
        self.all()
        return self._problems

    def add(self, authority: Authority) -> bool:
        """Believe *authority* from now on; False if its line is there already.

        Raises:
            UntrustedAgent: another line is there for it, or the file cannot be read.
            OSError: it cannot be written.
        """
        before = self.all().get(authority.id)
        if before is not None:
            if (before.names, before.groups) != (authority.names, authority.groups):
                raise UntrustedAgent(
                    f"{self.path} has a line for {authority.fingerprint} already, with other names or groups: remove it"
                    f" first, by pyinfra-agent trust remove {authority.fingerprint}"
                )
            return False
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if text and not text.endswith("\n"):
            text += "\n"
        self._replace(f"{text}{format_authority_line(authority)}\n")
        return True

    def remove(self, print_: str) -> tuple[Authority, ...]:
        """Believe the authority with the fingerprint *print_* no more; return it, or nothing if it is not there.

        Raises:
            UntrustedAgent: the file cannot be read.
            OSError: it cannot be written.
        """
        gone = {identity: one for identity, one in self.all().items() if one.fingerprint == print_}
        if gone:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            self._replace("".join(line for line in lines if _id_of(line) not in gone))
        return tuple(gone.values())

    def _replace(self, text: str) -> None:
        replace_private(Path(os.path.realpath(self.path)), text)  # a link stays one

    def require_not_revoked(self, name: str, key: bytes) -> None:
        """Refuse a *key* that was taken back, however it is known.

        Raises:
            UntrustedAgent: it was revoked, or the list cannot be read.
        """
        if key in self._revoked().keys:
            raise UntrustedAgent(
                f"the key of {name}, {fingerprint(key)}, is revoked in {self.revoked_path}: the agent needs a new key"
            )

    def certified(self, key: bytes, certificate: bytes, names: Iterable[str] | None) -> Certified | None:
        """Return what *certificate* says of the agent that has proved *key*; None if nobody trusted has signed it.

        Args:
            key: of the agent.
            certificate: that it has shown; b"" if it has shown none.
            names: one of which it must be called; None where any name will do.

        Raises:
            CertificateRefused: it bears the name of a trusted authority, and does not prove what it should.
            UntrustedAgent: a file cannot be read.
        """
        known = self.all()
        if not certificate or not any(certificate.startswith(identity) for identity in known):
            return None
        opened, authority = open_certificate(certificate, known)
        wanted = opened.names if names is None else tuple(names)
        allowed = []
        refusal: CertificateRefused | None = None
        for name in wanted:
            try:
                self._check(opened, authority, key, name)
                allowed.append(name)
            except CertificateRefused as error:
                refusal = refusal or error
        if not allowed:
            raise refusal or CertificateRefused("its certificate has no name")
        return Certified(tuple(allowed), certified_groups(opened, authority))

    def _check(self, certificate: Certificate, authority: Authority, key: bytes, name: str) -> None:
        revoked = self._revoked()
        check_certificate(certificate, authority, key=key, role="agent", now=time.time(), name=name, revoked=revoked)

    def _revoked(self) -> Revocations:
        text = self._changed_text(self.revoked_path)
        if text is not None:
            try:
                self._revocations = parse_revocations(text)
            except KeyFormatError as error:
                self._signatures.pop(self.revoked_path, None)
                raise UntrustedAgent(f"no agent is trusted until {self.revoked_path} can be read: {error}") from None
        return self._revocations

    def _changed_text(self, path: Path) -> str | None:
        """Return the text of *path* if it is not the one of the last time; "" if there is no file any more."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                if self._signatures.get(path) == signature:
                    return None
                data = file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            return "" if self._signatures.pop(path, None) is not None else None
        except OSError as error:
            # Not an empty file: what was revoked must not come back because a disk fails.
            raise UntrustedAgent(f"no agent is trusted: {path} cannot be read: {error.strerror}") from error
        self._signatures[path] = signature
        return data.decode("utf-8", "replace")


@cache
def authorities_of(home: Path) -> Authorities:
    """Share one object per directory: two hundred hosts then read its files once."""
    return Authorities(home)


def _id_of(line: str) -> bytes:
    try:
        return parse_authority_line(line).id
    except KeyFormatError:
        return b""


def _parse(text: str, path: Path) -> tuple[dict[bytes, Authority], tuple[str, ...]]:
    found: dict[bytes, Authority] = {}
    problems = []
    for number, line in meaningful_lines(text):
        try:
            authority = parse_authority_line(line)
        except KeyFormatError as error:
            problems.append(f"line {number} of {path} is ignored: {error}")
            continue
        if authority.id in found:
            problems.append(f"line {number} of {path} is ignored: an earlier one is for the same authority")
            continue
        found[authority.id] = authority
    return found, tuple(problems)
