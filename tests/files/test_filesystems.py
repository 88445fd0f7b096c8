"""The file systems that targets have: what an old file keeps, what a full one says, and that nothing is left behind."""

from __future__ import annotations

import os
import random
import stat
import struct
import subprocess

import pytest

from pyinfra_agent_connector._errors import Refused
from tests.files.helpers import ACL, ACL_WITH_NOBODY, DEFAULT_ACL, MIB, NOBODY, contents, image, mounted, needs_tool

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
SELINUX_LABEL = b"system_u:object_r:etc_t:s0\0"
CONTENT = random.Random(7).randbytes(3 * MIB)


def can_have(path, name, value):
    try:
        os.setxattr(path, name, value)
    except OSError:
        return False
    return True


def test_put_keeps_all_that_an_old_file_has(client, place):
    """Mode, owner, group, ACL and every attribute stay on a new inode, but for those that speak of the old content."""
    path = place / "file"
    path.write_bytes(b"old")
    os.chown(path, NOBODY, 12345)
    path.chmod(0o6750)
    kept = {"trusted.origin": b"\0binary\xff", ACL: ACL_WITH_NOBODY, "user.origin": b"x" * 200}
    kept = {name: value for name, value in kept.items() if can_have(path, name, value)}
    assert ACL in kept, "no file system of these is without access lists"
    gone = {"security.capability": CAPABILITY, "security.ima": b"\x01" + bytes(20), "security.evm": b"\x02" + bytes(20)}
    set_of_gone = [name for name, value in gone.items() if can_have(path, name, value)]
    assert "security.capability" in set_of_gone
    before = path.stat()

    result = client.put([CONTENT], str(path))

    after = path.stat()
    assert not result.in_place
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, NOBODY, 12345)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path) if name in kept} == kept
    assert not set(os.listxattr(path)) & set(gone)
    assert path.read_bytes() == CONTENT
    assert os.listdir(place) == ["file"]


def test_put_keeps_the_security_label(client, place):
    """SELinux's label is an attribute; where the kernel does not enforce it, it can still be set and has to stay."""
    path = place / "file"
    path.write_bytes(b"old")
    if not can_have(path, "security.selinux", SELINUX_LABEL):
        pytest.skip("this file system takes no label of SELinux from us")
    client.put([b"new"], str(path))
    assert os.getxattr(path, "security.selinux") == SELINUX_LABEL
    assert path.read_bytes() == b"new"


def test_put_of_a_new_file_obeys_the_directory(client, place):
    """Its group and its default ACL apply as they do for the shell's `>`."""
    os.chown(place, 0, 12345)
    place.chmod(0o2775)
    os.setxattr(place, DEFAULT_ACL, ACL_WITH_NOBODY)
    client.put([b"new"], str(place / "ours"))
    subprocess.run(["sh", "-c", 'echo > "$0"', place / "shell's"], check=True)
    ours, theirs = (place / name for name in ("ours", "shell's"))
    assert os.getxattr(ours, ACL) == os.getxattr(theirs, ACL)
    assert (ours.stat().st_mode, ours.stat().st_gid) == (theirs.stat().st_mode, 12345)


@pytest.mark.parametrize("name", ["plain", "a\nb", "'\"`$", "-rf", "n" * 255, os.fsdecode(b"\xff\xfe")])
def test_file_of_any_name_travels_both_ways(name, client, place):
    """New, replaced and read again; a name is bytes."""
    path = f"{place}/{name}"
    assert client.put([b"first"], path).created
    assert not client.put([CONTENT], path).created
    got = bytearray()
    client.get(path, got.extend)
    assert got == CONTENT
    assert client.stat(path)["size"] == len(CONTENT)
    assert os.listdir(os.fsencode(place)) == [os.fsencode(name)]


def test_hard_link_is_kept_by_writing_in_place(client, place):
    (place / "one").write_bytes(b"old")
    os.link(place / "one", place / "two")
    assert client.put([CONTENT], str(place / "one")).in_place
    assert (place / "two").read_bytes() == CONTENT
    assert (place / "one").stat().st_nlink == 2


def test_get_of_a_sparse_file_brings_its_holes_as_zeros(client, place):
    """As with sftp; what lies between is not stored at the target and still is content."""
    path = place / "sparse"
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(5 * MIB)
        file.write(b"end")
    got = bytearray()
    result = client.get(str(path), got.extend)
    assert result.size == 5 * MIB + 3
    assert bytes(got) == path.read_bytes()


# What is full


