"""The text forms of keys: what is written can be read, and nothing else can."""

from __future__ import annotations

import base64
import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol._errors import KeyFormatError
from pyinfra_agent_protocol.keys import (
    KeyPair,
    PublicKey,
    check_public,
    fingerprint,
    format_public,
    format_secret,
    parse_public,
    parse_secret,
)

PAIR = KeyPair.from_secret(bytes(range(32)))
BASE64 = base64.b64encode(PAIR.public).decode()
SECRET_BASE64 = base64.b64encode(PAIR.secret).decode()

# Every u-coordinate of low order, and the two above the prime that stand for 0 and 1 (cr.yp.to/ecdh.html).
LOW_ORDER_POINTS = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]

printable = st.text(max_size=256).filter(str.isprintable)


@given(secret=st.binary(min_size=32, max_size=32), comment=printable)
def test_formatted_keys_parse_to_themselves(secret: bytes, comment: str) -> None:
    """Both text forms give back the key, and the public one its comment without outer spaces."""
    pair = KeyPair.from_secret(secret)
    assert parse_public(format_public(pair.public, comment)) == PublicKey(pair.public, comment.strip(" "))
    assert parse_secret(format_secret(pair, comment)) == pair


@given(text=st.text() | st.text(alphabet="pyinfra-agent-key secret AQ=\n#"))
def test_any_text_parses_or_is_refused_as_key(text: str) -> None:
    """No text gets anything but a key or `KeyFormatError` out of the parsers."""
    for parse in (parse_public, parse_secret):
        with contextlib.suppress(KeyFormatError):
            parse(text)


def test_public_line_has_the_documented_form() -> None:
    """A public key is its prefix, canonical base64, and the comment."""
    assert format_public(PAIR.public, "web 1") == f"pyinfra-agent-key {BASE64} web 1"
    assert format_public(PAIR.public) == f"pyinfra-agent-key {BASE64}"


def test_secret_line_has_the_documented_form() -> None:
    """A secret key has a prefix of its own, so that neither passes for the other."""
    assert format_secret(PAIR, "web 1") == f"pyinfra-agent-secret-key {SECRET_BASE64} web 1"


@pytest.mark.parametrize("line", [f"  pyinfra-agent-key {BASE64}  web 1 \n", f"pyinfra-agent-key   {BASE64} web 1\r\n"])
def test_parse_public_takes_surrounding_space(line: str) -> None:
    """Spaces around the three parts do not count."""
    assert parse_public(line) == PublicKey(PAIR.public, "web 1")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "a public key is a line"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@here", "a public key is a line"),
        (f"pyinfra-agent-keys {BASE64}", "a public key is a line"),
        (f"PYINFRA-AGENT-KEY {BASE64}", "a public key is a line"),
        (f"pyinfra-agent-key\t{BASE64}", "a public key is a line"),
        ("pyinfra-agent-key", "0 bytes"),
        ("pyinfra-agent-key !!!!", "not base64"),
        ("pyinfra-agent-key ÄÖÜ=", "not base64"),
        (f"pyinfra-agent-key {BASE64[:-1]}", "not base64"),
        (f"pyinfra-agent-key {BASE64}=", "base64"),
        (f"pyinfra-agent-key {BASE64[:-4]}", "30 bytes"),
        (f"pyinfra-agent-key {BASE64[:-1]}AAAAA=", "bytes instead of 32|base64"),
        (f"pyinfra-agent-key {BASE64} tab\there", "cannot be printed"),
        (f"pyinfra-agent-key {BASE64} escape\x1b[2J", "cannot be printed"),
        (f"pyinfra-agent-key {BASE64} one\ntwo", "cannot be printed"),
        (f"pyinfra-agent-key {BASE64} \u202egnp.exe", "cannot be printed"),
        (f"pyinfra-agent-key {BASE64} {'x' * 257}", "256 characters"),
    ],
)
def test_parse_public_refuses_other_forms(line: str, complaint: str) -> None:
    """Each departure from the form is refused with its own reason."""
    with pytest.raises(KeyFormatError, match=complaint):
        parse_public(line)


