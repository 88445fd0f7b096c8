"""A cgroup that is delegated to the process that runs the tests, as systemd delegates one to a service."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest


def hierarchy() -> Path:
    """Return where cgroup v2 is mounted; skips the test where it is not, or may not be written to."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in (Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"):
        if os.access(place / "cgroup.procs", os.W_OK):
            return place
    pytest.skip("no cgroup v2 hierarchy that may be written to: needs root, and a container that is allowed to")


@contextlib.contextmanager
def delegated_cgroup(name: str = "test", *, marked: bool = True, enter: bool = True):
    """Make a cgroup, *marked* as delegated, and move this process there for the block; yields its directory."""
    place = hierarchy() / f"pyinfra-agent-{name}-{os.getpid()}"
    before = hierarchy() / own_path()
    place.mkdir()
    try:
        if marked:
            os.setxattr(place, "trusted.delegate", b"1")
        if enter:
            (place / "cgroup.procs").write_text("0")
        yield place
    finally:
        if enter:
            (before / "cgroup.procs").write_text("0")
        _remove(place)


def _remove(directory: Path) -> None:
    """Remove a cgroup; whoever a failed test left in it is killed first."""
    for inner in (entry for entry in directory.iterdir() if entry.is_dir()):
        _remove(inner)
    for _ in range(200):
        with contextlib.suppress(OSError):
            directory.rmdir()
            return
        for thread in (directory / "cgroup.threads").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(thread), signal.SIGKILL)
        time.sleep(0.01)
    raise AssertionError(f"{directory} cannot be removed")


def own_path() -> str:
    """Return the path of this process's cgroup, relative to the hierarchy's root."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::").lstrip("/")
    pytest.skip("this process has no cgroup v2")
