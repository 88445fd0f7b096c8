"""The check of a transfer is the CRC-32 that everybody knows, however the bytes are cut."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol import Digest
from pyinfra_agent_protocol._digest import DIGEST_BYTES
from tests.protocol.helpers import reproducible


def digest_of(*chunks):
    digest = Digest()
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "00000000"),
        (b"123456789", "cbf43926"),  # the check value by which catalogues of CRCs tell this one from others
        (b"hello\n", "363a3020"),
        (bytes(32), "190a55ad"),
    ],
)
def test_digest_has_the_published_value(content, expected):
    assert digest_of(content).hex() == expected


@reproducible(100)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_digest_is_that_of_the_whole_however_it_is_cut(chunks):
    whole = b"".join(chunks)
    assert digest_of(*chunks) == digest_of(whole) == zlib.crc32(whole).to_bytes(4, "big")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_digest_takes_any_buffer(kind):
    assert digest_of(kind(b"123456789")) == digest_of(b"123456789")


def test_digest_can_be_asked_for_before_the_end():
    digest = Digest()
    digest.update(b"1234")
    assert digest.digest() == digest_of(b"1234")
    digest.update(b"56789")
    assert digest.digest() == digest.digest() == digest_of(b"123456789")


def test_digest_that_starts_with_zero_bytes_keeps_its_length():
    """The field of a message has exactly this length: a short number is padded."""
    content = next(text for number in range(10_000) if zlib.crc32(text := b"%d" % number) < 1 << 24)
    assert len(digest_of(content)) == DIGEST_BYTES
    assert digest_of(content)[0] == 0


def test_digests_do_not_share_their_state():
    one, other = Digest(), Digest()
    one.update(b"x")
    assert other.digest() == bytes(DIGEST_BYTES)
