"""authorized_controllers: who is let in, and what a broken file does."""

from __future__ import annotations

import os
import pwd
import time

import pytest

from pyinfra_agent._authorized import AuthorizedControllers, NotAdmitted
from pyinfra_agent._controllers import Controller
from pyinfra_agent._policy import Policy
from pyinfra_agent_protocol.certificates import (
    CLOCK_SKEW_SECONDS,
    AuthorityKey,
    Certificate,
    format_authority,
    format_certificate,
)
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public, format_secret

PEER = "192.0.2.7:40000"
OWN = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def keys():
    return [KeyPair.generate().public for _ in range(3)]


@pytest.fixture
def fleet():
    return AuthorityKey(os.urandom(32))


def write(tmp_path, *lines, mode=0o600, name="authorized_controllers"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    path.chmod(mode)
    return path


def find(controllers, key, certificate=b"", peer=PEER):
    """Return the controller, or None if it is not let in."""
    try:
        return controllers.admit(key, certificate, peer)
    except NotAdmitted:
        return None


def certificate(fleet, key, *, role="controller", names=("ci",), groups=(), begin=-60, end=3600, serial=7):
    now = int(time.time())
    return fleet.sign(Certificate(key, role, names, now + begin, now + end, serial, groups))


def test_missing_or_empty_file_admits_nobody(tmp_path, keys):
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0]) is None
    write(tmp_path, "", "# nobody yet")
    assert find(controllers, keys[0]) is None


def test_key_that_is_listed_is_let_in_under_its_comment(tmp_path, keys):
    write(tmp_path, "# ours", format_public(keys[0], "alice@laptop"), "", format_public(keys[1]))
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0]) == Controller(keys[0], "alice@laptop")
    assert str(find(controllers, keys[1])) == fingerprint(keys[1])
    assert find(controllers, keys[2]) is None


def test_change_acts_at_the_next_handshake(tmp_path, keys):
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0]) is None
    path = write(tmp_path, format_public(keys[0]))
    assert find(controllers, keys[0])
    before = controllers.signature
    write(tmp_path, format_public(keys[1]))
    assert controllers.signature != before
    assert find(controllers, keys[0]) is None
    assert find(controllers, keys[1])
    path.unlink()
    assert find(controllers, keys[1]) is None


def test_broken_line_is_reported_by_its_number_and_admits_nobody(tmp_path, keys, capsys):
    good, bad = format_public(keys[0]), format_public(keys[1])
    write(tmp_path, good, "", bad[:-8], "nonsense", f"no-fun {bad}", f'from="x {bad}', f"no-pty,no-pty {bad}")
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0])
    assert find(controllers, keys[1]) is None
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("line=")[2].split()[0] for line in lines] == ["3", "4", "5", "6", "7"]
    assert find(controllers, keys[0])
    assert capsys.readouterr().err == "", "a file that has not changed is not reported again"


def test_key_that_stands_twice_counts_as_it_stands_first_and_is_reported(tmp_path, keys, capsys):
    write(tmp_path, f"no-exec {format_public(keys[0])}", format_public(keys[0]))
    assert find(AuthorizedControllers(tmp_path), keys[0]).policy.no_exec
    assert "stands in line 1 already" in capsys.readouterr().err


def test_line_with_a_secret_key_is_reported_without_it(tmp_path, capsys):
    secret = format_secret(KeyPair.generate())
    write(tmp_path, secret)
    assert find(AuthorizedControllers(tmp_path), b"x" * 32) is None
    assert secret.split()[1] not in capsys.readouterr().err


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x0c", "\x85", "\x1c", "\r"])
def test_comment_cannot_hide_a_key_behind_a_line_end_that_no_editor_shows(tmp_path, keys, separator, capsys):
    write(tmp_path, f"# harmless{separator}{format_public(keys[0])}", f"x{separator}{format_public(keys[1])}")
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0]) is None
    assert find(controllers, keys[1]) is None
    assert "line=2" in capsys.readouterr().err