def refused(client, path, content):
    with pytest.raises(Refused) as caught:
        client.put([content], str(path))
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def test_full_disk_leaves_the_old_file_and_no_litter(client, small):
    """Both where the file is new and where it is not; once there is room, the same upload goes through."""
    path = small / "file"
    old = random.Random(1).randbytes(400 * 1024)
    path.write_bytes(old)
    before = contents(small)
    for name in ("file", "new"):
        error = refused(client, small / name, CONTENT)
        assert error.code == "no-space"
        assert "df -h" in str(error)
        assert contents(small) == before
    client.put([old[::-1]], str(path))
    assert path.read_bytes() == old[::-1]


def test_disk_without_room_for_two_keeps_the_old_one_unless_told_to_write_in_place(client, small):
    """cp, which has overwritten the old file first, succeeds; one that fails half way has no old file to leave."""
    path = small / "file"
    old, new = (random.Random(seed).randbytes(600 * 1024) for seed in (1, 2))
    path.write_bytes(old)
    assert refused(client, path, new).code == "no-space"
    assert path.read_bytes() == old
    assert client.put([new], str(path), in_place=True).in_place
    assert path.read_bytes() == new
    assert os.listdir(small) == ["file"]


@pytest.mark.parametrize("how", ["hard link", "asked for"])
def test_full_disk_is_noticed_before_a_byte_is_overwritten_in_place(how, client, small):
    path = small / "file"
    path.write_bytes(b"old" * 1000)
    if how == "hard link":
        os.link(path, small / "other")
    before = contents(small)
    with pytest.raises(Refused, match="no space left") as caught:
        client.put([CONTENT], str(path), in_place=how == "asked for")
    assert "incomplete" not in str(caught.value)
    assert contents(small) == before


def test_disk_without_an_inode_left_says_so(client, needs_root, tmp_path):
    with mounted("-t", "tmpfs", "-o", "size=1m,nr_inodes=2", "none", str(tmp_path)):
        (tmp_path / "file").write_bytes(b"old")
        error = refused(client, tmp_path / "new", b"new")
        assert error.code == "no-space"
        assert "df -i" in str(error)
        assert os.listdir(tmp_path) == ["file"]


def test_used_up_quota_leaves_the_old_file_and_says_so(client, needs_root, tmp_path):
    """A real quota: of a subvolume of btrfs, which every kernel that has btrfs counts."""
    needs_tool("btrfs")
    with image("btrfs") as file, mounted("-o", "loop", str(file), str(tmp_path)):
        limited = tmp_path / "limited"
        for words in (
            ["quota", "enable", tmp_path],
            ["subvolume", "create", limited],
            ["qgroup", "limit", "2M", limited],
        ):
            subprocess.run(["btrfs", *words], check=True, capture_output=True)
        path = limited / "file"
        path.write_bytes(b"old")
        os.sync()
        error = refused(client, path, CONTENT)
        assert error.code == "quota"
        assert "raise it or delete something" in str(error)
        assert path.read_bytes() == b"old"
        assert os.listdir(limited) == ["file"]


# What is no ordinary file


def test_get_of_proc_and_sys_files_brings_all_of_them(client):
    """They say that they have 0 or 4,096 bytes, and have more or less."""
    for path in ("/proc/version", "/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/self/maps"):
        if not os.path.exists(path):
            continue
        got = bytearray()
        result = client.get(path, got.extend)
        assert got
        assert result.size == len(got)
        if path == "/proc/version":
            with open(path, "rb") as file:
                assert got == file.read()


def test_put_to_a_sysctl_writes_it(client, needs_root):
    """Where no file can be made beside the target, it is written in place."""
    path = "/proc/sys/kernel/core_pattern"
    with open(path, "rb") as file:
        old = file.read()
    assert client.put([old], path).in_place


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.mkdir(), "it is a directory"),
        (lambda path: os.mkfifo(path), "it is a fifo"),
        (lambda path: os.mknod(path, stat.S_IFSOCK | 0o666), "it is a socket"),
        (lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)), "it is a char"),
        (lambda path: os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 0)), "it is a block"),
    ],
    ids=["directory", "FIFO", "socket", "character device", "block device"],
)
def test_get_of_what_is_no_file_says_what_it_is(make, kind, client, needs_root, tmp_path):
    """At once: neither a reader nor a device is waited for, and no device is opened."""
    path = tmp_path / "it"
    make(path)
    with pytest.raises(Refused, match=kind) as caught:
        client.get(str(path), lambda data: None)
    assert str(path) in str(caught.value)
