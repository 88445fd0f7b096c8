"""The agent's own key: made at the first start, 0600, never overwritten.

Its twin on the controller is the connector's `_identity`; the two never share a file, because the same
key on both ends is refused.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import KeyPair, format_secret, parse_secret

__all__ = ["KEY_FILE", "StateError", "create_key", "default_state_dir", "load_key", "load_or_create_key"]

KEY_FILE: Final = "key"
_MAX_KEY_BYTES: Final = 64 * 1024
_OTHERS: Final = 0o077


class StateError(Exception):
    """The state directory, or a file in it, cannot be used; the text names it and says what to do."""


def default_state_dir() -> Path:
    """Return `/var/lib/pyinfra-agent` for root, else a directory under `$XDG_STATE_HOME` or `~/.local/state`.

    For a service, whoever it runs as, systemd says where it is (StateDirectory=).

    Raises:
        StateError: this user has no home directory.
    """
    if os.path.isabs(directory := os.environ.get("STATE_DIRECTORY", "")):
        return Path(directory)
    if os.geteuid() == 0:
        return Path("/var/lib/pyinfra-agent")
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "pyinfra-agent"
    try:
        return Path("~/.local/state/pyinfra-agent").expanduser()
    except RuntimeError:
        raise StateError("this user has no home directory to keep the agent's state in: give --state-dir DIR") from None


def load_or_create_key(state_dir: Path) -> KeyPair:
    """Return the agent's key pair from *state_dir*; make both if they are not there yet.

    Raises:
        StateError: the file is open to others, belongs to somebody else, or holds no key.
    """
    path = state_dir / KEY_FILE
    try:
        pair = load_key(path)
        if pair is None:
            create_key(path)
            pair = load_key(path)
    except OSError as error:
        raise StateError(f"the agent's key {path} cannot be used: {error.strerror}") from error
    if pair is None:
        raise StateError(f"the agent's key {path} was removed while it was being made: start again")
    return pair


def load_key(path: Path) -> KeyPair | None:
    """Return the key pair of the file at *path*, or None if there is none; raises as `load_or_create_key`."""
    try:
        # O_NONBLOCK: opening a fifo must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"the agent's key {path} is not a regular file: move it away")
        if status.st_uid != os.geteuid():
            raise StateError(
                f"the agent's key {path} belongs to user {status.st_uid}, and the agent runs as user {os.geteuid()}:"
                " run it as that user, or give it another --state-dir"
            )
        if status.st_mode & _OTHERS:
            mode = stat.S_IMODE(status.st_mode)
            raise StateError(f"the agent's key {path} is open to other users (mode {mode:04o}): chmod 600 {path}")
        data = file.read(_MAX_KEY_BYTES)
    try:
        return parse_secret(data.decode("ascii", "replace"))
    except KeyFormatError as error:
        raise StateError(f"the agent's key {path} cannot be read: {error}") from None


def create_key(path: Path) -> None:
    """Make a key at *path*, 0600, unless one is there already."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(f"{format_secret(KeyPair.generate(), _comment())}\n".encode())
            file.flush()
            os.fsync(fd)
        # A link appears complete or not at all and, unlike a rename, never replaces a key that is there.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _comment() -> str:
    return "".join(c if c.isprintable() else "?" for c in f"agent@{socket.gethostname()}")[:128]
