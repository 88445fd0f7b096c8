"""The two ways to libsodium, held against each other and against another implementation."""

from __future__ import annotations

import random

import pytest

from pyinfra_agent_protocol import _aead
from pyinfra_agent_protocol._aead import ByBindings, Direct, choose_aead
from pyinfra_agent_protocol._constants_link import KEY, MAX_NONCE, MAX_PLAINTEXT, TAG
from pyinfra_agent_protocol._errors import LocalProtocolError
from pyinfra_agent_protocol._noise import CipherState, Suite, aes_available

CIPHERS = ["chacha20poly1305_ietf", "aes256gcm"]
SIZES = [0, 1, 15, 16, 17, 63, 64, 65, 255, 4096, 65_288, MAX_PLAINTEXT]
SECRET = bytes(range(KEY))


@pytest.fixture(params=CIPHERS)
def name(request):
    if request.param == "aes256gcm" and not aes_available():
        pytest.skip("this processor has no AES instructions")
    return request.param


@pytest.fixture(params=[Direct, ByBindings])
def make(request):
    """Return one of the two; without the direct one all would still work, and be slow without a word."""
    assert all(Direct.is_possible(name) for name in CIPHERS), "this PyNaCl has another libsodium inside"
    return request.param


def text(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def other_implementation(name):
    aead = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead")
    return (aead.AESGCM if name == "aes256gcm" else aead.ChaCha20Poly1305)(SECRET)


def nonce_bytes(name: str, n: int) -> bytes:
    return bytes(4) + n.to_bytes(8, "big" if name == "aes256gcm" else "little")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("at", [0, 2, 13])
def test_seals_in_place_what_others_seal(name, make, size, at):
    """And touches nothing before the plaintext or behind the tag."""
    plaintext, n = text(size), 2**40 + size
    buffer = bytearray(b"<" * at + plaintext + b"?" * TAG + b">" * 5)
    make(name, SECRET).seal(n, b"with", buffer, at, at + size)
    sealed = other_implementation(name).encrypt(nonce_bytes(name, n), plaintext, b"with")
    assert buffer == b"<" * at + sealed + b">" * 5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_opens_what_others_sealed(name, make, size, kind):
    plaintext, n = text(size), MAX_NONCE
    sealed = other_implementation(name).encrypt(nonce_bytes(name, n), plaintext, b"")
    data = kind(b"<<<" + sealed + b">")
    opened = make(name, SECRET).open(n, b"", data, 3, 3 + len(sealed))
    assert opened == plaintext
    assert isinstance(opened, bytearray)
    assert bytes(data) == b"<<<" + sealed + b">", "what came in is as it was"


def test_opens_nothing_that_was_changed(name, make):
    cipher = make(name, SECRET)
    buffer = bytearray(b"plain" + bytes(TAG))
    cipher.seal(7, b"ad", buffer, 0, 5)
    assert cipher.open(7, b"ad", buffer, 0, len(buffer)) == b"plain"
    assert cipher.open(8, b"ad", buffer, 0, len(buffer)) is None
    assert cipher.open(7, b"", buffer, 0, len(buffer)) is None
    assert make(name, bytes(KEY)).open(7, b"ad", buffer, 0, len(buffer)) is None
    for position in range(len(buffer)):
        changed = bytearray(buffer)
        changed[position] ^= 1
        assert cipher.open(7, b"ad", changed, 0, len(changed)) is None


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 2), (0, 5), (4, 5), (100, 100), (0, 2**40)])
def test_refuses_what_does_not_lie_in_the_buffer(name, make, start, end):
    """Libsodium would write there."""
    buffer = bytearray(4 + TAG)
    with pytest.raises(IndexError):
        make(name, SECRET).seal(1, b"", buffer, start, end)
    with pytest.raises(IndexError):
        make(name, SECRET).open(1, b"", buffer, start, end + TAG)
    assert buffer == bytes(4 + TAG)


@pytest.mark.parametrize("end", range(TAG))
def test_refuses_a_ciphertext_without_room_for_its_tag(name, make, end):
    with pytest.raises(IndexError):
        make(name, SECRET).open(1, b"", bytes(64), 0, end)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_refuses_a_key_of_another_length(name, length):
    """Libsodium would read behind it."""
    with pytest.raises(ValueError, match="32 bytes"):
        choose_aead(name, bytes(length))


def test_nothing_is_sent_that_was_not_encrypted(name, monkeypatch):
    cipher = Direct(name, SECRET)
    monkeypatch.setattr(cipher, "_encrypt", lambda *arguments: -1)
    with pytest.raises(RuntimeError):
        cipher.seal(1, b"", bytearray(4 + TAG), 0, 4)


def test_without_the_direct_way_the_other_is_taken(name, monkeypatch):
    assert isinstance(choose_aead(name, SECRET), Direct)
    monkeypatch.setattr(_aead, "ffi", None)
    assert isinstance(choose_aead(name, SECRET), ByBindings)


def test_no_cipher_is_made_that_the_processor_lacks(monkeypatch):
    """Libsodium itself would not look: the process would end at an instruction that there is not."""
    monkeypatch.setattr("pyinfra_agent_protocol._noise.aes_available", lambda: False)
    with pytest.raises(LocalProtocolError, match="AES"):
        CipherState(Suite.AESGCM, SECRET)