def test_file_with_windows_line_ends_is_read(tmp_path, keys):
    (tmp_path / "authorized_controllers").write_bytes(format_public(keys[0], "me").encode() + b"\r\n")
    assert find(AuthorizedControllers(tmp_path), keys[0]) == Controller(keys[0], "me")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_may_write_admits_nobody_until_mended(tmp_path, keys, capsys, mode):
    path = write(tmp_path, format_public(keys[0]), mode=mode)
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0]) is None
    assert "others may write it" in capsys.readouterr().err
    path.chmod(0o600)
    assert find(controllers, keys[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_somebody_else_admits_nobody(tmp_path, keys):
    os.chown(write(tmp_path, format_public(keys[0])), 12345, -1)
    assert find(AuthorizedControllers(tmp_path), keys[0]) is None


def test_file_that_cannot_be_read_admits_nobody(tmp_path, keys, capsys):
    write(tmp_path, format_public(keys[0])).unlink()
    (tmp_path / "authorized_controllers").mkdir(0o700)
    assert find(AuthorizedControllers(tmp_path), keys[0]) is None
    assert "unreadable" in capsys.readouterr().err


def test_bytes_that_are_no_text_do_no_harm(tmp_path, keys):
    (tmp_path / "authorized_controllers").write_bytes(b"\xff\xfe\0\n" + format_public(keys[0]).encode() + b" \xe9\n")
    assert find(AuthorizedControllers(tmp_path), keys[0])


# --- options ---


def test_options_are_the_controllers_policy(tmp_path, keys):
    write(tmp_path, f'from="192.0.2.0/24",user={OWN},no-pty {format_public(keys[0], "bob")}')
    controllers = AuthorizedControllers(tmp_path)
    found = find(controllers, keys[0])
    assert (found.policy.user, found.policy.no_pty, found.policy.no_exec) == (OWN, True, False)
    assert find(controllers, keys[0], peer="198.51.100.1:9") is None
    assert find(controllers, keys[0], peer="") == found, "a session without a link comes from nowhere"


def test_key_is_let_in_until_it_expires(tmp_path, keys):
    write(tmp_path, f"expires=2001-01-01 {format_public(keys[0])}", f"expires=2099-01-01 {format_public(keys[1])}")
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0]) is None
    assert find(controllers, keys[1]).ends == 4070908800


@pytest.mark.parametrize(("uid", "let_in"), [(0, True), (12345, False)])
def test_agent_that_cannot_become_the_user_of_a_line_does_not_let_its_controller_in(
    tmp_path, keys, monkeypatch, uid, let_in
):
    write(tmp_path, f"user=daemon {format_public(keys[0])}")
    controllers = AuthorizedControllers(tmp_path)
    find(controllers, keys[0])
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert (find(controllers, keys[0]) is not None) is let_in


def test_controller_survives_being_written_down(keys):
    controller = Controller(keys[0], "ci \n", Policy(user="deploy", no_pty=True, expires=4070908800.0), 17.5, b"bytes")
    assert Controller.from_state(controller.to_state()) == controller


# --- certificates ---


def authority_line(fleet, options="cert-authority"):
    return f"{options} {format_authority(fleet.public, 'fleet')}"


def test_certified_controller_is_let_in_under_its_first_name_and_the_options_of_the_line(tmp_path, fleet, keys):
    write(tmp_path, authority_line(fleet, "cert-authority,no-pty"))
    shown = certificate(fleet, keys[0], names=("ci", "runner"))
    found = find(AuthorizedControllers(tmp_path), keys[0], shown)
    assert (found.comment, found.policy, found.certificate) == ("ci", Policy(no_pty=True), shown)
    assert found.ends == pytest.approx(time.time() + 3600 + CLOCK_SKEW_SECONDS, abs=5)


@pytest.mark.parametrize(
    ("attack", "complaint"),
    [
        ({"role": "agent"}, "for the role agent"),
        ({"end": -CLOCK_SKEW_SECONDS - 5, "begin": -9999}, "has expired"),
        ({"begin": CLOCK_SKEW_SECONDS + 60}, "not valid yet"),
        ({"names": ("intruder",)}, "trusted only for"),
        ({"groups": ("guests",)}, "members of"),
    ],
)
def test_certificate_for_something_else_is_refused(tmp_path, fleet, keys, attack, complaint):
    write(tmp_path, authority_line(fleet, 'cert-authority names="ci*" groups="ops"'))
    controllers = AuthorizedControllers(tmp_path)
    good = {"names": ("ci-7",), "groups": ("ops",)}
    assert find(controllers, keys[0], certificate(fleet, keys[0], **good))
    with pytest.raises(NotAdmitted, match=complaint):
        controllers.admit(keys[0], certificate(fleet, keys[0], **(good | attack)), PEER)


