"""The Noise protocol framework, revision 34: the XX pattern over X25519 and BLAKE2b.

The names are the specification's own, and each class cites its section, so that the two can be read side by side.
Nothing here knows how messages travel: `_link` does.

Errors: `HandshakeFailed` for what a peer's handshake message did wrong, `RecordInvalid` for a ciphertext that does not
verify, `LocalProtocolError` for calls out of turn. A `HandshakeState` that raised must be thrown away.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from nacl.bindings import (
    crypto_aead_aes256gcm_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError, UnavailableError

from ._aead import choose_aead
from ._constants_link import HASH, KEY, MAX_NONCE, TAG
from ._errors import HandshakeFailed, KeyFormatError, LocalProtocolError, RecordInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CipherState", "HandshakeState", "KeyPair", "Suite", "SymmetricState", "aes_available"]


class Suite(enum.IntEnum):
    """A cipher suite; the value is its byte in a preface."""

    CHACHAPOLY = 1
    AESGCM = 2

    @property
    def protocol_name(self) -> bytes:
        """The Noise protocol name (section 8), which is what binds the choice of suite to the handshake."""
        return b"Noise_XX_25519_%b_BLAKE2b" % _NAMES[self]


@functools.cache
def aes_available() -> bool:
    """Whether this processor has the instructions that libsodium's AES-GCM needs."""
    try:
        crypto_aead_aes256gcm_encrypt(b"", None, bytes(12), bytes(KEY))
    except UnavailableError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair: static (an identity) or ephemeral (one handshake)."""

    secret: bytes = field(repr=False)
    public: bytes

    @classmethod
    def generate(cls) -> KeyPair:
        """Return a new pair from the system's randomness."""
        return cls.from_secret(secrets.token_bytes(KEY))

    @classmethod
    def from_secret(cls, secret: bytes) -> KeyPair:
        """Return the pair of a 32-byte *secret*; any other length raises `KeyFormatError`."""
        if len(secret) != KEY:
            raise KeyFormatError(f"a secret key has {KEY} bytes, and this has {len(secret)}")
        return cls(secret, crypto_scalarmult_base(secret))


#: Section 12.3 and 12.4, and what libsodium calls them.
_NAMES: Final[Mapping[Suite, bytes]] = {Suite.CHACHAPOLY: b"ChaChaPoly", Suite.AESGCM: b"AESGCM"}
_AEADS: Final[Mapping[Suite, str]] = {Suite.CHACHAPOLY: "chacha20poly1305_ietf", Suite.AESGCM: "aes256gcm"}


