"""The controller's key file."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyinfra_agent_connector import _identity, _passphrase
from pyinfra_agent_connector._identity import IdentityError, agent_home, load_or_create
from pyinfra_agent_connector._passphrase import ENCRYPTED_KEY_PREFIX, seal
from pyinfra_agent_protocol.certificates import format_certificate
from pyinfra_agent_protocol.keys import KeyPair, format_secret, parse_secret
from tests.connector.fleet import signed


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "config" / "pyinfra-agent"


def test_agent_home_takes_the_first_that_is_set(monkeypatch, tmp_path):
    """The argument beats PYINFRA_AGENT_HOME, which beats XDG_CONFIG_HOME, which beats ~/.config."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYINFRA_AGENT_HOME", "/one")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/two")
    assert agent_home("/zero") == Path("/zero")
    assert agent_home("~/zero") == tmp_path / "zero"
    assert agent_home() == Path("/one")
    monkeypatch.delenv("PYINFRA_AGENT_HOME")
    assert agent_home(None) == Path("/two/pyinfra-agent")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert agent_home("") == tmp_path / ".config/pyinfra-agent"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert agent_home() == tmp_path / ".config/pyinfra-agent"


def test_load_or_create_makes_a_private_key_once(home):
    """The first call makes a file of mode 0600 in a directory of 0700, and the second one reads it."""
    first = load_or_create(home)
    before = (home / "identity").read_bytes()
    second = load_or_create(home)
    assert second.keypair.public == first.keypair.public
    assert (home / "identity").read_bytes() == before
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "identity").stat().st_mode) == 0o600
    assert os.listdir(home) == ["identity"]
    assert parse_secret(before.decode()).public == first.keypair.public


def test_load_or_create_is_private_whatever_the_umask_is(home):
    """A umask of 0 does not open the key to others."""
    old = os.umask(0)
    try:
        load_or_create(home)
    finally:
        os.umask(old)
    assert stat.S_IMODE((home / "identity").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_identity_comment_is_user_at_host(home, monkeypatch):
    """The public key's comment says who and where, as far as it can be printed."""
    monkeypatch.setattr("socket.gethostname", lambda: "box\x1b[2J")
    monkeypatch.setenv("LOGNAME", "ada")
    assert load_or_create(home).comment == "ada@box?[2J"


def test_identity_comment_survives_a_user_without_a_name(home, monkeypatch):
    """A process whose user id has no name still has an identity."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert load_or_create(home).comment.startswith(f"uid{os.getuid()}@")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_load_or_create_refuses_a_key_open_to_others(home, mode):
    """A key that others can read or write is refused with the command that mends it."""
    load_or_create(home)
    path = home / "identity"
    path.chmod(mode)
    with pytest.raises(IdentityError) as caught:
        load_or_create(home)
    assert f"chmod 600 {path}" in str(caught.value)
    assert f"{mode:04o}" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_load_or_create_refuses_a_key_of_somebody_else(home):
    """A key file that belongs to another user is refused."""
    load_or_create(home)
    os.chown(home / "identity", 12345, -1)
    with pytest.raises(IdentityError, match=r"belongs to user 12345.*PYINFRA_AGENT_HOME"):
        load_or_create(home)


@pytest.mark.parametrize("content", [b"", b"rubbish\n", b"\xff\xfe\n", b"pyinfra-agent-secret-key AAAA\n"])
def test_load_or_create_never_replaces_a_file_that_holds_no_key(home, content):
    """A broken key file is named, not quoted and not overwritten."""
    home.mkdir(parents=True)
    path = home / "identity"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="cannot be read") as caught:
        load_or_create(home)
    assert str(path) in str(caught.value)
    assert "rubbish" not in str(caught.value)
    assert path.read_bytes() == content


def test_load_or_create_refuses_a_directory_and_a_fifo_without_waiting(home):
    """What is no regular file is refused, and a fifo does not block the process."""
    (home / "identity").mkdir(parents=True)
    with pytest.raises(IdentityError, match=r"not a regular file|cannot be used"):
        load_or_create(home)
    (home / "identity").rmdir()
    os.mkfifo(home / "identity", 0o600)
    with pytest.raises(IdentityError, match="not a regular file"):
        load_or_create(home)


def test_load_or_create_names_the_file_when_the_home_cannot_be_made(tmp_path):
    """A home that cannot be a directory is one clear error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="identity cannot be used: Not a directory"):
        load_or_create(tmp_path / "file" / "home")


