"""Certificates: one authority's word for many keys, so that no machine needs a list of all others (SPEC.md section 16).

    pyinfra-agent-authority BASE64 comment            public: whoever trusts it trusts what it has signed
    pyinfra-agent-secret-authority BASE64 comment     secret: the fleet key itself
    pyinfra-agent-certificate BASE64 comment          what an agent or a controller shows with its key

An authority is an Ed25519 key (RFC 8032). What it signs is exactly the bytes that are carried, and they are verified
before anything of them is parsed. A certificate says nothing by itself: it must be for the key that the handshake has
proved, for the role that the peer plays, for the name that was asked for, and for now.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Final

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from ._constants_link import CERTIFICATE_MAX_BYTES, KEY
from ._errors import KeyFormatError, LocalProtocolError, MessageInvalid
from ._fields import Message, array, binary, choice, integer, text
from ._fields import field as message_field
from .keys import _decode, _format, _parse, fingerprint_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CERTIFICATE_MAX_BYTES",
    "CLOCK_SKEW_SECONDS",
    "Authority",
    "AuthorityKey",
    "Certificate",
    "CertificateRefused",
    "Revocations",
    "certified_groups",
    "check_certificate",
    "format_authority",
    "format_authority_secret",
    "format_certificate",
    "inspect_certificate",
    "open_certificate",
    "parse_authority",
    "parse_authority_secret",
    "parse_certificate",
    "same_name",
]

AUTHORITY_PREFIX: Final = "pyinfra-agent-authority"
AUTHORITY_SECRET_PREFIX: Final = "pyinfra-agent-secret-authority"
CERTIFICATE_PREFIX: Final = "pyinfra-agent-certificate"

#: How far two machines' clocks may be apart without a certificate being refused for it.
CLOCK_SKEW_SECONDS: Final = 300

_CONTEXT: Final = b"pyinfra-agent certificate v1\0"
_AUTHORITY_CONTEXT: Final = b"pyinfra-agent authority v1\0"
_ID_BYTES: Final = 16
_SIGNATURE_BYTES: Final = 64
_NAMES_MAX: Final = 32
_GROUPS_MAX: Final = 32
_U64: Final = 2**64 - 1
#: The end of the year 9999: later dates cannot be shown.
_TIME_MAX: Final = 253_402_300_799


class CertificateRefused(Exception):
    """A certificate does not prove what it should; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Whose signatures are believed, and for what.

    Attributes:
        public: 32 bytes, an Ed25519 public key.
        comment: what its line calls it.
        names: patterns (fnmatch) that one of a certificate's names must match; None allows all.
        groups: the groups that it may put somebody in; None allows all.
    """

    public: bytes
    comment: str = ""
    names: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None

    @property
    def id(self) -> bytes:
        """What its certificates name it by: 16 bytes of BLAKE2b over a fixed context and the public key."""
        return _authority_id(self.public)

    @property
    def fingerprint(self) -> str:
        """Its short form, for people to compare."""
        return fingerprint_of(_AUTHORITY_CONTEXT, self.public)


@dataclass(frozen=True, slots=True)
class Certificate(Message):
    """What an authority says of one key.

    Attributes:
        key: the X25519 key that it is for.
        role: `agent` or `controller`; never both, so that neither can stand in for the other.
        names: an agent's host names; a controller's own, of which the first is shown in logs.
        not_before, not_after: seconds since 1970 (UTC), both included.
        serial: random, by which it is revoked.
        groups: pyinfra groups of an agent; of a controller what an authority's line may ask for.
    """

    NAME: ClassVar[str] = "certificate"
    key: bytes = message_field(binary(KEY, least=KEY))
    role: str = message_field(choice("agent", "controller"))
    names: tuple[str, ...] = message_field(array(text(255), least=1, most=_NAMES_MAX))
    not_before: int = message_field(integer(0, _TIME_MAX))
    not_after: int = message_field(integer(0, _TIME_MAX))
    serial: int = message_field(integer(0, _U64))
    groups: tuple[str, ...] = message_field(array(text(64), most=_GROUPS_MAX), ())

    @property
    def serial_text(self) -> str:
        """The serial as people and revocation lists write it: 16 hexadecimal digits."""
        return f"{self.serial:016x}"


@dataclass(frozen=True, slots=True)
class AuthorityKey:
    """The secret half of an authority: 32 bytes, the seed of an Ed25519 key."""

    seed: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        """The public half, 32 bytes."""
        return bytes(SigningKey(self.seed).verify_key)

    def sign(self, certificate: Certificate) -> bytes:
        """Return *certificate* as it travels: authority id, signature, msgpack map.

        Raises:
            LocalProtocolError: a field is out of its bounds, or it is longer than `CERTIFICATE_MAX_BYTES`.
        """
        if certificate.not_before > certificate.not_after:
            raise LocalProtocolError("a certificate cannot end before it begins")
        body = certificate.encode()
        identity = _authority_id(self.public)
        signature = SigningKey(self.seed).sign(_CONTEXT + identity + body).signature
        data = identity + signature + body
        if len(data) > CERTIFICATE_MAX_BYTES:
            raise LocalProtocolError(
                f"this certificate takes {len(data)} bytes and {CERTIFICATE_MAX_BYTES} are allowed:"
                " give it fewer names or groups"
            )
        return data


def open_certificate(data: bytes, authorities: Mapping[bytes, Authority]) -> tuple[Certificate, Authority]:
    """Verify *data* and read it.

    Args:
        data: what a peer showed.
        authorities: those that are believed, by their `id`.

    Raises:
        CertificateRefused: nobody who is believed has signed it, or what was signed is no certificate.
    """
    if not _ID_BYTES + _SIGNATURE_BYTES < len(data) <= CERTIFICATE_MAX_BYTES:
        raise CertificateRefused(f"a certificate of {len(data)} bytes is none")
    identity, signature, body = (
        data[:_ID_BYTES],
        data[_ID_BYTES : _ID_BYTES + _SIGNATURE_BYTES],
        data[_ID_BYTES + _SIGNATURE_BYTES :],
    )
    authority = authorities.get(identity)
    if authority is None:
        raise CertificateRefused("its certificate is signed by an authority that is not trusted here")
    try:
        VerifyKey(authority.public).verify(_CONTEXT + identity + body, signature)
    except BadSignatureError:
        raise CertificateRefused("the signature of its certificate does not verify") from None
    try:
        return Certificate.decode(body), authority
    except MessageInvalid as error:
        raise CertificateRefused(f"its authority signed what is no certificate: {error}") from None


def inspect_certificate(data: bytes) -> Certificate:
    """Read *data* without verifying it: for somebody's own certificate, and to show what one says.

    Raises:
        KeyFormatError: it is no certificate.
    """
    try:
        return Certificate.decode(data[_ID_BYTES + _SIGNATURE_BYTES :])
    except MessageInvalid as error:
        raise KeyFormatError(f"this is no certificate: {error}") from None


def check_certificate(
    certificate: Certificate,
    authority: Authority,
    *,
    key: bytes,
    role: str,
    now: float,
    name: str | None = None,
    revoked: Revocations | None = None,
) -> None:
    """Refuse a verified *certificate* that is not for this peer, here and now.

    Args:
        certificate: as `open_certificate` returned it.
        authority: who signed it.
        key: the static key that the handshake proved.
        role: what the peer is: `agent` or `controller`.
        now: seconds since 1970 by this machine's clock; `CLOCK_SKEW_SECONDS` are forgiven.
        name: what the agent must be called; None where any name of the certificate will do.
        revoked: what its authority has taken back.

    Raises:
        CertificateRefused: with the first reason found.
    """
    if certificate.key != key:
        raise CertificateRefused("its certificate is for another key")
    if certificate.role != role:
        raise CertificateRefused(f"its certificate is for the role {certificate.role} and not {role}")
    if name is not None and not any(same_name(name, known) for known in certificate.names):
        raise CertificateRefused(f"its certificate is for {', '.join(certificate.names)} and not for {name}")
    if now < certificate.not_before - CLOCK_SKEW_SECONDS:
        raise CertificateRefused("its certificate is not valid yet: is this machine's clock right?")
    if now > certificate.not_after + CLOCK_SKEW_SECONDS:
        raise CertificateRefused("its certificate has expired")
    if revoked is not None and revoked.covers(certificate):
        raise CertificateRefused(f"its certificate {certificate.serial_text} was revoked")
    wanted = certificate.names if name is None else (name,)
    if authority.names is not None and not any(fnmatchcase(n.lower(), p) for n in wanted for p in authority.names):
        raise CertificateRefused(f"its authority is trusted only for {', '.join(authority.names)}")
    if authority.groups is not None and role == "controller" and not set(certificate.groups) & set(authority.groups):
        raise CertificateRefused(f"its authority is trusted only for members of {', '.join(authority.groups)}")


def certified_groups(certificate: Certificate, authority: Authority) -> tuple[str, ...]:
    """Return the groups of *certificate* that its authority may give."""
    if authority.groups is None:
        return certificate.groups
    return tuple(group for group in certificate.groups if group in authority.groups)


def same_name(one: str, other: str) -> bool:
    """Tell whether two host names are the same: case and a final dot do not count (RFC 1034 section 3.1)."""
    return one.lower().rstrip(".") == other.lower().rstrip(".")


class Revocations:
    """What an authority has taken back: serials, and keys with every certificate that they ever had."""

    def __init__(self, serials: Iterable[int] = (), keys: Iterable[bytes] = ()) -> None:
        self.serials = frozenset(serials)
        self.keys = frozenset(keys)

    def covers(self, certificate: Certificate) -> bool:
        """Tell whether *certificate* is taken back."""
        return certificate.serial in self.serials or certificate.key in self.keys


def format_authority(public: bytes, comment: str = "") -> str:
    """Return the line of an authority's *public* key, without a newline; raises `KeyFormatError`."""
    _check_length(public)
    return _format(AUTHORITY_PREFIX, public, comment)


