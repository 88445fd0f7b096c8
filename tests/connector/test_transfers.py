"""How a transfer reaches a path as somebody else."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from pyinfra_agent_connector._errors import Refused
from pyinfra_agent_connector._transfers import read_route, wanted_user, write_route
from tests.connector.helpers import state_of, wrap_for

OTHER = "nobody"


@pytest.fixture
def host():
    return state_of("@agent/web1").inventory.get_host("@agent/web1")


def write(host, path="/etc/motd", agent_user="root", **arguments):
    return write_route(wrap_for(host), path, arguments, agent_user)


def read(host, path="/etc/motd", agent_user="root", **arguments):
    return read_route(wrap_for(host), path, arguments, agent_user)


@pytest.mark.parametrize(
    ("arguments", "user"),
    [
        ({}, None),
        ({"_sudo": False, "_sudo_user": "www"}, None),
        ({"_sudo": True}, "root"),
        ({"_sudo": True, "_sudo_user": "www"}, "www"),
        ({"_doas": True}, "root"),
        ({"_doas": True, "_doas_user": "www"}, "www"),
        ({"_dzdo": True, "_dzdo_user": "www"}, "www"),
        ({"_su_user": "www"}, "www"),
        ({"_sudo": True, "_su_user": "www"}, "www"),
        ({"_sudo": True, "_sudo_user": "www", "_doas": True}, "www"),
    ],
)
def test_wanted_user_is_the_innermost_one(arguments, user):
    assert wanted_user(arguments) == user


@pytest.mark.parametrize("arguments", [{}, {"_sudo": True}, {"_su_user": "root"}, {"_sudo": True, "_su_user": "root"}])
def test_route_to_the_agents_own_user_goes_through_nobody(host, arguments):
    for route in (write(host, **arguments), read(host, **arguments)):
        assert (route.path, route.argv, route.nonce) == ("/etc/motd", None, b"")


def test_route_of_a_relative_path_begins_where_chdir_says(host):
    assert write(host, "motd", _chdir="/etc").path == "/etc/motd"
    assert read(host, "/etc/motd", _chdir="/srv").path == "/etc/motd"
    assert write(host, "motd").path == "motd"


def test_route_by_sudo_writes_with_cat(host):
    route = write(host, "/srv/it's", _sudo=True, _sudo_user="www")
    assert route.argv is not None
    assert route.argv[0] == "sudo"
    assert "www" in route.argv
    assert route.argv[-1].endswith(" && cat > '/srv/it'\"'\"'s'")


def test_route_drops_login_flags(host):
    """A profile has nothing to do with a file's bytes."""
    plain = write(host, _sudo=True, _sudo_user="www")
    assert write(host, _sudo=True, _sudo_user="www", _use_sudo_login=True) == plain
    by_su = write(host, _su_user="www")
    assert write(host, _su_user="www", _use_su_login=True) == by_su
    assert by_su.argv is not None
    assert " -l" not in " ".join(by_su.argv)


def test_route_for_reading_begins_with_a_nonce_of_its_own(host):
    first, second = (read(host, _sudo=True, _sudo_user="www") for _ in range(2))
    assert first.nonce != second.nonce
    assert len(first.nonce) == 32
    assert first.argv is not None
    assert first.argv[-1].endswith(f" && printf %s {first.nonce.decode()} && cat < /etc/motd")


@pytest.mark.parametrize(
    ("kind", "may_read", "may_write"),
    [
        ("nothing", True, True),
        ("file", True, True),
        ("directory", False, False),
        ("fifo", False, False),
        ("/dev/null", False, True),
    ],
)
def test_route_goes_on_for_files_only(kind, may_read, may_write, host, tmp_path):
    """The other user's shell looks first, for `cat` would wait at a FIFO; what it says is one line."""
    path = str(tmp_path / "it's") if kind != "/dev/null" else kind
    if kind == "file":
        Path(path).touch()
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    for route, may in (
        (read(host, path, _sudo=True, _sudo_user="www"), may_read),
        (write(host, path, _sudo=True, _sudo_user="www"), may_write),
    ):
        assert route.argv is not None
        looks, _, _ = route.argv[-1].replace(" && printf", " && cat", 1).partition(" && cat")
        done = subprocess.run(["sh", "-c", f"{looks} && echo on"], capture_output=True, text=True, check=False)
        assert (done.stdout == "on\n") == may
        assert done.stderr.count("\n") == (not may)


