"""libsodium's AEADs, sealing a record where it stands and opening it into a buffer of its own.

PyNaCl's functions take bytes and return bytes, and look at five arguments each time: for a record of 64 KiB that is
three passes over it beside the cipher's own, and for a small one five times what the cipher takes. So libsodium is
called as they call it, through the module that PyNaCl is built on, wherever that module has what is used here; else
through PyNaCl's functions. Both are the same code of libsodium, and tests hold the two against each other.

libsodium gets addresses: every length is checked here before it does.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, Protocol

from nacl import bindings
from nacl.exceptions import CryptoError

from ._constants_link import KEY, TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

try:
    from nacl._sodium import ffi, lib  # type: ignore[import-not-found]
except ImportError:  # a PyNaCl that is built otherwise
    ffi = lib = None

__all__ = ["Aead", "choose_aead"]

# Noise, sections 12.3 and 12.4: four zero bytes, then the counter, little endian for ChaChaPoly and big for AESGCM.
_NONCES: Final[Mapping[str, Callable[[int], bytes]]] = {
    "chacha20poly1305_ietf": struct.Struct("<4xQ").pack,
    "aes256gcm": struct.Struct(">4xQ").pack,
}


class Aead(Protocol):
    """One of the ciphers under one key."""

    def seal(self, n: int, ad: bytes, buffer: bytearray, start: int, end: int) -> None:
        """Replace the plaintext between *start* and *end* by its ciphertext with the nonce *n*; the tag goes behind."""

    def open(self, n: int, ad: bytes, data: bytes | bytearray | memoryview, start: int, end: int) -> bytearray | None:
        """Return the plaintext of what stands in *data* between *start* and *end*; None where its tag does not fit."""


def choose_aead(name: str, key: bytes) -> Aead:
    """Return the cipher that libsodium calls *name* under *key*; raises ValueError for one not of `KEY` bytes."""
    if len(key) != KEY:
        raise ValueError(f"a key of {KEY} bytes, not of {len(key)}")
    return Direct(name, key) if Direct.is_possible(name) else ByBindings(name, key)


class _Keyed:
    """A pair of functions of *library*, and what each call of them takes."""

    __slots__ = ("_decrypt", "_encrypt", "_key", "_nonce")

    def __init__(self, library: Any, name: str, key: bytes) -> None:  # noqa: ANN401 - neither has types
        self._encrypt = getattr(library, f"crypto_aead_{name}_encrypt")
        self._decrypt = getattr(library, f"crypto_aead_{name}_decrypt")
        self._nonce = _NONCES[name]
        self._key = key


class Direct(_Keyed):
    """An AEAD by libsodium's own functions, on addresses."""

    __slots__ = ()

    def __init__(self, name: str, key: bytes) -> None:
        super().__init__(lib, name, key)

    @staticmethod
    def is_possible(name: str) -> bool:
        """Whether this PyNaCl has them."""
        return hasattr(ffi, "from_buffer") and all(
            hasattr(lib, f"crypto_aead_{name}_{verb}") for verb in ("encrypt", "decrypt")
        )

    def seal(self, n: int, ad: bytes, buffer: bytearray, start: int, end: int) -> None:
        """See `Aead.seal`."""
        _check(start, end, len(buffer) - TAG)
        with ffi.from_buffer("unsigned char[]", buffer) as base:
            failed = self._encrypt(
                base + start, ffi.NULL, base + start, end - start, ad, len(ad), ffi.NULL, self._nonce(n), self._key
            )
        if failed:  # what stands there may be the plaintext, and must not be sent
            raise RuntimeError("libsodium could not encrypt")

    def open(self, n: int, ad: bytes, data: bytes | bytearray | memoryview, start: int, end: int) -> bytearray | None:
        """See `Aead.open`."""
        _check(start, end - TAG, len(data) - TAG)
        plaintext = bytearray(end - start - TAG)
        with ffi.from_buffer("unsigned char[]", data) as base, ffi.from_buffer("unsigned char[]", plaintext) as target:
            failed = self._decrypt(
                target, ffi.NULL, ffi.NULL, base + start, end - start, ad, len(ad), self._nonce(n), self._key
            )
        return None if failed else plaintext


class ByBindings(_Keyed):
    """An AEAD by PyNaCl's functions, on copies."""

    __slots__ = ()

    def __init__(self, name: str, key: bytes) -> None:
        super().__init__(bindings, name, key)

    def seal(self, n: int, ad: bytes, buffer: bytearray, start: int, end: int) -> None:
        """See `Aead.seal`."""
        _check(start, end, len(buffer) - TAG)
        plaintext = bytes(memoryview(buffer)[start:end])
        buffer[start : end + TAG] = self._encrypt(plaintext, ad, self._nonce(n), self._key)

    def open(self, n: int, ad: bytes, data: bytes | bytearray | memoryview, start: int, end: int) -> bytearray | None:
        """See `Aead.open`."""
        _check(start, end - TAG, len(data) - TAG)
        try:
            return bytearray(self._decrypt(bytes(memoryview(data)[start:end]), ad, self._nonce(n), self._key))
        except CryptoError:
            return None


def _check(start: int, end: int, most: int) -> None:
    """Require a range of plaintext whose tag ends within the buffer."""
    if not 0 <= start <= end <= most:
        raise IndexError(f"{start} to {end} does not lie within {most} bytes and a tag")