def parse_authority(line: str) -> Authority:
    """Return the authority that *line* names; raises `KeyFormatError` unless it is what `format_authority` writes."""
    prefix, key, comment = _parse(line)
    if prefix == AUTHORITY_SECRET_PREFIX:
        raise KeyFormatError(f"this is a secret key: put the line that starts with {AUTHORITY_PREFIX} here instead")
    if prefix != AUTHORITY_PREFIX:
        raise KeyFormatError(f"an authority is a line of {AUTHORITY_PREFIX}, its key in base64, and a comment")
    return Authority(_decode(key), comment)


def format_authority_secret(key: AuthorityKey, comment: str = "") -> str:
    """Return the line of a fleet key, without a newline; raises `KeyFormatError`."""
    return _format(AUTHORITY_SECRET_PREFIX, key.seed, comment)


def parse_authority_secret(content: str) -> AuthorityKey:
    """Return the fleet key of a file's *content*: one line among empty lines and `#` comments.

    Raises:
        KeyFormatError: there is no such line, more than one, or one in another form.
    """
    lines = [line for line in content.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) != 1:
        raise KeyFormatError(f"a fleet key's file holds one line of {AUTHORITY_SECRET_PREFIX}, this holds {len(lines)}")
    prefix, key, _comment = _parse(lines[0])
    if prefix != AUTHORITY_SECRET_PREFIX:
        raise KeyFormatError(f"a fleet key is a line of {AUTHORITY_SECRET_PREFIX}, the key in base64, and a comment")
    return AuthorityKey(_decode(key))


