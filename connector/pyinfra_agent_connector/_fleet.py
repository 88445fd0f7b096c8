"""A fleet key and what it has signed: one directory, on the one machine where certificates are made.

fleet_key       0600, a pyinfra-agent-secret-authority or pyinfra-agent-encrypted-authority line
authority       its public half: the line that agents and controllers are given
ledger          a JSON object a line for each certificate, written before the certificate is handed out
revoked         what was taken back: the list that agents and controllers are given

The ledger is for people: nothing is trusted because of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.certificates import (
    AuthorityKey,
    Certificate,
    Revocations,
    format_authority,
    format_authority_secret,
    parse_authority,
    parse_authority_secret,
)
from pyinfra_agent_protocol.keys import fingerprint, format_public, parse_public
from pyinfra_agent_protocol.trust_lines import meaningful_lines, parse_revocations

from ._passphrase import ENCRYPTED_AUTHORITY_PREFIX, open_with_passphrase, seal
from ._private_file import create_private, read_private, replace_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyinfra_agent_protocol.certificates import Authority

__all__ = ["Fleet", "FleetError", "Signed"]

_HOME_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_SERIAL_BITS: Final = 64


class FleetError(Exception):
    """The directory of the fleet key cannot be used; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Signed:
    """One entry of the ledger.

    Attributes:
        serial: 16 hexadecimal digits.
        role: `agent` or `controller`.
        names: that it certifies.
        groups: that it certifies.
        key: 32 bytes, whose it is.
        not_before, not_after: seconds since 1970.
    """

    serial: str
    role: str
    names: tuple[str, ...]
    groups: tuple[str, ...]
    key: bytes
    not_before: int
    not_after: int

    def state(self, revoked: Revocations, now: float) -> str:
        """Return `valid`, `expired` or `revoked`."""
        if int(self.serial, 16) in revoked.serials or self.key in revoked.keys:
            return "revoked"
        return "valid" if now <= self.not_after else "expired"


class Fleet:
    """The fleet key in *directory*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key_path = directory / "fleet_key"
        self.authority_path = directory / "authority"
        self.ledger_path = directory / "ledger"
        self.revoked_path = directory / "revoked"

    def create(self, comment: str, passphrase: str | None) -> Authority:
        """Make the key; an existing one is never replaced.

        Raises:
            FleetError: there is one.
            OSError: it cannot be written.
        """
        key = AuthorityKey(secrets.token_bytes(32))
        if passphrase:
            line = seal(key.seed, passphrase, ENCRYPTED_AUTHORITY_PREFIX, comment)
        else:
            line = format_authority_secret(key, comment)
        if not create_private(self.key_path, f"{line}\n"):
            raise FleetError(f"there is a fleet key already, {self.key_path}: give another directory with --dir")
        replace_private(self.authority_path, f"{format_authority(key.public, comment)}\n")
        return self.authority()

    def authority(self) -> Authority:
        """Return its public half, which needs no passphrase; raises as `open`."""
        try:
            return parse_authority(self.authority_path.read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            raise self._missing() from None
        except KeyFormatError as error:
            raise FleetError(f"{self.authority_path} cannot be read: {error}") from None

    def open(self) -> AuthorityKey:
        """Return the key; asks for its passphrase if it has one.

        Raises:
            FleetError: there is none, or the file is none.
            PrivateFileError: it is open to others.
            PassphraseError: its passphrase is wrong.
            OSError: it cannot be read.
        """
        what = "the fleet key"
        text = read_private(self.key_path, what)
        if text is None:
            raise self._missing()
        lines = [line for _, line in meaningful_lines(text)]
        try:
            if len(lines) == 1 and lines[0].startswith(ENCRYPTED_AUTHORITY_PREFIX):
                what = f"{what} {self.key_path}"
                return AuthorityKey(open_with_passphrase(lines[0], ENCRYPTED_AUTHORITY_PREFIX, what)[0])
            return parse_authority_secret(text)
        except KeyFormatError as error:
            raise FleetError(f"the fleet key {self.key_path} cannot be read: {error}") from None

    def sign(
        self, key: bytes, role: str, names: tuple[str, ...], groups: tuple[str, ...], seconds: int
    ) -> tuple[bytes, Certificate]:
        """Sign *key* for *seconds* from now on, with a random serial; it is in the ledger when this returns.

        Raises:
            FleetError: this key was revoked; or as `open`.
            LocalProtocolError: names or groups are too many or too long.
        """
        if key in self.revocations().keys:
            raise FleetError(f"the key {fingerprint(key)} was revoked: whoever has it needs a new one")
        now = int(time.time())
        certificate = Certificate(key, role, names, now, now + seconds, secrets.randbits(_SERIAL_BITS), groups)
        data = self.open().sign(certificate)
        entry = {
            "serial": certificate.serial_text,
            "role": role,
            "names": names,
            "groups": groups,
            "key": format_public(key),
            "not_before": certificate.not_before,
            "not_after": certificate.not_after,
        }
        with self._locked():
            fd = os.open(self.ledger_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
            with open(fd, "wb") as file:
                file.write(f"{json.dumps(entry)}\n".encode())
                file.flush()
                os.fsync(fd)
        return data, certificate

    def ledger(self) -> tuple[Signed, ...]:
        """Return what was signed, the oldest first.

        Raises:
            FleetError: a line cannot be read.
        """
        try:
            text = self.ledger_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ()
        found = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                found.append(_entry(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                raise FleetError(f"line {number} of {self.ledger_path} cannot be read: mend or remove it") from None
        return tuple(found)

    def revocations(self) -> Revocations:
        """Return what was taken back.

        Raises:
            FleetError: the list cannot be read.
        """
        try:
            return parse_revocations(self.revoked_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Revocations()
        except KeyFormatError as error:
            raise FleetError(f"{self.revoked_path} cannot be read: {error}") from None

    def revoke(self, line: str) -> bool:
        """Add *line* to the list; False if what it says is there already.

        Raises:
            KeyFormatError: it is no revocation.
            FleetError: the list cannot be read.
        """
        new = parse_revocations(line)
        with self._locked():
            known = self.revocations()
            if new.serials <= known.serials and new.keys <= known.keys:
                return False
            text = self.revoked_path.read_text(encoding="utf-8") if self.revoked_path.exists() else ""
            replace_private(self.revoked_path, f"{text}{line}\n")
        return True

    def _missing(self) -> FleetError:
        return FleetError(f"there is no fleet key in {self.directory}: pyinfra-agent ca init makes one")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(mode=_HOME_MODE, parents=True, exist_ok=True)
        fd = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _entry(fields: dict[str, Any]) -> Signed:
    return Signed(
        f"{int(fields['serial'], 16):016x}",
        str(fields["role"]),
        tuple(map(str, fields["names"])),
        tuple(map(str, fields["groups"])),
        parse_public(fields["key"]).key,
        int(fields["not_before"]),
        int(fields["not_after"]),
    )
