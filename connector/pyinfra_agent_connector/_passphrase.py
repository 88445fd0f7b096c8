"""Secret keys under a passphrase, and where the passphrase comes from.

    pyinfra-agent-encrypted-key BASE64 comment            a controller's key
    pyinfra-agent-encrypted-authority BASE64 comment      a fleet key

The base64 is `salt (16) | passes (u32) | memory in KiB (u32) | nonce (24) | secretbox of the 32 secret bytes (48)`, big
endian. The box's key is BLAKE2b-256 over the prefix and Argon2id (RFC 9106) of the passphrase, so that one kind of
key never passes for the other. What the line itself asks for is bounded: a file must not take all of a machine.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import os
import secrets
import struct
import sys
from pathlib import Path
from typing import Final

import gevent
from gevent.lock import RLock
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from pyinfra_agent_protocol import KeyFormatError

from ._private_file import PrivateFileError, read_private

__all__ = [
    "ENCRYPTED_AUTHORITY_PREFIX",
    "ENCRYPTED_KEY_PREFIX",
    "PASSPHRASE_FILE_VARIABLE",
    "PASSPHRASE_VARIABLE",
    "PassphraseError",
    "WrongPassphrase",
    "ask_new_passphrase",
    "open_with_passphrase",
    "seal",
    "unseal",
]

ENCRYPTED_KEY_PREFIX: Final = "pyinfra-agent-encrypted-key"
ENCRYPTED_AUTHORITY_PREFIX: Final = "pyinfra-agent-encrypted-authority"

PASSPHRASE_VARIABLE: Final = "PYINFRA_AGENT_PASSPHRASE"
PASSPHRASE_FILE_VARIABLE: Final = "PYINFRA_AGENT_PASSPHRASE_FILE"

#: About half a second on one core of 2020, and four times the memory of RFC 9106's second choice (3 over 64 MiB).
ARGON2_PASSES: Final = 3
ARGON2_MEMORY_KIB: Final = 256 * 1024
#: What a file may ask for: some ten times as much time, and memory that a controller has.
ARGON2_PASSES_MAX: Final = 12
ARGON2_MEMORY_MAX_KIB: Final = 1024 * 1024

_SALT_BYTES: Final = 16
_SECRET_BYTES: Final = 32
_LIMITS: Final = struct.Struct(">II")
_HEAD_BYTES: Final = _SALT_BYTES + _LIMITS.size
_SEALED_BYTES: Final = _HEAD_BYTES + SecretBox.NONCE_SIZE + _SECRET_BYTES + SecretBox.MACBYTES

_TRIES: Final = 3
_TERMINAL: Final = "/dev/tty"


class PassphraseError(Exception):
    """There is no passphrase, or it is not the right one; the text says what to do."""


class WrongPassphrase(PassphraseError):
    """A passphrase does not open a key."""


def seal(secret: bytes, passphrase: str, prefix: str, comment: str = "") -> str:
    """Return the line of a *secret* of 32 bytes under *passphrase*; takes half a second, other greenlets run."""
    salt = secrets.token_bytes(_SALT_BYTES)
    key = _derive(passphrase, salt, ARGON2_PASSES, ARGON2_MEMORY_KIB, prefix)
    sealed = salt + _LIMITS.pack(ARGON2_PASSES, ARGON2_MEMORY_KIB) + bytes(SecretBox(key).encrypt(secret))
    return f"{prefix} {base64.b64encode(sealed).decode('ascii')} {comment}".rstrip(" ")


def unseal(line: str, passphrase: str, prefix: str) -> bytes:
    """Return the secret of a *line* that `seal` wrote; takes half a second, in which other greenlets run.

    Raises:
        KeyFormatError: *line* is not in that form, or asks for more work than is allowed.
        WrongPassphrase: it was sealed with another passphrase, or changed since.
    """
    words = line.split(None, 2)
    if len(words) < 2 or words[0] != prefix:
        raise KeyFormatError(f"an encrypted key is a line of {prefix}, base64, and a comment")
    try:
        sealed = base64.b64decode(words[1], validate=True)
    except ValueError:
        raise KeyFormatError("the encrypted key is not base64: copy the whole line again") from None
    if len(sealed) != _SEALED_BYTES:
        raise KeyFormatError(f"the encrypted key has {len(sealed)} bytes instead of {_SEALED_BYTES}: copy it again")
    passes, memory_kib = _LIMITS.unpack(sealed[_SALT_BYTES:_HEAD_BYTES])
    if not (1 <= passes <= ARGON2_PASSES_MAX and 8 <= memory_kib <= ARGON2_MEMORY_MAX_KIB):
        raise KeyFormatError(
            f"the encrypted key asks for {passes} passes over {memory_kib} KiB, and at most {ARGON2_PASSES_MAX} over"
            f" {ARGON2_MEMORY_MAX_KIB} are allowed: it was damaged, or is no key of this program"
        )
    key = _derive(passphrase, sealed[:_SALT_BYTES], passes, memory_kib, prefix)
    try:
        return bytes(SecretBox(key).decrypt(sealed[_HEAD_BYTES:]))
    except CryptoError:
        raise WrongPassphrase("the passphrase is wrong") from None


def _derive(passphrase: str, salt: bytes, passes: int, memory_kib: int, prefix: str) -> bytes:
    # In a thread, which libsodium lets run beside this one: a run with two hundred hosts must not stop for it.
    arguments = (_SECRET_BYTES, passphrase.encode("utf-8", "surrogateescape"), salt, passes, memory_kib * 1024)
    stretched: bytes = gevent.get_hub().threadpool.apply(argon2id.kdf, arguments)
    return hashlib.blake2b(f"{prefix} v1\0".encode() + stretched, digest_size=_SECRET_BYTES).digest()


# --- where it comes from ---

_asking: Final = RLock()
#: What was opened, with its passphrase, and what was not: two hundred hosts ask once, and wait once for a wrong answer.
_opened: Final[dict[str, tuple[bytes, str]]] = {}
_refused: Final[dict[tuple[str, str | None], PassphraseError]] = {}


def open_with_passphrase(line: str, prefix: str, what: str) -> tuple[bytes, str]:
    """Return the secret of an encrypted *line*, and the passphrase that has opened it; asks once in a process.

    The passphrase is that of $PYINFRA_AGENT_PASSPHRASE, else the first line of the file that
    $PYINFRA_AGENT_PASSPHRASE_FILE names, else what is typed at the terminal, three times at most.

    Args:
        line: as `seal` returns it.
        prefix: of the line.
        what: is opened, for people.

    Raises:
        PassphraseError: the passphrase is wrong, or there is nowhere to take it from.
        KeyFormatError: as `unseal`.
    """
    with _asking:  # one question at a time, whoever waits meanwhile
        if line not in _opened:
            source, passphrase = _given_passphrase()
            if (line, passphrase) in _refused:
                raise _refused[line, passphrase]
            try:
                if passphrase is None:
                    _opened[line] = _open_at_terminal(line, prefix, what)
                else:
                    _opened[line] = unseal(line, passphrase, prefix), passphrase
            except WrongPassphrase as error:
                text = str(error) if passphrase is None else f"the passphrase of {what} is not the one in {source}"
                _refused[line, passphrase] = WrongPassphrase(text)
                raise _refused[line, passphrase] from None
        return _opened[line]


def _open_at_terminal(line: str, prefix: str, what: str) -> tuple[bytes, str]:
    for left in reversed(range(_TRIES)):
        passphrase = _ask(f"Passphrase of {what}: ", what)
        try:
            return unseal(line, passphrase, prefix), passphrase
        except WrongPassphrase:
            if left:
                print("That is not the passphrase: try again.", file=sys.stderr)
    raise WrongPassphrase(f"the passphrase of {what} was wrong {_TRIES} times")


def ask_new_passphrase(what: str) -> str:
    """Ask at the terminal for a new passphrase, twice; "" means that none is wanted.

    Raises:
        PassphraseError: there is no terminal, or the two differ.
    """
    first = _ask(f"New passphrase of {what} (empty for none): ", what)
    if first != _ask("The same again: ", what):
        raise PassphraseError("the two passphrases differ: nothing was changed")
    return first


def _given_passphrase() -> tuple[str, str | None]:
    if PASSPHRASE_VARIABLE in os.environ:
        return f"${PASSPHRASE_VARIABLE}", os.environ[PASSPHRASE_VARIABLE]
    name = os.environ.get(PASSPHRASE_FILE_VARIABLE)
    if not name:
        return "", None
    path = Path(name).expanduser()
    try:
        text = read_private(path, "the passphrase file")
    except PrivateFileError as error:
        raise PassphraseError(str(error)) from None
    except OSError as error:
        raise PassphraseError(f"the passphrase file {path} cannot be read: {error.strerror}") from error
    if text is None:
        raise PassphraseError(f"${PASSPHRASE_FILE_VARIABLE} names {path}, which is not there")
    return f"{path}, which ${PASSPHRASE_FILE_VARIABLE} names", text.partition("\n")[0].removesuffix("\r")


def _ask(prompt: str, what: str) -> str:
    try:
        # getpass would go on without one, and wait for a line on standard input.
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        return getpass.getpass(prompt)
    except (OSError, EOFError):
        raise PassphraseError(
            f"{what} is under a passphrase, and there is no terminal to ask for it: set ${PASSPHRASE_VARIABLE}, or"
            f" ${PASSPHRASE_FILE_VARIABLE} to the name of a file"
        ) from None
