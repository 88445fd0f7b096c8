"""Certificates: what an authority signed holds, and nothing else does."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from pyinfra_agent_protocol._errors import KeyFormatError, LocalProtocolError
from pyinfra_agent_protocol.certificates import (
    CERTIFICATE_MAX_BYTES,
    CLOCK_SKEW_SECONDS,
    Authority,
    AuthorityKey,
    Certificate,
    CertificateRefused,
    Revocations,
    certified_groups,
    check_certificate,
    format_authority,
    format_authority_secret,
    format_certificate,
    open_certificate,
    parse_authority,
    parse_authority_secret,
    parse_certificate,
)
from pyinfra_agent_protocol.keys import KeyPair, fingerprint

FLEET = AuthorityKey(bytes(range(32)))
OTHER = AuthorityKey(bytes(range(1, 33)))
TRUST = Authority(FLEET.public, "fleet")
AUTHORITIES = {TRUST.id: TRUST}
KEY = KeyPair.from_secret(bytes(range(32))).public
NOW = 1_800_000_000
WEB1 = Certificate(KEY, "agent", ("web1", "web1.example.com"), NOW, NOW + 3600, 0x1234, ("web", "linux"))
ADMIN = Certificate(KEY, "controller", ("alice",), NOW, NOW + 3600, 0x77, ("admins",))


def check(certificate=WEB1, authority=TRUST, **changes):
    arguments = {"key": KEY, "role": "agent", "now": NOW + 1, "name": "web1"} | changes
    check_certificate(certificate, authority, **arguments)


def test_signed_certificate_is_read_back_with_its_authority():
    assert open_certificate(FLEET.sign(WEB1), AUTHORITIES) == (WEB1, TRUST)


@pytest.mark.parametrize("at", range(0, len(FLEET.sign(WEB1)), 7))
def test_certificate_with_one_bit_changed_is_refused(at):
    data = bytearray(FLEET.sign(WEB1))
    data[at] ^= 1
    with pytest.raises(CertificateRefused):
        open_certificate(bytes(data), AUTHORITIES)


def test_certificate_of_an_authority_that_nobody_trusts_is_refused():
    with pytest.raises(CertificateRefused, match="not trusted here"):
        open_certificate(OTHER.sign(WEB1), AUTHORITIES)


def test_certificate_that_claims_a_trusted_authority_is_refused():
    """The id is what finds the key; the signature is what counts."""
    data = OTHER.sign(WEB1)
    with pytest.raises(CertificateRefused, match="does not verify"):
        open_certificate(TRUST.id + data[16:], AUTHORITIES)


def test_signature_over_the_body_alone_is_refused():
    """Whatever else the fleet key may be made to sign, it is no certificate."""
    body = WEB1.encode()
    signature = SigningKey(FLEET.seed).sign(body).signature
    with pytest.raises(CertificateRefused, match="does not verify"):
        open_certificate(TRUST.id + signature + body, AUTHORITIES)


def test_nothing_is_parsed_before_the_signature_verifies(monkeypatch):
    def parse(data):
        raise AssertionError("parsed")

    data = bytearray(FLEET.sign(WEB1))
    data[-1] ^= 1
    monkeypatch.setattr(Certificate, "decode", parse)
    with pytest.raises(CertificateRefused, match="does not verify"):
        open_certificate(bytes(data), AUTHORITIES)


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x80", msgpack.packb({"key": KEY, "role": "god"}), b"\xc1"])
def test_signed_nonsense_is_refused(body):
    context = b"pyinfra-agent certificate v1\0"
    signature = SigningKey(FLEET.seed).sign(context + TRUST.id + body).signature
    with pytest.raises(CertificateRefused):
        open_certificate(TRUST.id + signature + body, AUTHORITIES)


@given(st.binary(max_size=CERTIFICATE_MAX_BYTES + 100))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(CertificateRefused):
        open_certificate(data, AUTHORITIES)
    with pytest.raises(CertificateRefused):
        open_certificate(TRUST.id + data, AUTHORITIES)


def test_unknown_fields_are_ignored():
    body = msgpack.packb(WEB1.to_fields() | {"later": [1, 2]}, use_bin_type=True)
    signature = SigningKey(FLEET.seed).sign(b"pyinfra-agent certificate v1\0" + TRUST.id + body).signature
    assert open_certificate(TRUST.id + signature + body, AUTHORITIES)[0] == WEB1


def test_certificate_holds_for_its_key_role_name_and_time():
    check()
    check(name="WEB1.example.com.")
    check(name=None)
    check(ADMIN, role="controller", name=None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": bytes(31) + b"\1"}, "for another key"),
        ({"role": "controller"}, "for the role agent and not controller"),
        ({"name": "web2"}, "not for web2"),
        ({"name": "web1.example.org"}, "not for web1.example.org"),
        ({"now": NOW - CLOCK_SKEW_SECONDS - 1}, "not valid yet"),
        ({"now": NOW + 3600 + CLOCK_SKEW_SECONDS + 1}, "has expired"),
        ({"revoked": Revocations(serials=[WEB1.serial])}, "0000000000001234 was revoked"),
        ({"revoked": Revocations(keys=[KEY])}, "was revoked"),
        ({"authority": dataclasses.replace(TRUST, names=("db*",))}, "trusted only for db"),
    ],
)
def test_certificate_for_anything_else_is_refused(changes, reason):
    with pytest.raises(CertificateRefused, match=reason):
        check(**changes)


def test_clocks_may_differ_by_the_tolerance():
    check(now=NOW - CLOCK_SKEW_SECONDS)
    check(now=NOW + 3600 + CLOCK_SKEW_SECONDS)


def test_revocation_of_another_certificate_changes_nothing():
    check(revoked=Revocations(serials=[1], keys=[bytes(32)]))


def test_certificate_of_an_agent_is_none_of_a_controller_and_the_reverse():
    with pytest.raises(CertificateRefused):
        check(WEB1, role="controller", name=None)
    with pytest.raises(CertificateRefused):
        check(ADMIN, role="agent", name="alice")


def test_limit_on_names_is_for_the_name_that_was_asked_for():
    """An authority for db* cannot vouch for web1 by a certificate that also says db1."""
    both = dataclasses.replace(WEB1, names=("web1", "db1"))
    limited = dataclasses.replace(TRUST, names=("db*",))
    check(both, limited, name="db1")
    with pytest.raises(CertificateRefused, match="trusted only for"):
        check(both, limited, name="web1")


def test_limit_on_groups_admits_members_only():
    limited = dataclasses.replace(TRUST, groups=("admins", "ci"))
    check(ADMIN, limited, role="controller", name=None)
    with pytest.raises(CertificateRefused, match="members of"):
        check(dataclasses.replace(ADMIN, groups=("web",)), limited, role="controller", name=None)


def test_groups_of_an_agent_are_those_that_its_authority_may_give():
    assert certified_groups(WEB1, TRUST) == ("web", "linux")
    assert certified_groups(WEB1, dataclasses.replace(TRUST, groups=("web", "db"))) == ("web",)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": b"short"},
        {"role": "both"},
        {"names": ()},
        {"serial": 2**64},
        {"not_after": NOW - 1},
        {"groups": ("g",) * 33},
    ],
)
def test_what_no_reader_takes_is_not_signed(changes):
    with pytest.raises(LocalProtocolError):
        FLEET.sign(dataclasses.replace(WEB1, **changes))


def test_certificate_that_does_not_fit_a_handshake_is_not_signed():
    with pytest.raises(LocalProtocolError, match="fewer names"):
        FLEET.sign(dataclasses.replace(WEB1, names=tuple(f"{n}." + "x" * 200 for n in range(32))))


# --- text forms ---


def test_text_forms_can_be_read_back():
    assert parse_authority(format_authority(FLEET.public, "fleet 2026")) == Authority(FLEET.public, "fleet 2026")
    assert parse_authority_secret(f"# keep me\n\n{format_authority_secret(FLEET, 'x')}\n") == FLEET
    data = FLEET.sign(WEB1)
    assert parse_certificate(f"{format_certificate(data, 'web1')}\n") == data


@pytest.mark.parametrize(
    ("parse", "line", "reason"),
    [
        (parse_authority, format_authority_secret(FLEET), "this is a secret key"),
        (parse_authority, "pyinfra-agent-key AAAA", "an authority is a line of"),
        (parse_authority, "pyinfra-agent-authority AAAA", "3 bytes instead of 32"),
        (parse_authority_secret, format_authority(FLEET.public), "a fleet key is a line of"),
        (parse_authority_secret, "", "holds one line"),
        (parse_certificate, "", "holds one line"),
        (parse_certificate, format_authority(FLEET.public), "a certificate is a line of"),
        (parse_certificate, "pyinfra-agent-certificate %%%", "not base64"),
        (parse_certificate, "pyinfra-agent-certificate AAAA", "3 bytes is none"),
    ],
)
def test_text_of_another_kind_is_refused(parse, line, reason):
    with pytest.raises(KeyFormatError, match=reason):
        parse(line)


def test_no_text_repeats_a_secret():
    assert FLEET.seed.hex() not in repr(FLEET)
    assert str(FLEET.seed) not in repr(FLEET)


def test_fingerprints_of_authorities_and_keys_never_meet():
    """The same 32 bytes as one and as the other have two fingerprints."""
    assert Authority(KEY).fingerprint != fingerprint(KEY)
    assert len(Authority(KEY).fingerprint) == len(fingerprint(KEY))
