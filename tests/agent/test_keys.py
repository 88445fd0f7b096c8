"""The agent's own key on disk."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyinfra_agent import _keys
from pyinfra_agent._keys import StateError, default_state_dir, load_or_create_key
from pyinfra_agent_protocol.keys import KeyPair, format_public, format_secret


def write_key(state_dir: Path, text: str | None = None, mode: int = 0o600) -> Path:
    state_dir.mkdir(exist_ok=True)
    path = state_dir / "key"
    path.write_text(format_secret(KeyPair.generate(), "a comment") + "\n" if text is None else text)
    path.chmod(mode)
    return path


def test_key_is_made_once_and_private(tmp_path):
    state = tmp_path / "a" / "state"
    first = load_or_create_key(state)
    assert load_or_create_key(state).public == first.public
    assert stat.S_IMODE((state / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert [path.name for path in state.iterdir()] == ["key"]


def test_umask_cannot_make_the_key_public(tmp_path):
    old = os.umask(0)
    try:
        load_or_create_key(tmp_path / "state")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "state" / "key").stat().st_mode) == 0o600


def test_two_starts_at_once_agree_on_one_key(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_or_create_key(tmp_path / "state").public, range(16)))
    assert len(set(keys)) == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777, 0o610])
def test_key_that_others_may_open_is_refused_with_what_to_do(tmp_path, mode):
    path = write_key(tmp_path / "state", mode=mode)
    with pytest.raises(StateError, match=f"mode {mode:04o}.*chmod 600 {path}"):
        load_or_create_key(tmp_path / "state")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_key_of_somebody_else_is_refused(tmp_path):
    os.chown(write_key(tmp_path / "state"), 12345, -1)
    with pytest.raises(StateError, match="belongs to user 12345"):
        load_or_create_key(tmp_path / "state")


@pytest.mark.parametrize("text", ["", "garbage\n", "pyinfra-agent-secret-key AAAA\n"])
def test_file_without_a_key_is_refused_and_kept(tmp_path, text):
    path = write_key(tmp_path / "state", text)
    with pytest.raises(StateError, match="cannot be read"):
        load_or_create_key(tmp_path / "state")
    assert path.read_text() == text


def test_error_never_repeats_the_key(tmp_path):
    pair = KeyPair.generate()
    secret = format_secret(pair).split()[1]
    write_key(tmp_path / "state", f"pyinfra-agent-key {secret}\n")
    with pytest.raises(StateError) as caught:
        load_or_create_key(tmp_path / "state")
    assert secret not in str(caught.value)
    write_key(tmp_path / "state", f"{format_public(pair.public)}\n")
    with pytest.raises(StateError, match="public key"):
        load_or_create_key(tmp_path / "state")


def test_fifo_in_place_of_the_key_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(StateError, match="not a regular file"):
        load_or_create_key(tmp_path)


def test_directory_in_place_of_the_key_is_refused(tmp_path):
    (tmp_path / "key").mkdir(0o700)
    with pytest.raises(StateError, match="key"):
        load_or_create_key(tmp_path)


def test_state_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="cannot be used"):
        load_or_create_key(tmp_path / "state")


def test_failure_while_the_key_is_made_leaves_nothing(tmp_path, monkeypatch):
    def fail(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_keys.os, "fsync", fail)
    with pytest.raises(StateError, match="No space left"):
        load_or_create_key(tmp_path / "state")
    assert list((tmp_path / "state").iterdir()) == []


def test_comment_of_a_strange_host_name_is_printable(tmp_path, monkeypatch):
    monkeypatch.setattr(_keys.socket, "gethostname", lambda: "a\nb\x1b" + "x" * 500)
    assert load_or_create_key(tmp_path / "state").public


@pytest.mark.parametrize(
    ("uid", "xdg", "expected"),
    [
        (0, "/xdg", "/var/lib/pyinfra-agent"),
        (1000, "/xdg", "/xdg/pyinfra-agent"),
        (1000, "relative", "/home/me/.local/state/pyinfra-agent"),
        (1000, "", "/home/me/.local/state/pyinfra-agent"),
    ],
)
def test_default_state_directory(monkeypatch, uid, xdg, expected):
    monkeypatch.setattr(_keys.os, "geteuid", lambda: uid)
    monkeypatch.setenv("XDG_STATE_HOME", xdg)
    monkeypatch.setenv("HOME", "/home/me")
    assert default_state_dir() == Path(expected)


def test_user_without_a_home_is_told_to_name_a_directory(monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(_keys.os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(_keys.Path, "expanduser", no_home)
    with pytest.raises(StateError, match="--state-dir"):
        default_state_dir()
