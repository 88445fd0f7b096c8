from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._refusal import FileRefused
from pyinfra_agent._upload import SyncPolicy, Upload, UploadResult
from tests.agent.uploads import (
    ACL,
    ACL_WITH_NOBODY,
    DEFAULT_ACL,
    NOBODY,
    mounted,
    needs_root,
    put,
    put_as_nobody,
    refusal,
    set_xattr,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Content, and what is left


@pytest.mark.usefixtures("either_temporary")
def test_upload_creates_file_from_many_chunks(tmp_path: Path) -> None:
    """More chunks than one writev takes, empty ones among them, arrive in order."""
    chunks = [b"%d," % n for n in range(3000)] + [b"", os.urandom(1 << 20)]
    content = b"".join(chunks)
    path = tmp_path / "file"
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256(), size=len(content))
    upload.write(chunks[:2000])
    upload.write(chunks[2000:])
    assert not path.exists()
    result = upload.commit(len(content), hashlib.sha256(content).digest())
    assert result == UploadResult(len(content), os.fsencode(path), in_place=False, created=True)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("sync", list(SyncPolicy))
def test_upload_replaces_file(tmp_path: Path, sync: SyncPolicy) -> None:
    """An old file is exchanged for a new one under every policy."""
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    inode = path.stat().st_ino
    result = put(path, sync=sync)
    assert (result.in_place, result.created) == (False, False)
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != inode
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    ("sync", "flushes"),
    [
        (SyncPolicy.NONE, ["name"]),
        (SyncPolicy.DATA, ["content", "name"]),
        (SyncPolicy.FULL, ["content", "name", "directory"]),
    ],
)
def test_upload_flushes_in_the_order_that_a_power_cut_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: SyncPolicy, flushes: list[str], exists: bool
) -> None:
    """The content before the name that shows it, and the directory after; nothing unless it was asked for."""
    path = tmp_path / "file"
    if exists:
        path.write_bytes(b"old")
    seen: list[str] = []

    def noting(what: str, call: Callable[..., object]) -> Callable[..., object]:
        def noted(*args: object, **options: object) -> object:
            # An unnamed file that replaces another gets a name of its own first, and then the other's: that is once.
            if what not in seen or what != "name":
                seen.append(what)
            return call(*args, **options)

        return noted

    for name, what in (("fdatasync", "content"), ("link", "name"), ("rename", "name"), ("fsync", "directory")):
        monkeypatch.setattr(os, name, noting(what, getattr(os, name)))
    put(path, sync=sync)
    assert seen == flushes
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(("sync", "flushed"), [(SyncPolicy.NONE, 0), (SyncPolicy.DATA, 1), (SyncPolicy.FULL, 1)])
def test_upload_in_place_is_flushed_unless_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: SyncPolicy, flushed: int
) -> None:
    """Its directory has not changed."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    assert put(path, in_place=True, sync=sync).in_place
    assert len(calls) == flushed


def test_upload_of_nothing_makes_an_empty_file(tmp_path: Path) -> None:
    """A file without content needs no write."""
    upload = Upload.open(os.fsencode(tmp_path / "file"), digest=hashlib.sha256())
    assert upload.commit(0, hashlib.sha256().digest()).size == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("exists", [True, False])
def test_upload_abort_leaves_old_file_and_no_litter(tmp_path: Path, exists: bool) -> None:
    """Aborting, even twice, undoes everything and closes what was open."""
    path = tmp_path / "file"
    if exists:
        path.write_bytes(b"old")
    before = len(os.listdir("/proc/self/fd"))
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256())
    upload.write([b"x" * 5000])
    upload.abort()
    upload.abort()
    assert os.listdir(tmp_path) == (["file"] if exists else [])
    assert not exists or path.read_bytes() == b"old"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize(
    ("size", "digest", "code"),
    [(3, hashlib.sha256(b"neW").digest(), "digest-mismatch"), (4, hashlib.sha256(b"new").digest(), "size-mismatch")],
)
@pytest.mark.parametrize("in_place", [True, False])
def test_upload_mismatch_keeps_old_file(tmp_path: Path, size: int, digest: bytes, code: str, in_place: bool) -> None:
    """What did not arrive intact never becomes the file, not even in place."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256(), in_place=in_place)
    upload.write([b"new"])
    assert refusal(lambda: upload.commit(size, digest)).code == code
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_upload_reader_sees_old_or_new_file_only(tmp_path: Path) -> None:
    """A reader during many replacements finds one whole version each time."""
    path = tmp_path / "file"
    versions = [bytes([letter]) * 100_000 for letter in b"abcd"]
    path.write_bytes(versions[0])
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(200):
        put(path, versions[n % 4])
    done.set()
    reader.join()
    assert seen <= set(versions)


# Permissions


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_upload_new_file_obeys_umask(tmp_path: Path, umask: int) -> None:
    """A new file has the permissions that open(2) gives."""
    previous = os.umask(umask)
    try:
        put(tmp_path / "file")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("exists", [True, False])