def test_certificate_of_another_key_another_authority_or_with_one_bit_changed_is_refused(tmp_path, fleet, keys):
    write(tmp_path, authority_line(fleet))
    controllers = AuthorizedControllers(tmp_path)
    shown = certificate(fleet, keys[0])
    with pytest.raises(NotAdmitted, match="another key"):
        controllers.admit(keys[1], shown, PEER)
    with pytest.raises(NotAdmitted, match="not trusted here"):
        controllers.admit(keys[0], certificate(AuthorityKey(os.urandom(32)), keys[0]), PEER)
    with pytest.raises(NotAdmitted, match="does not verify"):
        controllers.admit(keys[0], shown[:-1] + bytes([shown[-1] ^ 1]), PEER)
    for size in (0, 1, 80, 2049):
        assert find(controllers, keys[0], (shown * 20)[:size]) is None


def test_authority_without_its_option_and_a_key_with_it_are_broken_lines(tmp_path, fleet, keys, capsys):
    write(tmp_path, format_authority(fleet.public), f"cert-authority {format_public(keys[0])}")
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0], certificate(fleet, keys[0])) is None
    assert capsys.readouterr().err.count("bad-line") == 2


def test_pin_beats_an_authority(tmp_path, fleet, keys):
    """What the key's own line forbids, a certificate does not give back."""
    write(
        tmp_path,
        authority_line(fleet),
        f"expires=2001-01-01 {format_public(keys[0])}",
        f"no-exec {format_public(keys[1])}",
    )
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0], certificate(fleet, keys[0])) is None
    assert find(controllers, keys[1], certificate(fleet, keys[1])).policy.no_exec


@pytest.mark.parametrize("what", ["serial", "key"])
def test_revoked_certificate_is_refused_from_then_on(tmp_path, fleet, keys, what):
    write(tmp_path, authority_line(fleet))
    controllers = AuthorizedControllers(tmp_path)
    shown = certificate(fleet, keys[0], serial=0xAB)
    before = controllers.signature
    assert find(controllers, keys[0], shown)
    write(tmp_path, "# lost laptop", f"{0xAB:016x}" if what == "serial" else format_public(keys[0]), name="revoked")
    assert controllers.signature != before
    with pytest.raises(NotAdmitted, match="revoked"):
        controllers.admit(keys[0], shown, PEER)
    assert find(controllers, keys[1], certificate(fleet, keys[1], serial=0xAC))


def test_revoked_key_is_refused_although_its_line_is_there(tmp_path, keys):
    write(tmp_path, format_public(keys[0]))
    write(tmp_path, format_public(keys[0]), name="revoked")
    assert find(AuthorizedControllers(tmp_path), keys[0]) is None


def test_list_of_revocations_that_cannot_be_read_makes_certificates_worthless_and_pins_not(
    tmp_path, fleet, keys, capsys
):
    """The line that is broken may be the one that matters."""
    write(tmp_path, authority_line(fleet), format_public(keys[1]))
    write(tmp_path, "00000000000000zz", name="revoked")
    controllers = AuthorizedControllers(tmp_path)
    assert find(controllers, keys[0], certificate(fleet, keys[0])) is None
    assert find(controllers, keys[1])
    assert "line 1" in capsys.readouterr().err


def test_agent_shows_its_certificate_if_it_is_for_its_key(tmp_path, fleet, keys):
    controllers = AuthorizedControllers(tmp_path)
    assert controllers.certificate_of(keys[0]) == b""
    shown = certificate(fleet, keys[0], role="agent")
    write(tmp_path, format_certificate(shown), name="certificate")
    assert controllers.certificate_of(keys[0]) == shown
    assert controllers.certificate_of(keys[1]) == b""