def test_route_by_su_with_a_password_keeps_it_out_of_argv(host):
    """There su reads the password from its standard input, so the content takes another descriptor."""
    host.connector_data["su_askpass_path__/tmp"] = "/tmp/askpass"
    route = write(host, _su_user="www", _su_password="s3cret")
    assert route.argv is not None
    assert route.argv[:2] == ["sh", "-c"]
    assert route.argv[2].startswith("exec 3<&0; ")
    assert "cat <&3 > /etc/motd" in route.argv[2]
    assert "s3cret" not in " ".join(route.argv)
    assert route.env == {"PYINFRA_SU_PASSWORD": "s3cret"}
    reading = read(host, _su_user="www", _su_password="s3cret")
    assert reading.argv is not None
    assert "s3cret" not in " ".join(reading.argv)


def test_route_with_a_sudo_password_keeps_it_out_of_argv(host):
    host.connector_data["sudo_askpass_path__/tmp"] = "/tmp/askpass"
    route = write(host, _sudo=True, _sudo_user="www", _sudo_password="s3cret")
    assert "s3cret" not in " ".join(route.argv or ())
    assert route.env
    assert "s3cret" in route.env.values()


# --- real users ---


@pytest.fixture
def other_directory():
    """A directory of another user, where that user can get to: pytest's own are closed to it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user without a password")
    user = pwd.getpwnam(OTHER)
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, user.pw_uid, user.pw_gid)
        yield Path(name)


PRIVILEGES = [
    pytest.param({"_su_user": OTHER, "_su_shell": "/bin/sh"}, id="su"),
    pytest.param(
        {"_sudo": True, "_sudo_user": OTHER},
        id="sudo",
        marks=pytest.mark.skipif(not shutil.which("sudo"), reason="needs sudo"),
    ),
]


def can_become(arguments):
    command = ["su", OTHER, "-s", "/bin/sh", "-c", "true"]
    if "_sudo" in arguments:
        command = ["sudo", "-n", "-u", OTHER, "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("arguments", PRIVILEGES)
def test_files_of_another_user_are_written_and_read_as_that_user(client, host, other_directory, arguments):
    """What is written belongs to that user; what only that user may read arrives whole."""
    if not can_become(arguments):
        pytest.skip(f"cannot become {OTHER} here: {arguments}")
    content = os.urandom(1_000_000)
    path = str(other_directory / "it's é")
    route = write_route(wrap_for(host), path, arguments, client.user)
    client.put([content], route.path, argv=route.argv, env=route.env)
    assert os.stat(path).st_uid == pwd.getpwnam(OTHER).pw_uid
    os.chmod(path, 0o600)
    route = read_route(wrap_for(host), path, arguments, client.user)
    got = bytearray()
    client.get(route.path, got.extend, argv=route.argv, env=route.env, nonce=route.nonce)
    assert bytes(got) == content


@pytest.mark.parametrize("arguments", PRIVILEGES)
def test_files_that_the_other_user_may_not_touch_are_refused(client, host, other_directory, arguments, tmp_path):
    if not can_become(arguments):
        pytest.skip(f"cannot become {OTHER} here: {arguments}")
    secret = tmp_path / "secret"
    secret.write_text("mine")
    secret.chmod(0o600)
    route = read_route(wrap_for(host), str(secret), arguments, client.user)
    with pytest.raises(Refused, match="cannot read"):
        client.get(route.path, lambda data: None, argv=route.argv, env=route.env, nonce=route.nonce)
    route = write_route(wrap_for(host), str(secret), arguments, client.user)
    with pytest.raises(Refused, match="cannot write"):
        client.put([b"theirs"], route.path, argv=route.argv, env=route.env)
    assert secret.read_text() == "mine"