def test_load_or_create_gives_racing_processes_one_key(home):
    """Processes that make the key at the same time end with the same one, and leave no other file."""
    code = (
        "import sys, pathlib; from pyinfra_agent_connector._identity import load_or_create;"
        "sys.stdin.readline(); print(load_or_create(pathlib.Path(sys.argv[1])).keypair.public.hex())"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"\n")
        racer.stdin.flush()
    keys = {racer.communicate(timeout=60)[0] for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * 6
    assert len(keys) == 1
    assert os.listdir(home) == ["identity"]


def test_identity_does_not_show_its_secret(home):
    """Neither repr nor str of an identity holds the secret key."""
    identity = load_or_create(home)
    assert repr(identity.keypair.secret) not in repr(identity)
    assert identity.keypair.secret.hex() not in repr(identity)


# --- keys that are not in the home ---


@pytest.fixture
def no_variables(monkeypatch):
    for name in ("KEY", "KEY_FILE", "CERTIFICATE", "PASSPHRASE", "PASSPHRASE_FILE"):
        monkeypatch.delenv(f"PYINFRA_AGENT_{name}", raising=False)
    monkeypatch.setattr(_identity, "_warned", set())


def test_key_comes_from_the_environment_and_nothing_is_written(home, monkeypatch, no_variables):
    """As in CI: the line itself, before a file, before the home."""
    line, in_file = (KeyPair.generate() for _ in range(2))
    path = home.parent / "key"
    path.parent.mkdir(parents=True)
    path.write_text(f"# mine\n{format_secret(in_file)}\n")
    path.chmod(0o600)
    monkeypatch.setenv("PYINFRA_AGENT_KEY_FILE", str(path))
    assert load_or_create(home).keypair.public == in_file.public
    monkeypatch.setenv("PYINFRA_AGENT_KEY", f"{format_secret(line)}\n")
    assert load_or_create(home).keypair.public == line.public
    assert not home.exists()


def test_key_file_of_the_environment_is_checked_as_the_own_one_is(home, monkeypatch, no_variables, tmp_path):
    monkeypatch.setenv("PYINFRA_AGENT_KEY_FILE", str(tmp_path / "missing"))
    with pytest.raises(IdentityError, match="missing, which is not there"):
        load_or_create(home)
    path = tmp_path / "open"
    path.write_text(format_secret(KeyPair.generate()))
    path.chmod(0o640)
    monkeypatch.setenv("PYINFRA_AGENT_KEY_FILE", str(path))
    with pytest.raises(IdentityError, match=f"chmod 600 {path}"):
        load_or_create(home)


def test_key_of_the_environment_that_is_none_is_not_shown(home, monkeypatch, no_variables):
    monkeypatch.setenv("PYINFRA_AGENT_KEY", "s3cret")
    with pytest.raises(IdentityError, match=r"in \$PYINFRA_AGENT_KEY cannot be read") as caught:
        load_or_create(home)
    assert "s3cret" not in str(caught.value)


def test_key_under_a_passphrase_is_opened_once(home, monkeypatch, no_variables):
    pair = KeyPair.generate()
    home.mkdir(parents=True)
    path = home / "identity"
    path.write_text(f"# mine\n{seal(pair.secret, 'secret', ENCRYPTED_KEY_PREFIX, 'ada@box')}\n")
    path.chmod(0o600)
    monkeypatch.setenv("PYINFRA_AGENT_PASSPHRASE", "guess")
    with pytest.raises(IdentityError, match=r"is not the one in \$PYINFRA_AGENT_PASSPHRASE"):
        load_or_create(home)
    monkeypatch.setenv("PYINFRA_AGENT_PASSPHRASE", "secret")
    assert load_or_create(home).keypair.public == pair.public
    monkeypatch.setattr(_passphrase, "unseal", None)
    assert load_or_create(home).keypair.public == pair.public


# --- its certificate ---


def certified(home, certificate):
    home.mkdir(parents=True, exist_ok=True)
    (home / "certificate").write_text(f"{format_certificate(certificate, 'mine')}\n")
    return load_or_create(home).certificate


def test_certificate_of_this_key_is_shown(home, no_variables, caplog):
    public = load_or_create(home).keypair.public
    certificate = signed(public, "ada", role="controller", days=(-1, 20))
    assert certified(home, certificate) == certificate
    assert caplog.text == ""


def test_certificate_may_come_from_the_environment(home, no_variables, monkeypatch):
    public = load_or_create(home).keypair.public
    certificate = signed(public, "ci", role="controller", days=(-1, 20))
    monkeypatch.setenv("PYINFRA_AGENT_CERTIFICATE", format_certificate(certificate))
    assert load_or_create(home).certificate == certificate


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"role": "agent"}, "for the role agent"),
        ({"key": KeyPair.generate().public}, "for another key"),
        ({"days": (-9, -1)}, "has expired at 20"),
    ],
)
def test_certificate_that_would_be_refused_is_not_shown(home, no_variables, caplog, fields, said):
    """The key may be known by itself, so this is no error; it is told once."""
    public = load_or_create(home).keypair.public
    fields = {"key": public, "role": "controller", **fields}
    certificate = signed(fields.pop("key"), "ada", **fields)
    assert certified(home, certificate) == b""
    assert certified(home, certificate) == b""
    assert caplog.text.count(said) == 1
    assert f"{home / 'certificate'} is not shown to agents" in caplog.text


def test_certificate_that_is_none_is_not_shown(home, no_variables, caplog):
    home.mkdir(parents=True)
    for content in (b"rubbish", b"\xff", b"", b"pyinfra-agent-certificate AAAA\n"):
        (home / "certificate").write_bytes(content)
        assert load_or_create(home).certificate == b""
    assert "is not shown to agents" in caplog.text


@pytest.mark.parametrize(("days", "is_warned"), [((-29, 0.9), True), ((-1, 2), False), ((-0.05, 0.3), False)])
def test_end_of_a_certificate_is_told_a_day_before_or_in_its_last_tenth(home, no_variables, caplog, days, is_warned):
    """One that is made for hours is not warned about from its first minute on."""
    public = load_or_create(home).keypair.public
    assert certified(home, signed(public, "ada", role="controller", days=days))
    assert ("expires at" in caplog.text) == is_warned
