"""authorized_controllers: who is let in, and what a broken file does."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyinfra_agent._authorized import AuthorizedControllers, Controller
from pyinfra_agent._keys import StateError
from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public, format_secret


@pytest.fixture
def keys():
    return [KeyPair.generate().public for _ in range(3)]


def write(tmp_path, *lines, mode=0o600):
    path = tmp_path / "authorized_controllers"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(mode)
    return path


def test_missing_or_empty_file_admits_nobody(tmp_path, keys):
    controllers = AuthorizedControllers(tmp_path)
    assert controllers.find(keys[0]) is None
    write(tmp_path, "", "# nobody yet")
    assert controllers.find(keys[0]) is None


def test_key_that_is_listed_is_let_in_under_its_comment(tmp_path, keys):
    write(tmp_path, "# ours", format_public(keys[0], "alice@laptop"), "", format_public(keys[1]))
    controllers = AuthorizedControllers(tmp_path)
    assert controllers.find(keys[0]) == Controller(keys[0], "alice@laptop")
    assert str(controllers.find(keys[1])) == fingerprint(keys[1])
    assert controllers.find(keys[2]) is None


def test_change_acts_at_the_next_handshake(tmp_path, keys):
    controllers = AuthorizedControllers(tmp_path)
    assert controllers.find(keys[0]) is None
    path = write(tmp_path, format_public(keys[0]))
    assert controllers.find(keys[0])
    write(tmp_path, format_public(keys[1]))
    assert controllers.find(keys[0]) is None
    assert controllers.find(keys[1])
    path.unlink()
    assert controllers.find(keys[1]) is None


def test_broken_line_is_reported_by_its_number_and_admits_nobody(tmp_path, keys, capsys):
    good, bad = format_public(keys[0]), format_public(keys[1])
    write(tmp_path, good, "", bad[:-8], "nonsense", f"no-pty {bad}")
    controllers = AuthorizedControllers(tmp_path)
    assert controllers.find(keys[0])
    assert controllers.find(keys[1]) is None
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("line=")[2].split()[0] for line in lines] == ["3", "4", "5"]
    assert controllers.find(keys[0])
    assert capsys.readouterr().err == "", "a file that has not changed is not reported again"


def test_line_with_a_secret_key_is_reported_without_it(tmp_path, capsys):
    secret = format_secret(KeyPair.generate())
    write(tmp_path, secret)
    assert AuthorizedControllers(tmp_path).find(b"x" * 32) is None
    assert secret.split()[1] not in capsys.readouterr().err


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x0c", "\x85", "\x1c", "\r"])
def test_comment_cannot_hide_a_key_behind_a_line_end_that_no_editor_shows(tmp_path, keys, separator, capsys):
    write(tmp_path, f"# harmless{separator}{format_public(keys[0])}", f"x{separator}{format_public(keys[1])}")
    controllers = AuthorizedControllers(tmp_path)
    assert controllers.find(keys[0]) is None
    assert controllers.find(keys[1]) is None
    assert "line=2" in capsys.readouterr().err


def test_file_with_windows_line_ends_is_read(tmp_path, keys):
    (tmp_path / "authorized_controllers").write_bytes(format_public(keys[0], "me").encode() + b"\r\n")
    assert AuthorizedControllers(tmp_path).find(keys[0]) == Controller(keys[0], "me")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_may_write_admits_nobody_until_mended(tmp_path, keys, capsys, mode):
    path = write(tmp_path, format_public(keys[0]), mode=mode)
    controllers = AuthorizedControllers(tmp_path)
    assert controllers.find(keys[0]) is None
    assert "others may write it" in capsys.readouterr().err
    path.chmod(0o600)
    assert controllers.find(keys[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_somebody_else_admits_nobody(tmp_path, keys):
    os.chown(write(tmp_path, format_public(keys[0])), 12345, -1)
    assert AuthorizedControllers(tmp_path).find(keys[0]) is None


def test_file_that_cannot_be_read_admits_nobody(tmp_path, keys, capsys):
    write(tmp_path, format_public(keys[0])).unlink()
    (tmp_path / "authorized_controllers").mkdir(0o700)
    assert AuthorizedControllers(tmp_path).find(keys[0]) is None
    assert "unreadable" in capsys.readouterr().err


def test_bytes_that_are_no_text_do_no_harm(tmp_path, keys):
    (tmp_path / "authorized_controllers").write_bytes(b"\xff\xfe\0\n" + format_public(keys[0]).encode() + b" \xe9\n")
    assert AuthorizedControllers(tmp_path).find(keys[0])


def test_authorize_makes_the_file_and_is_idempotent(tmp_path, keys):
    controllers = AuthorizedControllers(tmp_path / "state")
    line = format_public(keys[0], "alice")
    assert controllers.authorize(line) == Controller(keys[0], "alice")
    controllers.authorize(f"  {line}\n")
    assert controllers.path.read_text() == line + "\n"
    assert stat.S_IMODE(controllers.path.stat().st_mode) == 0o600
    assert controllers.find(keys[0])


def test_authorize_keeps_what_is_there(tmp_path, keys):
    path = tmp_path / "authorized_controllers"
    path.write_text(f"# ours\n{format_public(keys[0])}")
    AuthorizedControllers(tmp_path).authorize(format_public(keys[1]))
    assert path.read_text() == f"# ours\n{format_public(keys[0])}\n{format_public(keys[1])}\n"


def test_authorize_by_several_at_once_loses_none(tmp_path):
    lines = [format_public(KeyPair.generate().public, f"host-{number}") for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda line: AuthorizedControllers(tmp_path).authorize(line), lines))
    assert sorted((tmp_path / "authorized_controllers").read_text().splitlines()) == sorted(lines)


@pytest.mark.parametrize("line", ["", "nonsense", "pyinfra-agent-key AAAA"])
def test_authorize_of_what_is_no_key_changes_nothing(tmp_path, line):
    with pytest.raises(KeyFormatError):
        AuthorizedControllers(tmp_path).authorize(line)
    assert list(tmp_path.iterdir()) == []


def test_authorize_of_two_lines_in_one_is_refused(tmp_path, keys):
    with pytest.raises(KeyFormatError):
        AuthorizedControllers(tmp_path).authorize(f"{format_public(keys[0], 'a')}\n{format_public(keys[1], 'b')}")


def test_authorize_does_not_make_a_file_trusted_that_others_could_write(tmp_path, keys):
    """Rewriting makes it private: a key that somebody slipped in would be in from then on."""
    path = write(tmp_path, format_public(keys[0], "intruder"), mode=0o666)
    with pytest.raises(StateError, match="look through it"):
        AuthorizedControllers(tmp_path).authorize(format_public(keys[1]))
    assert AuthorizedControllers(tmp_path).find(keys[0]) is None
    assert path.read_text() == format_public(keys[0], "intruder") + "\n"


def test_authorize_where_nothing_can_be_written_says_so(tmp_path, keys):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        AuthorizedControllers(tmp_path / "file").authorize(format_public(keys[0]))
