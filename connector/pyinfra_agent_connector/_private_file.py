"""Files that hold secrets: read only if nobody else can, and written so that they are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PrivateFileError", "create_private", "read_private", "replace_private"]

MAX_PRIVATE_BYTES: Final = 64 * 1024  # a key and its comments; anything larger is some other file

_HOME_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_OTHERS: Final = 0o077


class PrivateFileError(Exception):
    """The file cannot be used as it is; the text names it and says what to do."""


def read_private(path: Path, what: str) -> str | None:
    """Return the text of the file at *path*, or None if there is none; *what* it is called in errors.

    Raises:
        PrivateFileError: it is open to other users, belongs to somebody else, or is no text file.
        OSError: it cannot be read.
    """
    try:
        # O_NONBLOCK: opening a fifo must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        # The checks are on the open file: what they saw is what is read.
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PrivateFileError(f"{what} {path} is not a regular file: move it away")
        if status.st_uid != os.geteuid():
            raise PrivateFileError(
                f"{what} {path} belongs to user {status.st_uid}, and this process runs as user"
                f" {os.geteuid()}: run as that user, or set PYINFRA_AGENT_HOME to a directory of your own"
            )
        if status.st_mode & _OTHERS:
            mode = stat.S_IMODE(status.st_mode)
            raise PrivateFileError(f"{what} {path} is open to other users (mode {mode:04o}): chmod 600 {path}")
        data = file.read(MAX_PRIVATE_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # Without the cause: the text of a UnicodeDecodeError holds the bytes that it could not decode.
        raise PrivateFileError(f"{what} {path} cannot be read: it is not text") from None


def create_private(path: Path, text: str) -> bool:
    """Make the file at *path*, and its directory; return False and change nothing if it is there already."""
    temporary = _written(path, text)
    try:
        # A link appears complete or not at all and, unlike a rename, never replaces the key of a faster process.
        with suppress(FileExistsError):
            os.link(temporary, path)
            return True
        return False
    finally:
        temporary.unlink()


def replace_private(path: Path, text: str) -> None:
    """Put *text* in the place of the file at *path*."""
    temporary = _written(path, text)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink()
        raise


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(mode=_HOME_MODE, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        with open(fd, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(fd)
    except BaseException:
        temporary.unlink()
        raise
    return temporary
