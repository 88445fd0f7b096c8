"""The local side of a download: what an old file keeps, and what stays when it goes wrong."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
from contextlib import contextmanager

import pytest

from pyinfra_agent_connector import _replaced
from pyinfra_agent_connector._replacement import replacing
from tests.steps import killed_at_each_step

NOBODY = 65534
ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
ACL_WITH_NOBODY = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (1, 6, 2**32 - 1),
        (2, 4, NOBODY),
        (4, 0, 2**32 - 1),
        (0x10, 4, 2**32 - 1),
        (0x20, 0, 2**32 - 1),
    )
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, owners and other users")


@pytest.fixture(params=["named", "unnamed"])
def either_temporary(request, monkeypatch):
    """Let the temporary file have no name, or a name as where the file system has no other ones (macOS, NFS)."""
    if request.param == "named":
        monkeypatch.setattr(os, "O_TMPFILE", 0)  # a directory opened for writing: EISDIR


@contextmanager
def mounted(*arguments):
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mount is not possible here: {done.stderr.strip()}")
    try:
        yield
    finally:
        # A thread may still free what it has closed when the test is over.
        if subprocess.run(["umount", arguments[-1]], capture_output=True, check=False).returncode != 0:
            subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


def get(path, content=b"new"):
    with replacing(path) as write:
        write(content)


def failure(path, content=b"new"):
    with pytest.raises(OSError, match=r".+") as caught:
        get(path, content)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("exists", [True, False])
def test_file_appears_when_the_block_ends_well(exists, tmp_path):
    path = tmp_path / "file"
    if exists:
        path.write_bytes(b"old and longer")
    with replacing(path) as write:
        write(b"one, ")
        write(b"two")
        assert (path.read_bytes() if path.exists() else None) == (b"old and longer" if exists else None)
    assert path.read_bytes() == b"one, two"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("exists", [True, False])
def test_block_that_raises_leaves_the_old_file_and_no_litter(exists, tmp_path):
    path = tmp_path / "file"
    if exists:
        path.write_bytes(b"old")

    def fail():
        with replacing(path) as write:
            write(b"new")
            raise RuntimeError("the connection was lost")

    before = os.listdir("/proc/self/fd")
    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == (["file"] if exists else [])
    assert not exists or path.read_bytes() == b"old"
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_new_file_has_the_permissions_that_open_gives(umask, tmp_path):
    """As with @ssh, which opens it for writing; what the target's file had is nobody's concern here."""
    previous = os.umask(umask)
    try:
        get(tmp_path / "file")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@needs_root
def test_old_file_keeps_mode_owner_attributes_and_access_list(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, NOBODY, 12345)
    path.chmod(0o4640)
    os.setxattr(path, "user.origin", b"\0\xff")
    os.setxattr(path, ACL, ACL_WITH_NOBODY)
    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
    before = path.stat()
    get(path)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, NOBODY, 12345)
    assert after.st_ino != before.st_ino
    assert os.getxattr(path, "user.origin") == b"\0\xff"
    assert os.getxattr(path, ACL) == ACL_WITH_NOBODY
    assert "security.capability" not in os.listxattr(path)


@pytest.mark.usefixtures("either_temporary")
def test_old_file_does_not_get_the_access_list_that_new_ones_inherit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    try:
        os.setxattr(tmp_path, DEFAULT_ACL, ACL_WITH_NOBODY)
    except OSError as error:
        pytest.skip(f"no access lists here: {error.strerror}")
    get(path)
    assert ACL not in os.listxattr(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "end").write_bytes(b"old")
    (tmp_path / "link").symlink_to("end")
    (tmp_path / "dangling").symlink_to("new")
    get(tmp_path / "link")
    get(tmp_path / "dangling")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "end").read_bytes() == (tmp_path / "new").read_bytes() == b"new"


def test_loop_of_links_is_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert "on this machine: Too many levels of symbolic links" in failure(tmp_path / "loop")


@pytest.mark.usefixtures("either_temporary")
@pytest.mark.parametrize("old", [b"o", b"old and longer than the new content"])
def test_hard_link_is_kept_by_writing_in_place(old, tmp_path):
    """Only when all is there: a failure before leaves both names as they were."""
    path = tmp_path / "one"
    path.write_bytes(old)
    os.link(path, tmp_path / "two")
    with replacing(path) as write:
        write(b"new content")
        assert (tmp_path / "two").read_bytes() == old
    assert (tmp_path / "two").read_bytes() == b"new content"
    assert path.stat().st_nlink == 2
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


@pytest.mark.usefixtures("either_temporary")
def test_hard_link_made_meanwhile_is_kept(tmp_path):
    path = tmp_path / "one"
    path.write_bytes(b"old")
    with replacing(path) as write:
        write(b"new")
        os.link(path, tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


@pytest.mark.usefixtures("either_temporary")
def test_file_made_meanwhile_is_replaced(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as write:
        write(b"new")
        path.write_bytes(b"made meanwhile")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@needs_root
@pytest.mark.usefixtures("either_temporary")
def test_mount_point_is_written_in_place(tmp_path):
    (tmp_path / "source").write_bytes(b"old")
    (tmp_path / "file").touch()
    with mounted("--bind", str(tmp_path / "source"), str(tmp_path / "file")):
        get(tmp_path / "file")
    assert (tmp_path / "source").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["file", "source"]


@needs_root
@pytest.mark.usefixtures("either_temporary")
def test_full_disk_leaves_the_old_file_and_is_named_as_this_machines(tmp_path):
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)):
        (tmp_path / "file").write_bytes(b"old" * 1000)
        (tmp_path / "one").write_bytes(b"old")
        os.link(tmp_path / "one", tmp_path / "two")
        for name in ("file", "new", "one"):
            assert "on this machine: no space left on the file system" in failure(tmp_path / name, b"x" * 2_000_000)
        assert (tmp_path / "file").read_bytes() == b"old" * 1000
        assert (tmp_path / "two").read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == ["file", "one", "two"]


@needs_root
def test_read_only_file_system_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with mounted("--bind", str(tmp_path), str(tmp_path)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path)], check=True)
        for name in ("file", "new"):
            assert "on this machine: Read-only file system" in failure(tmp_path / name)


@needs_root
def test_file_in_a_closed_directory_is_written_in_place(tmp_path):
    """A user who may write the file and not its directory, as `open` would let them."""
    directory = tmp_path / "closed"
    directory.mkdir()
    path = directory / "file"
    path.write_bytes(b"old")
    os.chown(path, NOBODY, NOBODY)
    for above in (directory, *directory.parents[: len(directory.parents) - 2]):
        above.chmod(0o755)
    # The other user may have no way to this Python, so it becomes that user when all is imported.
    script = f"""
