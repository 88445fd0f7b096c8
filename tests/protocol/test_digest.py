"""The check of a transfer: the CRC-32 that everybody knows, of the bytes that SPEC.md names, however they are cut."""

from __future__ import annotations

import itertools
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol import Digest
from pyinfra_agent_protocol._digest import DIGEST_BYTES, DIGEST_STRIDE, DIGEST_WHOLE_BYTES
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
        (bytes(number % 251 for number in range(100_000)), "f321674a"),  # of SPEC.md section 9.6
    ],
)
def test_digest_has_the_published_value(content, expected):
    assert digest_of(content).hex() == expected


@reproducible(100)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_digest_of_a_small_file_is_the_crc_of_all_its_bytes(chunks):
    whole = b"".join(chunks)
    assert digest_of(*chunks) == digest_of(whole) == zlib.crc32(whole).to_bytes(4, "big")


@reproducible(100)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 3 * DIGEST_WHOLE_BYTES), max_size=6))
def test_digest_of_a_large_file_is_that_of_the_named_bytes_however_it_is_cut(seed, cuts):
    whole = random.Random(seed).randbytes(3 * DIGEST_WHOLE_BYTES)
    named = (number for number in range(DIGEST_WHOLE_BYTES, len(whole)) if number % DIGEST_STRIDE == 0)
    expected = zlib.crc32(whole[:DIGEST_WHOLE_BYTES] + bytes(whole[number] for number in named)).to_bytes(4, "big")
    edges = [0, *sorted(cuts), len(whole)]
    chunks = [memoryview(whole)[start:end] for start, end in itertools.pairwise(edges)]
    assert digest_of(*chunks) == digest_of(whole) == expected


@pytest.mark.parametrize("rows", [False, True], ids=["noise", "rows of 64 bytes"])
def test_digest_sees_a_piece_that_is_lost_doubled_exchanged_or_displaced(rows):
    """The mistakes that it is there for, each by one frame, in a file whose rows are alike at first sight."""
    chance = random.Random(1)
    size = 16 * 1024
    row = (lambda: b"row     " + chance.randbytes(8) + bytes(48)) if rows else (lambda: chance.randbytes(64))
    pieces = [b"".join(row() for _ in range(size // 64)) for _ in range(32)]
    right = digest_of(*pieces)
    for at in range(len(pieces) - 2):
        wrong = [
            [*pieces[:at], *pieces[at + 1 :]],
            [*pieces[:at], pieces[at], *pieces[at:]],
            [*pieces[:at], pieces[at + 1], pieces[at], *pieces[at + 2 :]],
            [*pieces[:at], pieces[at + 1], *pieces[at + 1 :]],
            [*pieces[:at], b"".join(pieces[at:])[1:], b"x"],
        ]
        assert right not in [digest_of(*each) for each in wrong], at


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
