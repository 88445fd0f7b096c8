from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._upload import SyncPolicy, Upload
from tests.agent.uploads import (
    PUT,
    mounted,
    needs_root,
    put,
    put_as_nobody,
    refusal,
    set_xattr,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_upload_writes_hard_linked_file_in_place(tmp_path: Path) -> None:
    """Both names keep naming one file, which is shortened to the new content."""
    path = tmp_path / "one"
    path.write_bytes(b"old and longer")
    os.link(path, tmp_path / "two")
    assert put(path).in_place
    assert (tmp_path / "two").read_bytes() == b"new"
    assert path.stat().st_nlink == 2


def test_upload_sees_hard_link_made_meanwhile(tmp_path: Path) -> None:
    """A link that appears during the transfer is kept, too."""
    path = tmp_path / "one"
    path.write_bytes(b"old")
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256())
    upload.write([b"new"])
    os.link(path, tmp_path / "two")
    assert upload.commit(3, hashlib.sha256(b"new").digest()).in_place
    assert (tmp_path / "two").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("size", [None, 3, 5 << 20])
def test_upload_in_place_keeps_the_inode(tmp_path: Path, size: int | None) -> None:
    """What the caller wants written in place is, wherever it was spooled."""
    path = tmp_path / "file"
    path.write_bytes(b"o")
    inode = path.stat().st_ino
    assert put(path, in_place=True, size=size, mode=0o600, sync=SyncPolicy.DATA).in_place
    assert (path.read_bytes(), path.stat().st_ino) == (b"new", inode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_upload_in_place_of_missing_file_creates_it(tmp_path: Path) -> None:
    """There is nothing to write in place of, and nothing to tear."""
    result = put(tmp_path / "file", in_place=True)
    assert (result.in_place, result.created) == (False, True)


def test_upload_to_dev_null_writes_the_device() -> None:
    """A character device stays one."""
    assert put(b"/dev/null").in_place
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_upload_to_full_device_is_no_space() -> None:
    """An error of the write in place has its code, and says that the file may be incomplete."""
    error = refusal(lambda: put(b"/dev/full"))
    assert error.code == "no-space"
    assert "incomplete" in error.text


@needs_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_upload_to_sysctl_writes_in_place() -> None:
    """An invented file, in a directory where none can be made, is written as `cp` would; in a host name of its own."""
    program = PUT + "print(os.uname().nodename)"
    command = ["unshare", "--uts", sys.executable, "-c", program, "/proc/sys/kernel/hostname"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no namespace can be made here: {done.stderr.strip()}")
    assert done.stdout.split("\n")[:2] == ["in place", "new"]


def test_upload_attribute_that_cannot_be_given_is_kept_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the new file may not have an attribute of the old, the old file is written instead."""
    path = tmp_path / "file"
    path.touch()
    set_xattr(path, "user.origin", b"here")

    def denied(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "setxattr", denied)
    assert put(path).in_place
    assert (path.read_bytes(), os.getxattr(path, "user.origin")) == (b"new", b"here")
    assert os.listdir(tmp_path) == ["file"]


@needs_root
@pytest.mark.usefixtures("either_temporary")
def test_upload_to_mount_point_writes_in_place(tmp_path: Path) -> None:
    """A file that is a mount point cannot be renamed over; the file that is mounted is written."""
    (tmp_path / "source").write_bytes(b"old")
    (tmp_path / "file").touch()
    with mounted("--bind", str(tmp_path / "source"), str(tmp_path / "file")):
        assert put(tmp_path / "file").in_place
        assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "source").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["file", "source"]


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_upload_of_somebody_elses_file_keeps_its_owner_in_place(open_directory: Path, mode: int) -> None:
    """A writable file of another user stays theirs, in an open and in a sticky directory."""
    path = open_directory / "roots"
    path.write_bytes(b"old")
    path.chmod(0o666)
    open_directory.chmod(mode)
    assert put_as_nobody(path) == "in place"
    assert (path.read_bytes(), path.stat().st_uid) == (b"new", 0)
    assert os.listdir(open_directory) == ["roots"]


def test_upload_in_place_of_running_program_says_so(tmp_path: Path) -> None:
    """A program that is running can be replaced, but not written in place."""
    program = tmp_path / "program"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as running:
        try:
            assert "running program" in refusal(lambda: put(program, in_place=True)).text
            assert not put(program).in_place
        finally:
            running.kill()
