"""Who may speak to this agent: `authorized_controllers`, one key a line.

An empty or missing file admits nobody; so does a line that cannot be read, which is reported by its
number.  The file is looked at again for each handshake, so a change needs no restart.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import fingerprint, parse_public

from ._keys import StateError
from ._log import log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["AuthorizedControllers", "Controller"]

FILE_NAME: Final = "authorized_controllers"
_MAX_FILE_BYTES: Final = 16 * 1024 * 1024
_WRITABLE_BY_OTHERS: Final = 0o022


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller that is let in: its key and what its line calls it."""

    key: bytes
    comment: str

    def __str__(self) -> str:
        return self.comment or fingerprint(self.key)


class AuthorizedControllers:
    """The file in *state_dir*, read when it has changed."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE_NAME
        self._signature: tuple[int, ...] | None = None
        self._controllers: dict[bytes, Controller] = {}

    def find(self, key: bytes) -> Controller | None:
        """Return the controller that holds *key*, or None if it is not let in."""
        self._refresh()
        return self._controllers.get(key)

    def authorize(self, line: str) -> Controller:
        """Let the key of *line* in from now on; nothing happens if it is in already.

        Raises:
            KeyFormatError: *line* is no key line.
            StateError: the file cannot be written, or others could have written what it holds.
        """
        public = parse_public(line)
        try:
            with self._locked():
                self._require_ours()
                text = self._read()
                controllers = _parse(text, self.path)
                if public.key not in controllers:
                    if text and not text.endswith("\n"):
                        text += "\n"
                    self._replace(f"{text}{line.strip()}\n")
        except OSError as error:
            raise StateError(f"{self.path} cannot be written: {error.strerror}") from error
        return Controller(public.key, public.comment)

    def _refresh(self) -> None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            self._signature, self._controllers = None, {}
            return
        except OSError as error:
            log("authorized-controllers-unreadable", path=self.path, error=error.strerror)
            self._signature, self._controllers = None, {}
            return
        signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if signature == self._signature:
            return
        if _is_open_to_others(status):
            # Whoever can write here owns this machine; admit nobody until that is mended.
            log("authorized-controllers-refused", path=self.path, reason="others may write it: chmod 600, chown")
            self._signature, self._controllers = signature, {}
            return
        try:
            self._controllers = _parse(self._read(), self.path)
            self._signature = signature
        except OSError as error:
            log("authorized-controllers-unreadable", path=self.path, error=error.strerror)
            self._signature, self._controllers = None, {}

    def _require_ours(self) -> None:
        # Writing it anew would make it private, and whoever had let himself in would be in.
        with suppress(FileNotFoundError):
            if _is_open_to_others(os.stat(self.path)):
                raise StateError(
                    f"others may write {self.path}, so anybody may have added a key: look through it, then"
                    f" chown it to yourself and chmod 600 {self.path}"
                )

    def _read(self) -> str:
        try:
            with open(self.path, "rb") as file:
                return file.read(_MAX_FILE_BYTES).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self.path.with_name(f".{FILE_NAME}.lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _replace(self, text: str) -> None:
        temporary = self.path.with_name(f".{FILE_NAME}.{secrets.token_hex(8)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(fd)
            os.rename(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _is_open_to_others(status: os.stat_result) -> bool:
    return bool(status.st_mode & _WRITABLE_BY_OTHERS) or status.st_uid not in (0, os.geteuid())


def _parse(text: str, path: Path) -> dict[bytes, Controller]:
    controllers: dict[bytes, Controller] = {}
    # Not splitlines(): it also ends a line where no editor shows it, so that a comment could hold a key.
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            public = parse_public(stripped)
        except KeyFormatError as error:
            log("authorized-controllers-bad-line", path=path, line=number, reason=error)
            continue
        controllers[public.key] = Controller(public.key, public.comment)
    return controllers
