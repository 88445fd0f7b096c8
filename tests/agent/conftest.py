"""Fixtures for the tests of files: the file systems and directories that an upload may meet."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._spawn import inherit_nothing_of_the_agent

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def nothing_inherited() -> None:
    """What an agent does first; whoever runs the tests may have left descriptors open."""
    inherit_nothing_of_the_agent()


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


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)
