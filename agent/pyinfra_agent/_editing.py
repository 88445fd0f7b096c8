"""Changing `authorized_controllers` and `revoked` while an agent reads them and others change them, too.

A file is replaced whole, under a lock. Lines that cannot be read stay as they are: they are somebody's work.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import format_public
from pyinfra_agent_protocol.trust_lines import parse_revocations

from ._authorized import CONTROLLERS_NAME, REVOKED_NAME, is_open_to_others, read_text
from ._controllers import Entry, Roster, parse_line
from ._keys import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pyinfra_agent_protocol.certificates import Revocations

__all__ = ["TrustFiles"]


class TrustFiles:
    """Who is let in, and who never is, as files in *state_dir*.

    Every method raises `StateError` where a file cannot be used.
    """

    def __init__(self, state_dir: Path) -> None:
        self.controllers = state_dir / CONTROLLERS_NAME
        self.revoked = state_dir / REVOKED_NAME

    def read(self) -> Roster:
        """Return what `authorized_controllers` says."""
        with _explaining(self.controllers, "read"):
            return Roster(_text(self.controllers))

    def authorize(self, line: str, *, widens: bool) -> Entry:
        """Let the key or authority of *line* in from now on, under its options; replaces a line about the same key.

        Args:
            line: as it is to stand in the file.
            widens: may take options away from a line without giving others.

        Raises:
            KeyFormatError: *line* is none.
            StateError: also if it would widen what is there, or the key was revoked.
        """
        line = line.strip()
        entry = parse_line(line)
        if "\n" in line:
            raise KeyFormatError("one line at a time")
        if entry.key is not None and entry.key in self._revocations().keys:
            raise StateError(f"{entry.fingerprint} was revoked: take its line out of {self.revoked} first")

        def add(text: str) -> str:
            roster = Roster(text)
            for number, other in roster.entries:
                if other.subject != entry.subject:
                    continue
                if (other.policy, other.authority) == (entry.policy, entry.authority):
                    return text
                if not widens:
                    raise StateError(
                        f"{self.controllers}: line {number} lets {entry.fingerprint} in with other options: give the"
                        " options that it is to have, or revoke it first"
                    )
                lines = text.split("\n")
                lines[number - 1] = line
                return "\n".join(lines)
            return f"{_ended(text)}{line}\n"

        self._change(self.controllers, add)
        return entry

    def remove(self, wanted: Callable[[Entry], bool]) -> list[Entry]:
        """Take out every line that *wanted* says; return what they said."""
        removed: list[Entry] = []

        def take_out(text: str) -> str:
            found = {number: entry for number, entry in Roster(text).entries if wanted(entry)}
            removed.extend(found.values())
            lines = text.split("\n")
            return "\n".join(line for number, line in enumerate(lines, 1) if number not in found)

        if self.controllers.exists():
            self._change(self.controllers, take_out)
        return removed

    def revoke_serial(self, serial: int) -> None:
        """Refuse the certificate with *serial* from now on."""
        self._add_revocation(f"{serial:016x}")

    def revoke_key(self, key: bytes, comment: str) -> None:
        """Refuse *key* from now on, whatever it shows."""
        self._add_revocation(format_public(key, comment))

    def _add_revocation(self, line: str) -> None:
        wanted = parse_revocations(line)

        def add(text: str) -> str:
            known = parse_revocations(text)
            is_there = wanted.serials <= known.serials and wanted.keys <= known.keys
            return text if is_there else f"{_ended(text)}{line}\n"

        try:
            self._change(self.revoked, add)
        except KeyFormatError as error:
            raise StateError(f"{self.revoked} cannot be read, {error}: mend it") from None

    def _revocations(self) -> Revocations:
        with _explaining(self.revoked, "read"):
            try:
                return parse_revocations(_text(self.revoked))
            except KeyFormatError as error:
                raise StateError(f"{self.revoked} cannot be read, {error}: mend it") from None

    def _change(self, path: Path, change: Callable[[str], str]) -> None:
        with _explaining(path, "written"), _locked(path):
            _require_ours(path)
            old = _text(path)
            new = change(old)
            if new != old:
                _replace(path, new)


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        return ""


@contextmanager
def _explaining(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(f"{path} cannot be {what}: {error.strerror}") from error


def _require_ours(path: Path) -> None:
    owner = os.stat(path.parent).st_uid
    if owner != os.geteuid():
        raise StateError(
            f"{path.parent} belongs to user {owner}, who could not read what this would write: run this as that user"
        )
    # Writing it anew would make it private, and whoever had let himself in would be in.
    with suppress(FileNotFoundError):
        if is_open_to_others(os.stat(path)):
            raise StateError(
                f"others may write {path}, so anybody may have added a key: look through it, then"
                f" chown it to yourself and chmod 600 {path}"
            )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