def test_parse_public_refuses_uncanonical_base64() -> None:
    """The bits behind the last byte must be zero, or one key would have four texts."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = alphabet[alphabet.index(BASE64[-2]) + 1]
    twin = BASE64[:-2] + last + "="
    assert base64.b64decode(twin) == PAIR.public

    with pytest.raises(KeyFormatError, match="canonical"):
        parse_public(f"pyinfra-agent-key {twin}")


@pytest.mark.parametrize("top_bit", [0, 0x80])
@pytest.mark.parametrize("point", LOW_ORDER_POINTS)
def test_low_order_points_are_no_keys(point: str, top_bit: int) -> None:
    """A point of low order, with or without the bit that X25519 ignores, is refused wherever a key goes in or out."""
    key = bytearray.fromhex(point)
    key[-1] |= top_bit
    for use in (check_public, fingerprint, format_public):
        with pytest.raises(KeyFormatError, match="low order"):
            use(bytes(key))
    with pytest.raises(KeyFormatError, match="low order"):
        parse_public(f"pyinfra-agent-key {base64.b64encode(key).decode()}")


@pytest.mark.parametrize("number", [2**255 - 19 + 2, 2**255 - 1, 2**255 + 9, 2**256 - 1])
def test_second_spelling_of_a_point_is_no_key(number: int) -> None:
    """A number that X25519 would reduce first is refused, so that a key cannot pass for another one."""
    with pytest.raises(KeyFormatError, match="does not produce"):
        check_public(number.to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_key_of_other_length_is_refused(length: int) -> None:
    """A public key is 32 bytes long, also where no text is involved."""
    with pytest.raises(KeyFormatError, match="32 bytes"):
        fingerprint(b"\x09" * length)


def test_parse_secret_skips_comment_and_empty_lines() -> None:
    """A key file may say what it is."""
    text = f"# the secret key of web1\n\n   # keep it\n{format_secret(PAIR, 'web1')}\n\n"
    assert parse_secret(text) == PAIR


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds 0 lines"),
        ("# only a comment\n", "holds 0 lines"),
        (f"pyinfra-agent-secret-key {SECRET_BASE64}\n" * 2, "holds 2 lines"),
        (f"pyinfra-agent-key {BASE64}\n", "this is a public key"),
        (SECRET_BASE64, "a secret key is a line"),
        ("pyinfra-agent-secret-key AAAA", "3 bytes"),
        (f"pyinfra-agent-secret-key {SECRET_BASE64} a\tb", "cannot be printed"),
    ],
)
def test_parse_secret_refuses_other_forms(text: str, complaint: str) -> None:
    """Each departure from the form is refused with its own reason."""
    with pytest.raises(KeyFormatError, match=complaint):
        parse_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        f"pyinfra-agent-secret-key {SECRET_BASE64}",
        f"pyinfra-agent-key {SECRET_BASE64}x",
        f"{SECRET_BASE64}",
    ],
)
def test_refusal_never_repeats_a_secret(text: str) -> None:
    """A secret key that landed in the wrong file does not land in the log as well."""
    with pytest.raises(KeyFormatError) as caught:
        parse_public(text)
    assert SECRET_BASE64[:8] not in str(caught.value)


def test_parse_public_names_a_misplaced_secret_key() -> None:
    """Who pastes a secret key is told so."""
    with pytest.raises(KeyFormatError, match="this is a secret key"):
        parse_public(format_secret(PAIR))


@pytest.mark.parametrize("comment", ["a\nb", "\x07", "x" * 257])
def test_format_refuses_comment_that_does_not_fit_a_line(comment: str) -> None:
    """Nothing is written that could not be read again."""
    with pytest.raises(KeyFormatError, match="comment"):
        format_public(PAIR.public, comment)
    with pytest.raises(KeyFormatError, match="comment"):
        format_secret(PAIR, comment)


def test_fingerprint_is_125_bits_of_blake2b() -> None:
    """The short form spells the first 125 bits of the hash, recomputed here bit by bit."""
    digest = hashlib.blake2b(b"pyinfra-agent fingerprint v1\0" + PAIR.public, digest_size=32).digest()
    bits = "".join(f"{byte:08b}" for byte in digest)[:125]
    letters = ["abcdefghijklmnopqrstuvwxyz234567"[int(bits[start : start + 5], 2)] for start in range(0, len(bits), 5)]
    groups = ["".join(letters[start : start + 5]) for start in range(0, 25, 5)]
    assert fingerprint(PAIR.public) == "-".join(groups)


def test_fingerprint_of_a_known_key_never_changes() -> None:
    """People have compared and written down this form."""
    assert fingerprint(PAIR.public) == "di7uj-2uklm-5jrgo-46kvd-aoz76"