class CipherState:
    """A key and a counter (section 5.1); one for each direction of a link.

    Raises:
        LocalProtocolError: a suite whose instructions this processor lacks.
    """

    __slots__ = ("_aead", "_suite", "n")

    def __init__(self, suite: Suite, key: bytes) -> None:
        if suite is Suite.AESGCM and not aes_available():
            raise LocalProtocolError("this processor has no AES")
        self._suite = suite
        self._aead = choose_aead(_AEADS[suite], key)
        self.n = 0

    def seal(self, buffer: bytearray, start: int, end: int, ad: bytes = b"") -> None:
        """Encrypt what stands in *buffer* between *start* and *end*, where it stands; the tag goes behind it.

        Raises:
            LocalProtocolError: every nonce has been used.
        """
        n = self.n
        if n == MAX_NONCE:
            raise LocalProtocolError("every nonce of this key has been used: open a new link")
        # Counted before it is used: an exception on the way (a signal handler's, say) may waste a nonce, never repeat
        # one.
        self.n = n + 1
        self._aead.seal(n, ad, buffer, start, end)

    def open(self, data: bytes | bytearray | memoryview, start: int, end: int, ad: bytes = b"") -> bytearray:
        """Return the plaintext of the ciphertext that stands in *data* between *start* and *end*.

        Raises:
            RecordInvalid: it was not sealed with this key, nonce and *ad*; the nonce is not counted.
        """
        if self.n == MAX_NONCE:
            raise RecordInvalid("the peer has used every nonce of this key")
        if end - start < TAG:
            raise RecordInvalid(f"a ciphertext of {end - start} bytes has no room for its tag")
        plaintext = self._aead.open(self.n, ad, data, start, end)
        if plaintext is None:
            raise RecordInvalid("the tag does not verify: tampered with, repeated, or out of order")
        self.n += 1
        return plaintext

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        """Return *plaintext* sealed, `TAG` bytes longer; raises as `seal`."""
        buffer = bytearray(plaintext) + bytes(TAG)
        self.seal(buffer, 0, len(plaintext), ad)
        return bytes(buffer)

    def decrypt_with_ad(self, ad: bytes, ciphertext: bytes) -> bytes:
        """Return the plaintext of *ciphertext*; raises as `open`."""
        return bytes(self.open(ciphertext, 0, len(ciphertext), ad))

    def rekey(self) -> None:
        """Replace the key by a one-way function of it (section 4.2, REKEY); the counter runs on."""
        # The fixed nonce is safe because neither direction ever seals anything else with MAX_NONCE, and because a
        # key is asked for its successor once.
        buffer = bytearray(KEY + TAG)
        self._aead.seal(MAX_NONCE, b"", buffer, 0, KEY)
        self._aead = choose_aead(_AEADS[self._suite], bytes(buffer[:KEY]))


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """HKDF of section 4.3 with two outputs of `HASH` bytes."""
    temporary = _hmac(chaining_key, material)
    first = _hmac(temporary, b"\x01")
    return first, _hmac(temporary, first + b"\x02")


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.blake2b).digest()


def _dh(pair: KeyPair, public: bytes) -> bytes:
    # PyNaCl hands libsodium a pointer without looking at the length behind it.
    if len(public) != KEY:
        raise HandshakeFailed(f"a public key has {KEY} bytes, and this has {len(public)}")
    try:
        return crypto_scalarmult(pair.secret, public)
    except CryptoError:
        # libsodium refuses a result of all zeros (section 12.1): the shared secret would be one that anybody knows.
        raise HandshakeFailed("the peer's public key is a point of low order") from None


