"""Who this controller is: one secret key in the user's configuration directory, made when it is first needed.

    identity            the key: 0600, a pyinfra-agent-secret-key line, or a pyinfra-agent-encrypted-key line
    certificate         what an authority says of it, if there is one: shown to every agent
    identity.next       while the key is rotated: the one that comes after it, and its certificate
    certificate.next

Where there is no home to keep a key in, as in CI, $PYINFRA_AGENT_KEY is the key line itself, or $PYINFRA_AGENT_KEY_FILE
the name of a key file, and $PYINFRA_AGENT_CERTIFICATE the certificate's line.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.certificates import CLOCK_SKEW_SECONDS, inspect_certificate, parse_certificate
from pyinfra_agent_protocol.keys import KeyPair, format_secret, parse_secret
from pyinfra_agent_protocol.trust_lines import meaningful_lines

from ._passphrase import ENCRYPTED_KEY_PREFIX, PASSPHRASE_VARIABLE, PassphraseError, open_with_passphrase
from ._private_file import PrivateFileError, create_private, read_private

__all__ = [
    "SECRET_VARIABLES",
    "Identity",
    "IdentityError",
    "OpenedKey",
    "agent_home",
    "load_or_create",
    "open_key",
    "own_comment",
]

IDENTITY_FILE: Final = "identity"
CERTIFICATE_FILE: Final = "certificate"
KEY_VARIABLE: Final = "PYINFRA_AGENT_KEY"
KEY_FILE_VARIABLE: Final = "PYINFRA_AGENT_KEY_FILE"
CERTIFICATE_VARIABLE: Final = "PYINFRA_AGENT_CERTIFICATE"

#: What no process that runs somebody else's commands should inherit.
SECRET_VARIABLES: Final = (KEY_VARIABLE, PASSPHRASE_VARIABLE)

#: Of its end a certificate is warned about this long before, or in the last tenth of a short one's life.
EXPIRY_WARNING_SECONDS: Final = 24 * 3600
_EXPIRY_WARNING_PART: Final = 10

_logger: Final = logging.getLogger("pyinfra")
_warned: Final[set[str]] = set()


class IdentityError(Exception):
    """The controller's key cannot be used; the text names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The controller's key pair, and the `user@host` that its public key carries as a comment.

    Attributes:
        keypair: it proves.
        comment: of its public key.
        certificate: what it shows with it; b"" if it has none, or none that is any good now.
    """

    keypair: KeyPair
    comment: str
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class OpenedKey:
    """A key from a key line, and the passphrase that it was under; None without one."""

    keypair: KeyPair
    passphrase: str | None = None


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
    """Return the identity of the environment, else the one kept in *home*; make directory and key if there is none.

    An existing file is never written. Two processes that start at once end with the same key.

    Raises:
        IdentityError: the file is readable by others, belongs to somebody else, holds no key, or cannot be made; or
            its passphrase is wrong, or cannot be asked for.
    """
    path = home / IDENTITY_FILE
    opened = _from_environment() or open_key(path)
    if opened is None:
        try:
            create_private(path, f"{format_secret(KeyPair.generate(), own_comment())}\n")
        except OSError as error:
            # Not error.filename: while the key is made that is a temporary name which is gone by now.
            raise IdentityError(f"the controller's key {path} cannot be used: {error.strerror}") from error
        opened = open_key(path)
    if opened is None:
        raise IdentityError(f"the controller's key {path} was removed while it was being made: start again")
    return Identity(opened.keypair, own_comment(), _own_certificate(home, opened.keypair))


def open_key(path: Path) -> OpenedKey | None:
    """Return the key of the key file at *path*, or None if there is no file; asks for its passphrase if it has one.

    Raises:
        IdentityError: as `load_or_create`.
    """
    what = "the controller's key"
    try:
        text = read_private(path, what)
    except PrivateFileError as error:
        raise IdentityError(str(error)) from None
    except OSError as error:
        raise IdentityError(f"{what} {path} cannot be used: {error.strerror}") from error
    return None if text is None else _open_text(text, f"{what} {path}")


def own_comment() -> str:
    """Return `user@host` for the comment of a key that is made here."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name in the environment or passwd, as in a bare container; OSError from 3.13 on
        user = f"uid{os.getuid()}"
    text = f"{user}@{socket.gethostname()}"
    return "".join(character if character.isprintable() else "?" for character in text)[:128]


def _from_environment() -> OpenedKey | None:
    text = os.environ.get(KEY_VARIABLE)
    if text:
        return _open_text(text, f"the controller's key in ${KEY_VARIABLE}")
    name = os.environ.get(KEY_FILE_VARIABLE)
    if not name:
        return None
    opened = open_key(Path(name).expanduser())
    if opened is None:
        raise IdentityError(f"${KEY_FILE_VARIABLE} names {name}, which is not there")
    return opened


def _open_text(text: str, what: str) -> OpenedKey:
    lines = [line for _, line in meaningful_lines(text)]
    try:
        if len(lines) == 1 and lines[0].startswith(ENCRYPTED_KEY_PREFIX):
            secret, passphrase = open_with_passphrase(lines[0], ENCRYPTED_KEY_PREFIX, what)
            return OpenedKey(KeyPair.from_secret(secret), passphrase)
        return OpenedKey(parse_secret(text))
    except KeyFormatError as error:
        raise IdentityError(f"{what} cannot be read: {error}") from None
    except PassphraseError as error:
        raise IdentityError(str(error)) from None


# --- its certificate ---


def _own_certificate(home: Path, keypair: KeyPair) -> bytes:
    """Return the certificate to show; one that would be refused is not shown, as the key may be known by itself."""
    path = home / CERTIFICATE_FILE
    text = os.environ.get(CERTIFICATE_VARIABLE)
    source = f"${CERTIFICATE_VARIABLE}" if text else str(path)
    try:
        data = parse_certificate(text or path.read_text(encoding="utf-8"))
        certificate = inspect_certificate(data)
    except FileNotFoundError:
        return b""
    except (OSError, ValueError) as error:
        _warn(f"the certificate {source} is not shown to agents: {getattr(error, 'strerror', None) or error}")
        return b""
    now = time.time()
    left = certificate.not_after - now
    problem = ""
    if certificate.role != "controller":
        problem = f"it is for the role {certificate.role}"
    elif certificate.key != keypair.public:
        problem = "it is for another key than this controller's"
    elif left < -CLOCK_SKEW_SECONDS:
        problem = f"it has expired at {_utc(certificate.not_after)}; have this controller's key signed anew"
    if problem:
        _warn(f"the certificate {source} is not shown to agents: {problem}")
        return b""
    life = certificate.not_after - certificate.not_before
    if left < min(EXPIRY_WARNING_SECONDS, life / _EXPIRY_WARNING_PART):
        _warn(f"the certificate {source} expires at {_utc(certificate.not_after)}: have this key signed anew")
    return data


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _warn(text: str) -> None:
    """Say it once, and not for each of two hundred hosts."""
    if text not in _warned:
        _warned.add(text)
        _logger.warning(text)
