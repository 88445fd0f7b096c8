"""Keys as people see them: one text form for each half, and a short form to compare by eye.

    pyinfra-agent-key BASE64 comment            public: goes into authorized_controllers and known_agents
    pyinfra-agent-secret-key BASE64 comment     secret: goes into a key file and nowhere else
    k3fqz-7mw2c-...                             fingerprint of a public key: 5 groups of 5 letters and digits

Texts are parsed strictly, so that one key has one text: whoever compares lines compares keys. No error repeats the text
that it refuses, because it may hold a secret key in the wrong place.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ._constants_link import KEY
from ._errors import KeyFormatError
from ._noise import KeyPair

__all__ = [
    "KeyPair",
    "PublicKey",
    "check_public",
    "fingerprint",
    "format_public",
    "format_secret",
    "parse_public",
    "parse_secret",
]

PUBLIC_PREFIX: Final = "pyinfra-agent-key"
SECRET_PREFIX: Final = "pyinfra-agent-secret-key"
MAX_COMMENT_CHARACTERS: Final = 256

FINGERPRINT_CONTEXT: Final = b"pyinfra-agent fingerprint v1\0"
FINGERPRINT_GROUPS: Final = 5
FINGERPRINT_GROUP_CHARACTERS: Final = 5  # of 5 bits each: 125 bits in all

# Curve25519's prime, and the u-coordinates whose order divides 8 (cr.yp.to/ecdh.html, "validate"): whatever secret
# they meet, the shared secret is zero.
_PRIME: Final = 2**255 - 19
_LOW_ORDER: Final = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _PRIME - 1,
        _PRIME,
        _PRIME + 1,
    }
)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key of 32 bytes and the comment that stood behind it."""

    key: bytes
    comment: str


def check_public(key: bytes) -> None:
    """Raise `KeyFormatError` unless *key* is 32 bytes that can be somebody's X25519 public key.

    Points of low order are refused (the secret shared with them is known to everybody), and so is a second spelling
    of a point (X25519 ignores the top bit and reduces the rest): a key must not pass for another one.
    """
    if len(key) != KEY:
        raise KeyFormatError(f"a public key has {KEY} bytes, and this has {len(key)}")
    number = int.from_bytes(key, "little")
    if number % 2**255 in _LOW_ORDER:
        raise KeyFormatError("this public key is a point of low order, which is nobody's key: make a new one")
    if number >= _PRIME:
        raise KeyFormatError("this public key is written in a form that X25519 does not produce: make a new one")


@lru_cache(maxsize=256)  # it stands in every line of the agent's log
def fingerprint(key: bytes) -> str:
    """Return the short form of a public *key*, for people to compare: `k3fqz-7mw2c-...`.

    The first 125 bits of BLAKE2b-256 over a fixed context and the key, in lowercase base32 (RFC 4648 section 6).

    Raises:
        KeyFormatError: *key* is not a public key.
    """
    check_public(key)
    return fingerprint_of(FINGERPRINT_CONTEXT, key)


def fingerprint_of(context: bytes, key: bytes) -> str:
    """Return the short form of 32 bytes that are a *key* of the kind that *context* names."""
    digest = hashlib.blake2b(context + key, digest_size=32).digest()
    text = base64.b32encode(digest).decode("ascii").lower()
    size = FINGERPRINT_GROUP_CHARACTERS
    return "-".join(text[start : start + size] for start in range(0, FINGERPRINT_GROUPS * size, size))


def format_public(key: bytes, comment: str = "") -> str:
    """Return the line of a public *key*, without a newline.

    Raises:
        KeyFormatError: *key* is not a public key, or *comment* does not fit on a line.
    """
    check_public(key)
    return _format(PUBLIC_PREFIX, key, comment)


def parse_public(line: str) -> PublicKey:
    """Return the key and the comment of one *line*.

    Raises:
        KeyFormatError: the line is not in exactly the form that `format_public` writes.
    """
    prefix, key, comment = _parse(line)
    if prefix == SECRET_PREFIX:
        raise KeyFormatError(f"this is a secret key: put the line that starts with {PUBLIC_PREFIX} here instead")
    if prefix != PUBLIC_PREFIX:
        raise KeyFormatError(f"a public key is a line of {PUBLIC_PREFIX}, the key in base64, and a comment")
    key_bytes = _decode(key)
    check_public(key_bytes)
    return PublicKey(key_bytes, comment)


def format_secret(pair: KeyPair, comment: str = "") -> str:
    """Return the line of the secret half of *pair*, without a newline.

    Raises:
        KeyFormatError: *comment* does not fit on a line.
    """
    return _format(SECRET_PREFIX, pair.secret, comment)


def parse_secret(text: str) -> KeyPair:
    """Return the key pair of a key file's *text*: one key line among empty lines and `#` comments.

    Raises:
        KeyFormatError: there is no key line, more than one, or one in another form.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) != 1:
        raise KeyFormatError(f"a secret key file holds one line of {SECRET_PREFIX}, and this holds {len(lines)} lines")
    prefix, key, _comment = _parse(lines[0])
    if prefix == PUBLIC_PREFIX:
        raise KeyFormatError(f"this is a public key: give the file whose line starts with {SECRET_PREFIX} instead")
    if prefix != SECRET_PREFIX:
        raise KeyFormatError(f"a secret key is a line of {SECRET_PREFIX}, the key in base64, and a comment")
    return KeyPair.from_secret(_decode(key))


def _format(prefix: str, key: bytes, comment: str) -> str:
    _check_comment(comment)
    encoded = base64.b64encode(key).decode("ascii")
    return f"{prefix} {encoded} {comment}".rstrip(" ")


def _parse(line: str) -> tuple[str, str, str]:
    prefix, _, rest = line.strip().partition(" ")
    key, _, comment = rest.lstrip(" ").partition(" ")
    comment = comment.strip(" ")
    _check_comment(comment)
    return prefix, key, comment


def _decode(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise KeyFormatError("the key is not base64: copy the whole line again") from None
    if len(key) != KEY:
        raise KeyFormatError(f"the key has {len(key)} bytes instead of {KEY}: copy the whole line again")
    if base64.b64encode(key).decode("ascii") != text:
        raise KeyFormatError("the key is not canonical base64: copy the whole line again")
    return key


def _check_comment(comment: str) -> None:
    if len(comment) > MAX_COMMENT_CHARACTERS:
        raise KeyFormatError(f"a key's comment has at most {MAX_COMMENT_CHARACTERS} characters, not {len(comment)}")
    # isprintable refuses what a terminal would obey (controls, bidirectional marks) and what would end the line.
    if not comment.isprintable():
        raise KeyFormatError("a key's comment holds a character that cannot be printed: remove it")
