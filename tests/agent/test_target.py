from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from tests.agent.uploads import (
    ACL,
    ACL_WITH_NOBODY,
    NOBODY,
    needs_root,
    put,
    refusal,
    set_xattr,
)

if TYPE_CHECKING:
    from pathlib import Path

# Names


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("name", [b"a\nb", b"'\"`$", b"-rf", b"\xff\xfe", b" ", b"n" * 255, b"..."])
def test_upload_takes_any_legal_name(tmp_path: Path, name: bytes) -> None:
    """A name is bytes; one of 255 leaves no room for a suffix and needs none."""
    base = os.fsencode(tmp_path)
    put(base + b"/" + name)
    put(base + b"/" + name, b"newer")
    assert os.listdir(base) == [name]


def test_upload_to_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path without a slash is in the working directory."""
    monkeypatch.chdir(tmp_path)
    assert put(b"file").path == b"file"
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("path", "code", "says"),
    [
        (b"n" * 300, "name-too-long", "longer"),
        (b"missing/file", "not-found", "its directory"),
        (b"old/file", "not-found", "not a directory"),
        (b"directory", "is-directory", "name a file in it"),
        (b"directory/", "is-directory", "name a file in it"),
        (b"fifo", "not-regular", "it is a fifo"),
        (b"loop", "too-many-links", "symbolic links"),
        (b"nul\0", "not-found", r"nul\x00"),
    ],
)
def test_upload_to_impossible_path_is_refused(tmp_path: Path, path: bytes, code: str, says: str) -> None:
    """Each way in which a path cannot be written has its code and its words, and leaves nothing open or behind."""
    (tmp_path / "old").touch()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    before, open_before = sorted(os.listdir(tmp_path)), len(os.listdir("/proc/self/fd"))
    error = refusal(lambda: put(os.fsencode(tmp_path) + b"/" + path))
    assert error.code == code
    assert says in error.text
    assert sorted(os.listdir(tmp_path)) == before
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_upload_to_empty_path_is_refused() -> None:
    """No name is no file."""
    assert refusal(lambda: put(b"")).code == "not-found"


# Links


def test_upload_follows_chain_of_links_to_its_file(tmp_path: Path) -> None:
    """Relative, absolute and upward links stay links; the file at the end is replaced in its own directory."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/file").write_bytes(b"old")
    (tmp_path / "a/up").symlink_to("../b/absolute")
    (tmp_path / "b/absolute").symlink_to(tmp_path / "b/beside")
    (tmp_path / "b/beside").symlink_to("file")
    result = put(tmp_path / "a/up")
    assert result.path == os.fsencode(tmp_path / "b/file")
    assert (tmp_path / "b/file").read_bytes() == b"new"
    assert all((tmp_path / each).is_symlink() for each in ("a/up", "b/absolute", "b/beside"))


def test_upload_through_dangling_link_creates_what_it_names(tmp_path: Path) -> None:
    """A link to nothing makes the file that it names, as open(2) does."""
    (tmp_path / "link").symlink_to("file")
    assert put(tmp_path / "link").created
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_upload_through_link_into_missing_directory_names_it(tmp_path: Path) -> None:
    """The directory that is missing is the one that the link leads to."""
    (tmp_path / "link").symlink_to("nowhere/file")
    assert "nowhere does not exist" in refusal(lambda: put(tmp_path / "link")).text


def links_are_protected() -> bool:
    with open("/proc/sys/fs/protected_symlinks") as setting:
        return setting.read().strip() == "1"


@needs_root
@pytest.mark.skipif(not links_are_protected(), reason="fs.protected_symlinks is off on this machine")
@pytest.mark.parametrize("dangling", [True, False])
def test_upload_refuses_link_planted_in_sticky_directory(tmp_path: Path, dangling: bool) -> None:
    """fs.protected_symlinks holds for links followed by hand: root is not led out of /tmp by somebody's link."""
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_bytes(b"old")
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    os.chown(sticky, NOBODY - 1, NOBODY - 1)  # neither ours nor the planter's: the rule spares links of the owner
    (sticky / "planted").symlink_to(victim)
    os.lchown(sticky / "planted", NOBODY, NOBODY)
    assert refusal(lambda: put(sticky / "planted")).code == "permission"
    assert victim.exists() != dangling
    assert dangling or victim.read_bytes() == b"old"


@pytest.mark.parametrize("dangling", [True, False])
def test_upload_asks_the_kernel_before_it_follows_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dangling: bool
) -> None:
    """A link that the kernel would not follow is not followed by hand, whether it leads anywhere or not."""
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_bytes(b"old")
    (tmp_path / "planted").symlink_to(victim)
    real_stat = os.stat

    def protected(path: bytes, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        if path == b"planted" and follow_symlinks:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real_stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "stat", protected)
    error = refusal(lambda: put(tmp_path / "planted"))
    monkeypatch.undo()
    assert error.code == "permission"
    assert victim.exists() != dangling
    assert dangling or victim.read_bytes() == b"old"


# Attributes


@needs_root
@pytest.mark.usefixtures("either_temporary")
def test_upload_keeps_owner_and_set_ids(tmp_path: Path) -> None:
    """Owner and group stay, and the bits that a change of owner clears are set after it."""
    path = tmp_path / "file"
    path.touch()
    os.chown(path, NOBODY, 12345)
    path.chmod(0o6755)
    assert not put(path).in_place
    state = path.stat()
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (NOBODY, 12345, 0o6755)


@pytest.mark.usefixtures("either_temporary")
def test_upload_keeps_attributes_and_acl(tmp_path: Path) -> None:
    """Extended attributes and the access ACL are the old file's."""
    path = tmp_path / "file"
    path.touch(0o640)
    set_xattr(path, "user.origin", b"\0binary\xff")
    set_xattr(path, ACL, ACL_WITH_NOBODY)
    mode = path.stat().st_mode
    assert not put(path).in_place
    assert os.getxattr(path, "user.origin") == b"\0binary\xff"
    assert os.getxattr(path, ACL) == ACL_WITH_NOBODY
    assert path.stat().st_mode == mode


@needs_root
def test_upload_drops_capabilities_of_old_content(tmp_path: Path) -> None:
    """A file capability was given to the old program, and not to what replaces it."""
    path = tmp_path / "file"
    path.touch()
    set_xattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
    set_xattr(path, "trusted.kept", b"yes")
    assert not put(path).in_place
    assert "security.capability" not in os.listxattr(path)
    assert os.getxattr(path, "trusted.kept") == b"yes"