def format_certificate(data: bytes, comment: str = "") -> str:
    """Return the line of a signed certificate, without a newline; raises `KeyFormatError` for the comment."""
    return _format(CERTIFICATE_PREFIX, data, comment)


def parse_certificate(content: str) -> bytes:
    """Return the bytes of the one certificate in a file's *content*; they are not verified.

    Raises:
        KeyFormatError: there is none, more than one, or one in another form.
    """
    lines = [line for line in content.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) != 1:
        raise KeyFormatError(f"a certificate's file holds one line of {CERTIFICATE_PREFIX}, this holds {len(lines)}")
    prefix, encoded, _comment = _parse(lines[0])
    if prefix != CERTIFICATE_PREFIX:
        raise KeyFormatError(f"a certificate is a line of {CERTIFICATE_PREFIX}, base64, and a comment")
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise KeyFormatError("the certificate is not base64: copy the whole line again") from None
    if not _ID_BYTES + _SIGNATURE_BYTES < len(data) <= CERTIFICATE_MAX_BYTES:
        raise KeyFormatError(f"a certificate of {len(data)} bytes is none: copy the whole line again")
    return data


def _authority_id(public: bytes) -> bytes:
    return hashlib.blake2b(_AUTHORITY_CONTEXT + public, digest_size=_ID_BYTES).digest()


def _check_length(public: bytes) -> None:
    if len(public) != KEY:
        raise KeyFormatError(f"an authority's key has {KEY} bytes, and this has {len(public)}")
