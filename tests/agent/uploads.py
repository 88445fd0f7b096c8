"""What the tests of uploads share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._refusal import FileRefused
from pyinfra_agent._upload import Upload, UploadResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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
        # A thread may still free what it has closed when the test is over.
        if subprocess.run(["umount", arguments[-1]], capture_output=True, check=False).returncode != 0:
            subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


def put_as_nobody(path: Path) -> str:
    """Put as user and group NOBODY; the child sheds root itself, for that user may have no way to this Python."""
    done = subprocess.run([sys.executable, "-c", SHED_ROOT + PUT, path], capture_output=True, text=True, check=True)
    return done.stdout.strip()
