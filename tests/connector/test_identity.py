"""The controller's key file."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyinfra_agent_connector._identity import IdentityError, agent_home, load_or_create
from pyinfra_agent_protocol.keys import parse_secret


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
