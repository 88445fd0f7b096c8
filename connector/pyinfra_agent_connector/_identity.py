"""Who this controller is: one secret key in the user's configuration directory, made when it is first needed."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import KeyPair, format_secret, parse_secret

__all__ = ["Identity", "IdentityError", "agent_home", "load_or_create"]

IDENTITY_FILE: Final = "identity"
MAX_IDENTITY_BYTES: Final = 64 * 1024  # a key and its comments; anything larger is some other file

_HOME_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_OTHERS: Final = 0o077


class IdentityError(Exception):
    """The controller's key cannot be used; the text names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The controller's key pair, and the `user@host` that its public key carries as a comment."""

    keypair: KeyPair
    comment: str


def agent_home(explicit: str | None = None) -> Path:
    """Return the directory of the controller's key and pins; it need not exist.

    *explicit*, else `$PYINFRA_AGENT_HOME`, else `$XDG_CONFIG_HOME/pyinfra-agent`, else `~/.config/pyinfra-agent`.
    """
    chosen = explicit or os.environ.get("PYINFRA_AGENT_HOME")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG base directory specification: a relative path there is invalid and to be ignored.
    return (Path(base) if os.path.isabs(base) else Path("~/.config").expanduser()) / "pyinfra-agent"


def load_or_create(home: Path) -> Identity:
    """Return the identity kept in *home*; make the directory and the key if there is none yet.

    An existing file is never written. Two processes that start at once end with the same key.

    Raises:
        IdentityError: the file is readable by others, belongs to somebody else, holds no key, or cannot be made.
    """
    path = home / IDENTITY_FILE
    try:
        keypair = _load(path)
        if keypair is None:
            _create(home, path)
            keypair = _load(path)
    except OSError as error:
        # Not error.filename: while the key is made that is a temporary name which is gone by now.
        raise IdentityError(f"the controller's key {path} cannot be used: {error.strerror}") from error
    if keypair is None:
        raise IdentityError(f"the controller's key {path} was removed while it was being made: start again")
    return Identity(keypair, _comment())


def _load(path: Path) -> KeyPair | None:
    try:
        # O_NONBLOCK: opening a fifo must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        # The checks are on the open file: what they saw is what is read.
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError(f"the controller's key {path} is not a regular file: move it away")
        if status.st_uid != os.geteuid():
            raise IdentityError(
                f"the controller's key {path} belongs to user {status.st_uid}, and this process runs as user"
                f" {os.geteuid()}: run as that user, or set PYINFRA_AGENT_HOME to a directory of your own"
            )
        if status.st_mode & _OTHERS:
            mode = stat.S_IMODE(status.st_mode)
            raise IdentityError(
                f"the controller's key {path} is open to other users (mode {mode:04o}): chmod 600 {path}"
            )
        text = file.read(MAX_IDENTITY_BYTES)
    try:
        return parse_secret(text.decode("utf-8"))
    except KeyFormatError as error:
        raise IdentityError(f"the controller's key {path} cannot be read: {error}") from None
    except UnicodeDecodeError:
        # Without the cause: the text of a UnicodeDecodeError holds the bytes that it could not decode.
        raise IdentityError(f"the controller's key {path} cannot be read: it is not text") from None


def _create(home: Path, path: Path) -> None:
    home.mkdir(mode=_HOME_MODE, parents=True, exist_ok=True)
    temporary = home / f".{IDENTITY_FILE}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        with open(fd, "wb") as file:
            file.write(f"{format_secret(KeyPair.generate(), _comment())}\n".encode())
            file.flush()
            os.fsync(fd)
        # A link appears complete or not at all and, unlike a rename, never replaces the key of a faster process.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _comment() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name in the environment or passwd, as in a bare container; OSError from 3.13 on
        user = f"uid{os.getuid()}"
    text = f"{user}@{socket.gethostname()}"
    return "".join(character if character.isprintable() else "?" for character in text)[:128]
