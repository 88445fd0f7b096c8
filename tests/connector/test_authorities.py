"""The files authorities and revoked."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector._authorities import Authorities, Certified
from pyinfra_agent_protocol.certificates import CertificateRefused, format_authority
from pyinfra_agent_protocol.keys import KeyPair
from tests.connector.fleet import FLEET, STRANGER, signed, trust_fleet

KEY = KeyPair.generate().public


def test_without_files_nobody_is_certified(tmp_path):
    authorities = Authorities(tmp_path)
    assert authorities.all() == {}
    assert authorities.certified(KEY, signed(KEY), None) is None
    authorities.require_not_revoked("web1", KEY)


def test_line_that_cannot_be_read_is_reported_and_hides_no_other(tmp_path):
    lines = [
        "rubbish",
        f'names="a{format_authority(FLEET.public)}',
        f'colour="red" {format_authority(FLEET.public)}',
        f"names= {format_authority(FLEET.public)}",
        format_authority(FLEET.public)[:-3],
        format_authority(STRANGER.public, "good"),
        f'groups="web" {format_authority(STRANGER.public)}',
    ]
    (tmp_path / "authorities").write_text("# mine\n" + "\n".join(lines))
    authorities = Authorities(tmp_path)
    assert [one.comment for one in authorities.all().values()] == ["good"]
    assert [problem.split(" of ")[0] for problem in authorities.problems()] == [f"line {n}" for n in (2, 3, 4, 5, 6, 8)]
    assert authorities.certified(KEY, signed(KEY, by=FLEET), None) is None
    assert authorities.certified(KEY, signed(KEY, by=STRANGER), None) == Certified(("web1",), ())


def test_certificate_gives_the_names_and_groups_that_its_authority_may_give(tmp_path):
    trust_fleet(tmp_path, 'names="*.example.com" groups="web,db"')
    certificate = signed(KEY, "web1", "web1.example.com", groups=("db", "root", "web"))
    authorities = Authorities(tmp_path)
    assert authorities.certified(KEY, certificate, None) == Certified(("web1.example.com",), ("db", "web"))
    with pytest.raises(CertificateRefused, match="trusted only for"):
        authorities.certified(KEY, signed(KEY, "web1"), None)


def test_files_are_read_again_when_they_change(tmp_path):
    authorities = Authorities(tmp_path)
    certificate = signed(KEY, serial=7)
    assert authorities.certified(KEY, certificate, None) is None
    trust_fleet(tmp_path)
    assert authorities.certified(KEY, certificate, None) is not None
    (tmp_path / "revoked").write_text("0000000000000007\n")
    with pytest.raises(CertificateRefused, match="revoked"):
        authorities.certified(KEY, certificate, None)
    (tmp_path / "revoked").unlink()
    assert authorities.certified(KEY, certificate, None) is not None
    (tmp_path / "authorities").unlink()
    assert authorities.certified(KEY, certificate, None) is None