class SymmetricState:
    """The chaining key, the handshake hash and the current cipher (section 5.2)."""

    __slots__ = ("_chaining_key", "_cipher", "_suite", "handshake_hash")

    def __init__(self, suite: Suite) -> None:
        name = suite.protocol_name
        self._suite = suite
        self.handshake_hash = name.ljust(HASH, b"\0")
        self._chaining_key = self.handshake_hash
        self._cipher: CipherState | None = None

    @property
    def has_key(self) -> bool:
        """Whether payloads are encrypted by now."""
        return self._cipher is not None

    def mix_key(self, material: bytes) -> None:
        """Derive the next chaining key and cipher key from *material*, a DH result."""
        self._chaining_key, key = _hkdf(self._chaining_key, material)
        self._cipher = CipherState(self._suite, key[:KEY])

    def mix_hash(self, data: bytes) -> None:
        """Make the handshake hash depend on *data*."""
        self.handshake_hash = hashlib.blake2b(self.handshake_hash + data).digest()

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Return *plaintext* sealed, or as it is while there is no key."""
        ciphertext = plaintext
        if self._cipher is not None:
            ciphertext = self._cipher.encrypt_with_ad(self.handshake_hash, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """Return the plaintext of *ciphertext*; raises `HandshakeFailed` where it does not verify."""
        plaintext = ciphertext
        if self._cipher is not None:
            try:
                plaintext = self._cipher.decrypt_with_ad(self.handshake_hash, ciphertext)
            except RecordInvalid as error:
                raise HandshakeFailed(f"the handshake does not verify: {error}") from None
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """Return the ciphers of the records: initiator to responder, and back."""
        first, second = _hkdf(self._chaining_key, b"")
        return CipherState(self._suite, first[:KEY]), CipherState(self._suite, second[:KEY])


# Section 7.5. The letters of a DH token name the initiator's key, then the responder's.
_Token = Literal["e", "s", "ee", "es", "se"]
XX: Final[tuple[tuple[_Token, ...], ...]] = (
    ("e",),
    ("e", "ee", "s", "es"),
    ("s", "se"),
)


class HandshakeState:
    """One handshake, seen by one of its sides (section 5.3).

    *ephemeral* is given by an initiator whose first message left before the responder had chosen the suite, and by
    tests that replay vectors; it must never serve two handshakes. Everybody else leaves it out.
    """

    __slots__ = ("_initiator", "_own", "_remote", "_step", "_symmetric")

    def __init__(
        self, suite: Suite, *, initiator: bool, prologue: bytes, static: KeyPair, ephemeral: KeyPair | None = None
    ) -> None:
        self._initiator = initiator
        self._own: dict[str, KeyPair] = {"s": static}
        if ephemeral is not None:
            self._own["e"] = ephemeral
        self._remote: dict[str, bytes] = {}
        self._step = 0
        self._symmetric = SymmetricState(suite)
        self._symmetric.mix_hash(prologue)

    @property
    def finished(self) -> bool:
        """Whether all three messages have been written or read."""
        return self._step == len(XX)

    @property
    def remote_static(self) -> bytes:
        """The peer's static public key, once the message that carries it has been read."""
        try:
            return self._remote["s"]
        except KeyError:
            raise LocalProtocolError("the peer's static key has not arrived yet") from None

    @property
    def handshake_hash(self) -> bytes:
        """A value of 64 bytes that is the same on both sides and in no other handshake (section 11.2)."""
        self._require_finished()
        return self._symmetric.handshake_hash

    def write_message(self, payload: bytes) -> bytes:
        """Return our next handshake message, carrying *payload* (readable by anybody in message 1)."""
        parts = []
        for token in self._tokens(writing=True):
            if token == "e":
                if "e" not in self._own:
                    self._own["e"] = KeyPair.generate()
                public = self._own["e"].public
                self._symmetric.mix_hash(public)
                parts.append(public)
            elif token == "s":
                parts.append(self._symmetric.encrypt_and_hash(self._own["s"].public))
            else:
                self._mix_dh(token)
        parts.append(self._symmetric.encrypt_and_hash(payload))
        self._step += 1
        return b"".join(parts)

    def read_message(self, message: bytes) -> bytes:
        """Return the payload of the peer's next handshake message.

        Raises:
            HandshakeFailed: it is too short, was tampered with, or holds a key that is none.
        """
        symmetric = self._symmetric
        for token in self._tokens(writing=False):
            if token == "e":
                public, message = _take(message, KEY)
                symmetric.mix_hash(public)
                self._remote["e"] = public
            elif token == "s":
                sealed, message = _take(message, KEY + TAG if symmetric.has_key else KEY)
                self._remote["s"] = symmetric.decrypt_and_hash(sealed)
            else:
                self._mix_dh(token)
        payload = symmetric.decrypt_and_hash(message)
        self._step += 1
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """Return the ciphers of what we send and of what we receive."""
        self._require_finished()
        forth, back = self._symmetric.split()
        return (forth, back) if self._initiator else (back, forth)

    def _tokens(self, *, writing: bool) -> tuple[_Token, ...]:
        ours = (self._step % 2 == 0) == self._initiator
        if self.finished or ours != writing:
            raise LocalProtocolError("a handshake message out of turn")
        return XX[self._step]

    def _mix_dh(self, token: _Token) -> None:
        own, remote = tuple(token) if self._initiator else tuple(reversed(token))
        self._symmetric.mix_key(_dh(self._own[own], self._remote[remote]))

    def _require_finished(self) -> None:
        if not self.finished:
            raise LocalProtocolError("the handshake is not over")


def _take(message: bytes, length: int) -> tuple[bytes, bytes]:
    if len(message) < length:
        raise HandshakeFailed("a handshake message is cut short")
    return message[:length], message[length:]