def test_upload_mode_is_applied(tmp_path: Path, exists: bool) -> None:
    """A mode that was asked for goes before umask and the old mode."""
    path = tmp_path / "file"
    if exists:
        path.touch(0o644)
    put(path, mode=0o4711)
    assert stat.S_IMODE(path.stat().st_mode) == 0o4711


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("mode", [0o600, 0o4755, 0o444, 0o666])
def test_upload_keeps_mode_of_old_file(tmp_path: Path, mode: int) -> None:
    """Every permission bit stays, those above umask and set-user-ID too."""
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    put(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.usefixtures("either_temporary")
def test_upload_default_acl_is_for_new_files_only(tmp_path: Path) -> None:
    """A new file inherits the directory's ACL; an old file that has none does not get it by being replaced."""
    (tmp_path / "old").touch(0o640)
    set_xattr(tmp_path, DEFAULT_ACL, ACL_WITH_NOBODY)
    put(tmp_path / "old")
    put(tmp_path / "new")
    (tmp_path / "reference").touch(0o666)
    assert ACL not in os.listxattr(tmp_path / "old")
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640
    assert os.getxattr(tmp_path / "new", ACL) == os.getxattr(tmp_path / "reference", ACL)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "reference").stat().st_mode


def test_upload_to_file_deleted_meanwhile_keeps_its_mode(tmp_path: Path) -> None:
    """A private file that is deleted during the transfer comes back private."""
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o604)
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256())
    path.unlink()
    assert upload.commit(0, hashlib.sha256().digest()).created
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_upload_to_file_made_meanwhile_replaces_it(tmp_path: Path) -> None:
    """A file that appears during the transfer is replaced, and keeps its mode."""
    path = tmp_path / "file"
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256())
    path.touch()
    path.chmod(0o604)
    assert not upload.commit(0, hashlib.sha256().digest()).created
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert os.listdir(tmp_path) == ["file"]


# File systems and users


@needs_root
@pytest.mark.usefixtures("either_temporary")
def test_upload_to_full_disk_keeps_old_file(tmp_path: Path) -> None:
    """A disk that fills up gives "no-space", the old file and no litter; in place too, before a byte is overwritten."""
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)):
        path = tmp_path / "file"
        path.write_bytes(b"old" * 100_000)
        big = b"x" * 2_000_000
        assert refusal(lambda: put(path, big)).code == "no-space"
        upload = Upload.open(os.fsencode(path), digest=hashlib.sha256())
        with pytest.raises(FileRefused):
            upload.write([big])
        upload.abort()
        error = refusal(lambda: put(path, big, in_place=True))
        assert error.code == "no-space"
        assert "incomplete" not in error.text
        assert path.read_bytes() == b"old" * 100_000
        assert os.listdir(tmp_path) == ["file"]
        assert put(path, b"y" * 400_000).size == 400_000


@needs_root
def test_upload_to_read_only_mount_is_refused(tmp_path: Path) -> None:
    """Old and new files alike say that the file system is read-only."""
    (tmp_path / "file").write_bytes(b"old")
    with mounted("--bind", str(tmp_path), str(tmp_path)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path)], check=True)
        assert refusal(lambda: put(tmp_path / "file")).code == "read-only"
        error = refusal(lambda: put(tmp_path / "new"))
        assert error.code == "read-only"
        assert str(tmp_path) in error.text


@needs_root
@pytest.mark.skipif(shutil.which("chattr") is None, reason="needs chattr")
def test_upload_to_immutable_is_refused_and_immutable_directory_written_in_place(tmp_path: Path) -> None:
    """An immutable file refuses everybody with a hint; an immutable directory only new files."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def chattr(flag: str, what: Path) -> None:
        done = subprocess.run(["chattr", flag, what], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"chattr does not work here: {done.stderr.strip()}")

    chattr("+i", path)
    try:
        error = refusal(lambda: put(path))
    finally:
        chattr("-i", path)
    assert error.code == "permission"
    assert "lsattr" in error.text
    chattr("+i", tmp_path)
    try:
        assert put(path).in_place
        assert refusal(lambda: put(tmp_path / "new")).code == "permission"
    finally:
        chattr("-i", tmp_path)
    assert os.listdir(tmp_path) == ["file"]


@needs_root
@pytest.mark.usefixtures("either_temporary")
@pytest.mark.skipif(shutil.which("chattr") is None, reason="needs chattr")
def test_upload_in_append_only_directory_leaves_no_name_that_nobody_can_remove(tmp_path: Path) -> None:
    """An old file there is written in place: a temporary could be made, and neither renamed nor removed."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run(["chattr", "+a", tmp_path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"chattr does not work here: {done.stderr.strip()}")
    try:
        assert put(path).in_place
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["file"]
    finally:
        subprocess.run(["chattr", "-a", tmp_path], check=True)


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("in_place", [False, True])
def test_upload_error_that_comes_at_close_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """NFS and FUSE say only then that their disk is full: before the rename, or as of a file written in place."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256(), in_place=in_place)
    upload.write([b"new"])

    def full(fd: int) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "dup", full)
    error = refusal(lambda: upload.commit(3, hashlib.sha256(b"new").digest()))
    assert error.code == "quota"
    assert ("incomplete" in error.text) == in_place
    assert in_place or path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@needs_root
def test_upload_in_unwritable_directory(open_directory: Path) -> None:
    """A user writes their own file in place there, and is told why they cannot make or write another."""
    mine, other = open_directory / "mine", open_directory / "other"
    mine.write_bytes(b"old")
    other.write_bytes(b"old")
    os.chown(mine, NOBODY, NOBODY)
    assert put_as_nobody(mine) == "in place"
    assert mine.read_bytes() == b"new"
    assert put_as_nobody(other).startswith("permission cannot write")
    assert put_as_nobody(open_directory / "new").startswith(f"permission cannot make a file in {open_directory}:")
    assert other.read_bytes() == b"old"
