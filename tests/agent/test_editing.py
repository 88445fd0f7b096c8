"""Changing who is let in: whole, locked, and careful with what others wrote."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyinfra_agent._editing import TrustFiles
from pyinfra_agent._keys import StateError
from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import KeyPair, format_public


@pytest.fixture
def keys():
    return [KeyPair.generate().public for _ in range(3)]


def authorize(directory, line, widens=False):
    return TrustFiles(directory).authorize(line, widens=widens)


def test_authorize_makes_the_file_and_is_idempotent(tmp_path, keys):
    files = TrustFiles(tmp_path / "state")
    line = format_public(keys[0], "alice")
    assert files.authorize(line, widens=False).key == keys[0]
    authorize(tmp_path / "state", f"  {line}\n")
    assert files.controllers.read_text() == line + "\n"
    assert stat.S_IMODE(files.controllers.stat().st_mode) == 0o600


def test_authorize_keeps_what_is_there_and_what_is_broken(tmp_path, keys):
    path = tmp_path / "authorized_controllers"
    path.write_text(f"# ours\nbroken\n{format_public(keys[0])}")
    authorize(tmp_path, format_public(keys[1]))
    assert path.read_text() == f"# ours\nbroken\n{format_public(keys[0])}\n{format_public(keys[1])}\n"


def test_authorize_by_several_at_once_loses_none(tmp_path):
    lines = [format_public(KeyPair.generate().public, f"host-{number}") for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda line: authorize(tmp_path, line), lines))
    assert sorted((tmp_path / "authorized_controllers").read_text().splitlines()) == sorted(lines)


def test_authorize_with_other_options_replaces_the_line_where_it_stands(tmp_path, keys):
    path = tmp_path / "authorized_controllers"
    path.write_text(f"# first\nno-pty {format_public(keys[0])}\n# last\n")
    authorize(tmp_path, f"no-exec {format_public(keys[0])}", widens=True)
    assert path.read_text() == f"# first\nno-exec {format_public(keys[0])}\n# last\n"


def test_authorize_without_options_takes_none_away(tmp_path, keys):
    """A deploy that authorises its controller each time must not undo what an administrator has restricted."""
    line = f"no-pty {format_public(keys[0])}"
    authorize(tmp_path, line)
    with pytest.raises(StateError, match="with other options"):
        authorize(tmp_path, format_public(keys[0]))
    assert (tmp_path / "authorized_controllers").read_text() == f"{line}\n"


@pytest.mark.parametrize("line", ["", "nonsense", "pyinfra-agent-key AAAA", "no-pty"])
def test_authorize_of_what_is_no_key_changes_nothing(tmp_path, line):
    with pytest.raises(KeyFormatError):
        authorize(tmp_path, line)
    assert list(tmp_path.iterdir()) == []


def test_authorize_of_two_lines_in_one_is_refused(tmp_path, keys):
    with pytest.raises(KeyFormatError):
        authorize(tmp_path, f"{format_public(keys[0], 'a')}\n{format_public(keys[1], 'b')}")


def test_authorize_of_a_revoked_key_is_refused(tmp_path, keys):
    TrustFiles(tmp_path).revoke_key(keys[0], "lost")
    with pytest.raises(StateError, match="was revoked"):
        authorize(tmp_path, format_public(keys[0]))


def test_authorize_does_not_make_a_file_trusted_that_others_could_write(tmp_path, keys):
    """Rewriting makes it private: a key that somebody slipped in would be in from then on."""
    path = tmp_path / "authorized_controllers"
    path.write_text(format_public(keys[0], "intruder") + "\n")
    path.chmod(0o666)
    with pytest.raises(StateError, match="look through it"):
        authorize(tmp_path, format_public(keys[1]))
    assert path.read_text() == format_public(keys[0], "intruder") + "\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_authorize_by_root_for_an_agent_of_somebody_else_says_whom_to_be(tmp_path, keys):
    """The agent could not read a file of root's."""
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(StateError, match="run this as that user"):
        authorize(tmp_path, format_public(keys[0]))


def test_authorize_where_nothing_can_be_written_says_so(tmp_path, keys):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be"):
        authorize(tmp_path / "file", format_public(keys[0]))


def test_remove_takes_out_its_lines_and_no_other(tmp_path, keys):
    path = tmp_path / "authorized_controllers"
    path.write_text(f"# a\n{format_public(keys[0], 'x')}\nbroken\n{format_public(keys[1], 'y')}\n")
    (removed,) = TrustFiles(tmp_path).remove(lambda entry: entry.comment == "x")
    assert removed.key == keys[0]
    assert path.read_text() == f"# a\nbroken\n{format_public(keys[1], 'y')}\n"


def test_revocations_are_added_once(tmp_path, keys):
    files = TrustFiles(tmp_path)
    for _ in range(2):
        files.revoke_serial(0xAB)
        files.revoke_key(keys[0], "lost")
    assert files.revoked.read_text() == f"{0xAB:016x}\n{format_public(keys[0], 'lost')}\n"


def test_revocation_list_that_cannot_be_read_is_not_touched(tmp_path):
    (tmp_path / "revoked").write_text("zz\n")
    (tmp_path / "revoked").chmod(0o600)
    with pytest.raises(StateError, match="mend it"):
        TrustFiles(tmp_path).revoke_serial(1)
    assert (tmp_path / "revoked").read_text() == "zz\n"
