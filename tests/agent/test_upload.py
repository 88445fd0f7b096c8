from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._stat import FileRefused
from pyinfra_agent._upload import Litter, SyncPolicy, Upload, UploadResult, open_spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534
ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"

# Programs for a child: what a put says, and how to become another user first.
SHED_ROOT = """
import os
import pyinfra_agent._upload
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
"""
PUT = """
import hashlib, os, sys
from pyinfra_agent._upload import Upload
try:
    upload = Upload.open(os.fsencode(sys.argv[1]), digest=hashlib.sha256())
    upload.write([b"new"])
    print("in place" if upload.commit(3, hashlib.sha256(b"new").digest()).in_place else "replaced")
except Exception as error:
    print(error.code, error.text)
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, owners or other users")


def put(path: Path | bytes, content: bytes = b"new", **options: object) -> UploadResult:
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256(), **options)  # type: ignore[arg-type]
    try:
        upload.write([content])
        return upload.commit(len(content), hashlib.sha256(content).digest())
    finally:
        upload.abort()


def refusal(act: Callable[[], object]) -> FileRefused:
    with pytest.raises(FileRefused) as caught:
        act()
    assert "\n" not in caught.value.text
    return caught.value


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Encode (tag, permissions, id) entries as the kernel's xattr version 2."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ACL_WITH_NOBODY = acl((1, 6, 2**32 - 1), (2, 4, NOBODY), (4, 0, 2**32 - 1), (0x10, 4, 2**32 - 1), (0x20, 0, 2**32 - 1))


def set_xattr(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"{name} cannot be set here: {error.strerror}")


@contextlib.contextmanager
def mounted(*arguments: str) -> Iterator[None]:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mount is not possible here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", arguments[-1]], check=True)


@pytest.fixture
def no_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without O_TMPFILE, as NFS is."""
    real_open = os.open

    def without_tmpfile(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real_open(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", without_tmpfile)


@pytest.fixture(params=["unnamed", "named"])
def either_temporary(request: pytest.FixtureRequest) -> None:
    if request.param == "named":
        request.getfixturevalue("no_unnamed_files")


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


# Attributes


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


def test_upload_temporary_of_private_file_is_private(tmp_path: Path, no_unnamed_files: None) -> None:
    """Nobody reads from the temporary what they may not read from the file."""
    (tmp_path / "file").touch(0o600)
    upload = Upload.open(os.fsencode(tmp_path / "file"), digest=hashlib.sha256())
    (name,) = set(os.listdir(tmp_path)) - {"file"}
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    upload.abort()


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


def put_as_nobody(path: Path) -> str:
    """Put as user and group NOBODY; the child sheds root itself, for that user may have no way to this Python."""
    done = subprocess.run([sys.executable, "-c", SHED_ROOT + PUT, path], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


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


# Spool


@pytest.mark.parametrize("size", [None, 10, 2 << 20])
def test_spool_is_nameless_private_and_rewound(size: int | None) -> None:
    """A verified spool is read from its start, and nobody else can open it."""
    spool = open_spool(b"/target", hashlib.sha256(), size)
    spool.write([b"01234", b"56789"])
    spool.verify(10, hashlib.sha256(b"0123456789").digest())
    assert os.read(spool.fd, 100) == b"0123456789"
    assert os.fstat(spool.fd).st_nlink == 0
    spool.close()
    spool.close()


# Litter

KILLED_PROGRAM = """
import errno, hashlib, os, sys
from pyinfra_agent import _upload
real_open = os.open
def without_tmpfile(path, flags, mode=0o777, *, dir_fd=None):
    if sys.argv[3] == "named" and flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, "")
    return real_open(path, flags, mode, dir_fd=dir_fd)
_upload.os.open = without_tmpfile
litter = _upload.Litter(sys.argv[2])
upload = _upload.Upload.open(os.fsencode(sys.argv[1]), digest=hashlib.sha256(), litter=litter)
upload.write([b"half"])
print("written", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("temporary", ["named", "unnamed"])
def test_sweep_after_kill_leaves_only_the_old_file(tmp_path: Path, temporary: str) -> None:
    """What SIGKILL left is removed at the next start; an unnamed file is gone by itself."""
    state, files = tmp_path / "state", tmp_path / "files"
    state.mkdir()
    files.mkdir()
    (files / "file").write_bytes(b"old")
    command = [sys.executable, "-c", KILLED_PROGRAM, str(files / "file"), str(state), temporary]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"written\n"
        agent.send_signal(signal.SIGKILL)
    left = sorted(os.listdir(files))
    assert len(left) == (2 if temporary == "named" else 1)
    litter = Litter(str(state))
    removed = litter.sweep()
    assert removed == [os.fsencode(files / name) for name in left if name != "file"]
    assert litter.sweep() == []
    litter.close()
    assert os.listdir(files) == ["file"]
    assert (files / "file").read_bytes() == b"old"


def test_sweep_removes_nothing_but_our_own_temporaries(tmp_path: Path) -> None:
    """A spoilt journal cannot make the sweep remove files, links or directories that are not temporaries."""
    litter = Litter(str(tmp_path))
    ours = [b".pyinfra-agent-%016x.tmp" % n for n in range(4)]
    base = os.fsencode(tmp_path) + b"/"
    (tmp_path / "precious").touch()
    os.symlink(b"precious", base + ours[0])
    os.mkdir(base + ours[1])
    os.link(base + b"precious", base + ours[2])
    with open(base + ours[3], "wb"):
        pass
    for path in (base + b"precious", *(base + name for name in ours), ours[3], base + b"../../x", b""):
        litter.record(path)
    litter.close()
    litter = Litter(str(tmp_path))
    assert litter.sweep() == [base + ours[3]]
    litter.close()
    assert (tmp_path / "precious").exists()


def test_litter_journal_stays_bounded_and_keeps_live_names(tmp_path: Path) -> None:
    """Thousands of uploads do not make the journal grow, nor lose the one that is still under way."""
    path = os.fsencode(tmp_path) + b"/.pyinfra-agent-00000000000000ff.tmp"
    with open(path, "wb"):
        pass
    litter = Litter(str(tmp_path))
    litter.record(path)
    for n in range(3000):
        litter.record(b"/x/%064d" % n)
        litter.forget(b"/x/%064d" % n)
    assert (tmp_path / "unfinished-uploads").stat().st_size < 70_000
    litter.close()
    litter = Litter(str(tmp_path))
    assert litter.sweep() == [path]
    litter.close()


@pytest.mark.usefixtures("either_temporary")
def test_upload_forgets_its_temporary(tmp_path: Path) -> None:
    """After commit, abort and refusal nothing is remembered as unfinished."""
    (tmp_path / "state").mkdir()
    litter = Litter(str(tmp_path / "state"))
    put(tmp_path / "file", litter=litter)
    put(tmp_path / "file", litter=litter)
    Upload.open(os.fsencode(tmp_path / "file"), digest=hashlib.sha256(), litter=litter).abort()
    assert litter._live == set()
    litter.close()
