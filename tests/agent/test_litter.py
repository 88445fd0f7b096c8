from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._keys import StateError
from pyinfra_agent._litter import Litter

if TYPE_CHECKING:
    from pathlib import Path

KILLED_PROGRAM = """
import errno, hashlib, os, sys
from pyinfra_agent._litter import Litter
from pyinfra_agent._upload import Upload
real_open = os.open
def without_tmpfile(path, flags, mode=0o777, *, dir_fd=None):
    if sys.argv[3] == "named" and flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, "")
    return real_open(path, flags, mode, dir_fd=dir_fd)
os.open = without_tmpfile
litter = Litter(sys.argv[2])
upload = Upload.open(os.fsencode(sys.argv[1]), digest=hashlib.sha256(), litter=litter)
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


def test_litter_refuses_state_directory_of_another_agent(tmp_path: Path) -> None:
    """A second agent is told of the first, touches nothing of its, and may start when it has ended."""
    path = os.fsencode(tmp_path) + b"/.pyinfra-agent-00000000000000ff.tmp"
    with open(path, "wb"):
        pass
    first = Litter(str(tmp_path))
    first.record(path)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StateError, match=f"^another agent runs with --state-dir {tmp_path}: stop that one") as caught:
        Litter(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == open_before
    first.close()
    second = Litter(str(tmp_path))
    assert second.sweep() == [path]
    second.close()


def test_litter_stays_locked_when_the_journal_is_rewritten(tmp_path: Path) -> None:
    """The journal's new file is locked as its old one was."""
    litter = Litter(str(tmp_path))
    litter.sweep()
    with pytest.raises(StateError):
        Litter(str(tmp_path))
    litter.close()


def test_litter_refuses_journal_that_was_rewritten_while_it_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a journal that is no longer the journal is worth nothing: the first agent still runs."""
    first = Litter(str(tmp_path))
    real_flock = fcntl.flock

    def slow_flock(fd: int, operation: int) -> None:
        monkeypatch.undo()
        first.sweep()
        real_flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", slow_flock)
    with pytest.raises(StateError, match="another agent runs"):
        Litter(str(tmp_path))
    first.close()


def test_litter_works_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, as NFS may be, does not keep an agent from starting."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    litter = Litter(str(tmp_path))
    assert litter.sweep() == []
    litter.close()