import os
from pyinfra_agent_connector import _replaced
from pyinfra_agent_connector._replacement import replacing
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
with replacing({str(path)!r}) as write:
    write(b"new")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert path.read_bytes() == b"new"
    assert path.stat().st_uid == NOBODY


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("directory", "is a directory: name a file in it"),
        ("directory/", "is a directory: name a file in it"),
        ("new/", "is a directory: name a file in it"),
        ("missing/file", "its directory does not exist; make it first"),
        ("file/below", "Not a directory"),
        ("n" * 300, "File name too long"),
    ],
)
def test_place_where_no_file_can_be_is_named(name, says, tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    assert says in failure(f"{tmp_path}/{name}")
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


@pytest.mark.usefixtures("either_temporary")
def test_error_that_comes_at_close_leaves_the_old_file(tmp_path, monkeypatch):
    """NFS and FUSE say then that their disk is full."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(fd):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "dup", full)
    assert "the disk quota is used up" in failure(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


GET = """
from pyinfra_agent_connector import _replaced
from pyinfra_agent_connector._replacement import replacing

path, temporaries = sys.argv[1:]
if temporaries == "named":
    os.O_TMPFILE = 0

def act():
    with replacing(path) as write:
        write(b"new")
"""


@pytest.mark.parametrize("temporaries", ["named", "unnamed"])
@pytest.mark.parametrize("exists", [True, False])
def test_controller_killed_at_any_step_leaves_the_old_file_or_the_new_one(exists, temporaries, tmp_path):
    """And beside it at most the temporary that a file system without unnamed files makes necessary."""
    path = tmp_path / "file"
    old = b"old" if exists else None
    outcomes, litter = [], 0

    def reset():
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)

    reset()
    with killed_at_each_step(GET, path, temporaries) as runs:
        for _ in runs():
            outcomes.append(path.read_bytes() if path.exists() else None)
            assert outcomes[-1] in (old, b"new")
            for name in set(os.listdir(tmp_path)) - {"file"}:
                assert name.startswith(".pyinfra-agent-")
                os.unlink(tmp_path / name)
                litter += 1
            reset()
    assert len(outcomes) > 5
    assert outcomes[-1] == b"new"
    # Between its name and the rename; a new file has none but its own.
    assert temporaries == "named" or litter <= exists


# --- a large file that is replaced ---

LARGE = bytes(20 << 20)


def free_bytes(place):
    system = os.statvfs(place)
    return system.f_bavail * system.f_frsize


@pytest.fixture
def place(tmp_path, request):
    """A file system in memory, with room for six times the large file unless the test wants another."""
    place = tmp_path / "place"
    place.mkdir()
    with mounted("-t", "tmpfs", "-o", f"size={getattr(request, 'param', 120)}m", "none", str(place)):
        yield place


@needs_root
def test_large_old_file_is_given_to_whoever_frees_it(place):
    path = place / "file"
    path.write_bytes(LARGE)
    before = free_bytes(place)
    held = []
    with replacing(path, held.append) as write:
        write(b"new")
    assert path.read_bytes() == b"new"
    (descriptor,) = held
    assert os.fstat(descriptor).st_nlink == 0
    assert free_bytes(place) <= before
    os.close(descriptor)
    assert free_bytes(place) - before > len(LARGE) // 2


@needs_root
@pytest.mark.parametrize("place", [90], indirect=True)
def test_large_old_file_is_freed_by_the_rename_where_space_is_scarce(place):
    (place / "file").write_bytes(LARGE)
    before = free_bytes(place)
    with replacing(place / "file", lambda descriptor: pytest.fail("it was held")) as write:
        write(b"new")
    assert free_bytes(place) - before > len(LARGE) // 2


@needs_root
def test_large_old_file_is_freed_by_the_rename_on_a_file_system_of_another_machine(place, monkeypatch):
    monkeypatch.setattr(_replaced, "_OF_THIS_MACHINE", frozenset({"ext4"}))  # as if tmpfs were NFS
    (place / "file").write_bytes(LARGE)
    with replacing(place / "file", lambda descriptor: pytest.fail("it was held")) as write:
        write(b"new")


def test_small_old_file_and_no_old_file_are_given_to_nobody(tmp_path):
    for name in ("old", "none"):
        (tmp_path / "old").write_bytes(b"old")
        with replacing(tmp_path / name, lambda descriptor: pytest.fail("it was held")) as write:
            write(b"new")
