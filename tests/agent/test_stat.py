from __future__ import annotations

import os
import pwd
import socket
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._refusal import FileRefused
from pyinfra_agent._stat import stat_path

if TYPE_CHECKING:
    from pathlib import Path


def test_stat_regular_file_gives_plain_values(tmp_path: Path) -> None:
    """Every field is a plain value that agrees with the kernel's."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    path.chmod(0o4751)
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    assert stat_path(os.fsencode(path), follow=False) == {
        "type": "file",
        "mode": 0o4751,
        "uid": os.getuid(),
        "gid": path.stat().st_gid,
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "group": path.group(),
        "size": 5,
        "mtime_ns": 1_234_567_890_123_456_789,
        "target": None,
    }


@pytest.mark.parametrize("path", [b"missing", b"file/below", b"dangling", b"nul\0byte"])
def test_stat_missing_path_is_none(tmp_path: Path, path: bytes) -> None:
    """Nothing there is no error, whichever way it is not there."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert stat_path(os.fsencode(tmp_path) + b"/" + path, follow=True) is None


def test_stat_link_gives_its_target_or_follows_it(tmp_path: Path) -> None:
    """A link is described as itself or as what it leads to."""
    (tmp_path / "file").write_bytes(b"abc")
    link = os.fsencode(tmp_path / "link")
    os.symlink(b"file", link)
    itself, followed = stat_path(link, follow=False), stat_path(link, follow=True)
    assert itself is not None
    assert (itself["type"], itself["target"]) == ("link", b"file")
    assert followed is not None
    assert (followed["type"], followed["target"], followed["size"]) == ("file", None, 3)


def test_stat_names_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories, FIFOs, sockets and devices have names."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    found = [stat_path(path, follow=False) for path in (b".", b"fifo", b"socket", b"/dev/null")]
    assert [each and each["type"] for each in found] == ["directory", "fifo", "socket", "char"]


def test_stat_link_loop_is_refused(tmp_path: Path) -> None:
    """A loop is an error and not a missing file."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileRefused) as caught:
        stat_path(os.fsencode(tmp_path / "loop"), follow=True)
    assert caught.value.code == "too-many-links"


def test_stat_unknown_ids_have_no_names(tmp_path: Path) -> None:
    """Ids that passwd and group do not know give None."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 3_999_999, 3_999_998)
    found = stat_path(os.fsencode(tmp_path / "file"), follow=False)
    assert found is not None
    assert (found["uid"], found["user"], found["gid"], found["group"]) == (3_999_999, None, 3_999_998, None)
