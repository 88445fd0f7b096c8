"""What a login finds in its environment."""

from __future__ import annotations

import os
import pwd
import socket

import pytest

from pyinfra_agent._environment import login_environment

UNKNOWN_UID = 4_000_000_001


@pytest.fixture
def root(tmp_path):
    """A system with nothing but this user's home directory."""
    home = pwd.getpwuid(os.geteuid()).pw_dir
    (tmp_path / home.lstrip("/")).mkdir(parents=True)
    (tmp_path / "etc/default").mkdir(parents=True)
    return tmp_path


def test_identity_comes_from_the_user_database(root):
    account = pwd.getpwuid(os.geteuid())
    environment = login_environment(root=root)
    assert environment[b"HOME"] == os.fsencode(account.pw_dir)
    assert environment[b"USER"] == environment[b"LOGNAME"] == os.fsencode(account.pw_name)
    assert environment[b"SHELL"] == os.fsencode(account.pw_shell)


def test_nothing_of_the_agents_own_environment_is_passed_on(root, monkeypatch):
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "INVOCATION_ID", "PYTHONPATH", "LC_ALL"):
        monkeypatch.setenv(name, "mine")
    assert set(login_environment(root=root)) == {b"HOME", b"USER", b"LOGNAME", b"SHELL", b"PATH"}


def test_user_without_account_gets_a_number_for_a_name_and_the_root_directory(root):
    environment = login_environment(UNKNOWN_UID, root=root)
    assert environment[b"USER"] == str(UNKNOWN_UID).encode()
    assert environment[b"HOME"] == b"/"
    assert environment[b"SHELL"] == b"/bin/sh"


def test_home_that_does_not_exist_becomes_the_root_directory(tmp_path):
    assert login_environment(root=tmp_path)[b"HOME"] == b"/"


def test_file_does_not_override_the_identity(root):
    (root / "etc/environment").write_text("HOME=/elsewhere\nUSER=somebody\n")
    environment = login_environment(root=root)
    account = pwd.getpwuid(os.geteuid())
    assert environment[b"HOME"] == os.fsencode(account.pw_dir)
    assert environment[b"USER"] == os.fsencode(account.pw_name)


LOGIN_DEFS = "# ENV_PATH PATH=/no\nENV_SUPATH\tPATH=/root/bin:/sbin\nENV_PATH   PATH=/user/bin\nUMASK 022\n"


@pytest.mark.parametrize(("uid", "path"), [(0, b"/root/bin:/sbin"), (UNKNOWN_UID, b"/user/bin")])
def test_path_comes_from_login_defs(root, uid, path):
    (root / "etc/login.defs").write_text(LOGIN_DEFS)
    assert login_environment(uid, root=root)[b"PATH"] == path


def test_path_of_etc_environment_beats_login_defs(root):
    (root / "etc/login.defs").write_text(LOGIN_DEFS)
    (root / "etc/environment").write_text('PATH="/a:/b"\n')
    assert login_environment(0, root=root)[b"PATH"] == b"/a:/b"


@pytest.mark.parametrize("uid", [0, UNKNOWN_UID])
def test_path_has_a_default(root, uid):
    path = login_environment(uid, root=root)[b"PATH"].split(b":")
    assert b"/usr/bin" in path
    assert (b"/usr/sbin" in path) == (uid == 0)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"NAME=plain", b"plain"),
        (b"  export NAME=exported", b"exported"),
        (b'NAME="two words"', b"two words"),
        (b"NAME='it has # inside' # and one after", b"it has # inside"),
        (b"NAME=cut # comment", b"cut"),
        (b"NAME=a#b", b"a#b"),
        (b"NAME=", b""),
        (b"NAME=a=b", b"a=b"),
        (b"NAME=\xff\xfe", b"\xff\xfe"),
        (b"NAME=crlf\r", b"crlf"),
        (b"#NAME=no", None),
        (b'NAME="open', None),
        (b"1NAME=no", None),
        (b"NA-ME=no", None),
        (b"NAME", None),
        (b"NAME=nul\0", None),
        (b"export", None),
    ],
)
def test_line_of_etc_environment_is_read_or_ignored(root, line, value):
    (root / "etc/environment").write_bytes(b"BEFORE=1\n" + line + b"\nAFTER=2")
    environment = login_environment(root=root)
    assert environment.get(b"NAME") == value
    assert environment[b"BEFORE"] == b"1"
    assert environment[b"AFTER"] == b"2"


def test_endless_file_is_read_up_to_a_bound(root):
    (root / "etc/environment").symlink_to("/dev/zero")
    assert b"PATH" in login_environment(root=root)


def test_fifo_in_place_of_a_file_does_not_block(root):
    os.mkfifo(root / "etc/environment")
    assert b"PATH" in login_environment(root=root)


@pytest.mark.parametrize("name", ["etc/default/locale", "etc/locale.conf"])
def test_locale_file_gives_locale_variables_only(root, name):
    (root / name).write_text('LANG=de_DE.UTF-8\nLC_TIME="C"\nLD_PRELOAD=/evil.so\n')
    environment = login_environment(root=root)
    assert environment[b"LANG"] == b"de_DE.UTF-8"
    assert environment[b"LC_TIME"] == b"C"
    assert b"LD_PRELOAD" not in environment


def test_user_session_is_found_when_its_directory_and_bus_exist(root):
    uid = os.geteuid()
    runtime = root / f"run/user/{uid}"
    assert b"XDG_RUNTIME_DIR" not in login_environment(root=root)
    runtime.mkdir(parents=True)
    assert login_environment(root=root)[b"XDG_RUNTIME_DIR"] == f"/run/user/{uid}".encode()
    assert b"DBUS_SESSION_BUS_ADDRESS" not in login_environment(root=root)
    with socket.socket(socket.AF_UNIX) as bus:
        directory = os.open(runtime, os.O_RDONLY)
        bus.bind(f"/proc/self/fd/{directory}/bus")  # its own path may be too long for a socket address
        os.close(directory)
        address = login_environment(root=root)[b"DBUS_SESSION_BUS_ADDRESS"]
    assert address == f"unix:path=/run/user/{uid}/bus".encode()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a directory that is another user's")
def test_runtime_directory_of_another_user_is_not_used(root):
    runtime = root / "run/user/0"
    runtime.mkdir(parents=True)
    os.chown(runtime, 65534, 65534)
    assert b"XDG_RUNTIME_DIR" not in login_environment(root=root)


def test_changed_file_counts_for_the_next_command(root):
    (root / "etc/environment").write_text("COLOUR=red\n")
    assert login_environment(root=root)[b"COLOUR"] == b"red"
    (root / "etc/environment").write_text("COLOUR=green\n")
    assert login_environment(root=root)[b"COLOUR"] == b"green"
    (root / "etc/environment").unlink()
    assert b"COLOUR" not in login_environment(root=root)
