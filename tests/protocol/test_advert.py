"""What an agent says about itself in DNS-SD."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol.advert import MAX_ADVERT_BYTES, Advert, BadAdvert, parse_advert
from pyinfra_agent_protocol.keys import KeyPair, fingerprint

PRINT = fingerprint(KeyPair.generate().public)
FULL = Advert(PRINT, ("web", "db.main", "eu_1"), "Debian GNU/Linux 12 (bookworm)", "x86_64", "0.1.0")


def test_advert_survives_its_record():
    assert parse_advert(FULL.strings()) == FULL
    assert parse_advert(Advert(PRINT).strings()) == Advert(PRINT)


def test_advert_says_its_version_first_and_stays_small():
    strings = FULL.strings()
    assert strings[0] == b"v=1"
    assert sum(len(string) + 1 for string in strings) <= MAX_ADVERT_BYTES
    assert [string.partition(b"=")[0] for string in strings] == [b"v", b"fp", b"groups", b"os", b"arch", b"sw"]


@pytest.mark.parametrize(
    "advert",
    [
        Advert("nonsense"),
        Advert(PRINT, ("all",)),
        Advert(PRINT, ("a,b",)),
        Advert(PRINT, ("a b",)),
        Advert(PRINT, ("x" * 65,)),
        Advert(PRINT, tuple(f"g{number}" for number in range(33))),
        Advert(PRINT, tuple("x" * 60 + str(number) for number in range(10))),
        Advert(PRINT, os="\x1b[31m"),
        Advert(PRINT, arch="x" * 65),
        Advert(PRINT, os="é" * 64, arch="é" * 64, software="é" * 64),
    ],
)
def test_advert_that_would_be_refused_is_not_written(advert):
    with pytest.raises(BadAdvert):
        advert.strings()


@pytest.mark.parametrize(
    ("strings", "words"),
    [
        ([], "which version"),
        ([b""], "which version"),
        ([b"v=", b"fp=" + PRINT.encode()], "which version"),
        ([b"v=\xc2\xb2", b"fp=" + PRINT.encode()], "which version"),
        ([b"v=1"], "no fingerprint"),
        ([b"v=1", b"fp=\xff\xfe"], "no fingerprint"),
        ([b"v=1", b"fp=" + PRINT.upper().encode()], "no fingerprint"),
        ([b"x=1"] * 65, "too many"),
    ],
)
def test_record_that_is_no_advert_is_refused(strings, words):
    with pytest.raises(BadAdvert, match=words):
        parse_advert(strings)


def test_value_that_a_terminal_would_obey_is_left_out():
    """The rest of the advert still counts."""
    strings = [
        b"V=2",
        b"v=1",
        b"fp=" + PRINT.encode(),
        b"groups=web,all,\x1b[2J,web,,ok-1",
        b"os=\x1b]0;x\x07",
        b"arch=\xff",
        "sw=1.0\u202e".encode(),
        b"other=\x00",
    ]
    assert parse_advert(strings) == Advert(PRINT, ("web", "ok-1"), version=2)


@given(st.lists(st.binary(max_size=300), max_size=70))
def test_any_record_is_read_or_refused(strings):
    with pytest.raises(BadAdvert):
        parse_advert(strings)
    advert = parse_advert([b"v=1", b"fp=" + PRINT.encode(), *strings[:60]])
    assert all(word.isprintable() for word in (advert.os, advert.arch, advert.software, *advert.groups))
