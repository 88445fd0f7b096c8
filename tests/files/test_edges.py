"""Where a file may lie and what it may be: uploads end as those of cp and of OpenSSH's sftp, or differ on purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent_connector._errors import AgentError, Refused
from tests.files.helpers import NOBODY, SFTP_SERVER, contents, flagged, mounted, needs_tool

if TYPE_CHECKING:
    from collections.abc import Callable

NEW = b"new content"
PATIENCE_SECONDS = 1

BOTH = frozenset({"cp", "sftp"})


@dataclass(frozen=True)
class Edge:
    """A directory to prepare, the name to write in it, what the agent says of it, and who does otherwise and why."""

    name: str
    prepare: Callable[[Path], object]
    target: str = "file"
    said: str | None = None
    code: str | None = None
    others: frozenset[str] = frozenset()
    because: str = ""


def old(directory, content=b"old and longer content", mode=0o640):
    path = directory / "file"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def owned(directory):
    path = old(directory)
    os.chown(path, NOBODY, 12345)
    path.chmod(0o4750)


def hard_link(directory):
    os.link(old(directory), directory / "other name")


def chain(directory):
    (directory / "below").mkdir()
    (directory / "file").symlink_to("below/middle")
    (directory / "below/middle").symlink_to("../end")
    (directory / "end").write_bytes(b"old")


def dangling(directory):
    (directory / "file").symlink_to("end")


def loop(directory):
    (directory / "file").symlink_to("other")
    (directory / "other").symlink_to("file")


def planted(directory):
    """A link that somebody else put into a directory like /tmp."""
    sticky = directory / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    os.chown(sticky, NOBODY - 1, NOBODY - 1)
    (directory / "victim").write_bytes(b"old")
    (sticky / "link").symlink_to("../victim")
    os.lchown(sticky / "link", NOBODY, NOBODY)


def group_directory(directory):
    os.chown(directory, 0, 12345)
    directory.chmod(0o2775)


def bind_mount(directory):
    (directory / "source").write_bytes(b"old")
    (directory / "file").touch()
    return mounted("--bind", str(directory / "source"), str(directory / "file"))


@contextmanager
def read_only(directory):
    old(directory)
    with mounted("--bind", str(directory), str(directory)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(directory)], check=True)
        yield


@contextmanager
def read_only_file(directory):
    """One file on a read-only bind mount, as a container gets its configuration."""
    path = old(directory)
    with mounted("--bind", str(path), str(path)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(path)], check=True)
        yield


@contextmanager
def running(directory):
    shutil.copy(shutil.which("sleep") or "/bin/sleep", directory / "file")
    with subprocess.Popen([directory / "file", "60"]) as process:
        try:
            yield
        finally:
            process.kill()


PATH_MAX = f"{'x' * 250}/" * 17
"""Cut to the 4,096 bytes that leave no room for the NUL at its end."""

EDGES = [
    Edge("nothing", lambda directory: None),
    Edge("an old file", old),
    Edge("an owner and set-user-ID", owned),
    Edge("no permission at all", lambda directory: old(directory, mode=0)),
    Edge("a hard link", hard_link),
    Edge("a chain of links", chain),
    Edge("a dangling link", dangling, others=frozenset({"cp"}), because="cp asks for POSIXLY_CORRECT first"),
    Edge("a loop", loop, said="symbolic links", code="too-many-links"),
    Edge("a link planted in a sticky directory", planted, "sticky/link", "permission denied", "permission"),
    Edge("a directory's group", group_directory),
    Edge("a bind mount", bind_mount),
    Edge("a read-only mount", read_only, said="the file system is read-only; remount it", code="read-only"),
    Edge("a read-only mounted file", read_only_file, said="the file system is read-only", code="read-only"),
    Edge("a new file on a read-only mount", read_only, "new", "the file system is read-only", "read-only"),
    Edge("an immutable file", lambda directory: flagged("i", old(directory)), said="see lsattr", code="permission"),
    Edge("an append-only file", lambda directory: flagged("a", old(directory)), said="see lsattr", code="permission"),
    Edge("an immutable directory", lambda directory: (old(directory), flagged("i", directory))[1]),
    Edge("a new file in an immutable directory", lambda it: flagged("i", it), "new", "lsattr", "permission"),
    Edge("an append-only directory", lambda directory: (old(directory), flagged("a", directory))[1]),
    Edge("a new file in an append-only directory", lambda directory: flagged("a", directory), "new"),
    Edge("a running program", running, others=BOTH, because="they write in place, which the kernel forbids"),
    Edge("no directory", lambda directory: None, "none/file", "none does not exist; make it first", "not-found"),
    Edge("a file for a directory", old, "file/below", "not a directory", "not-found"),
    Edge(
        "a directory",
        lambda directory: (directory / "file").mkdir(),
        said="it is a directory; name a file in it",
        code="is-directory",
        others=frozenset({"cp", "sftp"}),
        because="they put the file into it under its own name",
    ),
    Edge(
        "a FIFO",
        lambda directory: os.mkfifo(directory / "file"),
        said="it is a fifo, not a file",
        code="not-regular",
        others=BOTH,
        because="they wait for a reader",
    ),
    Edge("a name of 255 bytes", lambda directory: None, "n" * 255),
    Edge("a name of 300 bytes", lambda directory: None, "n" * 300, "longer than", "name-too-long"),
    Edge("a path of PATH_MAX", lambda directory: None, PATH_MAX, "make it first", "not-found"),
    Edge("a newline", lambda directory: None, "a\nb"),
    Edge("quotes", lambda directory: None, "'\"`$(id)\\"),
    Edge("a leading dash", lambda directory: None, "-rf"),
    Edge("invalid UTF-8", lambda directory: None, os.fsdecode(b"\xff\xfe \xc3")),
    Edge("a blank", lambda directory: None, " "),
]  # fmt: skip


def cp(source, target):
    return ended_well(["cp", "--", source, target])


def sftp(source, target):
    """Put as OpenSSH's own client and server do, without a network."""
    needs_tool(SFTP_SERVER)
    quoted = "".join(f"\\{character}" if character in "'\"\\*?[] `$" else character for character in target)
    return ended_well(["sftp", "-D", SFTP_SERVER, "-b", "-"], input=os.fsencode(f"put {source} {quoted}\n"))


def ended_well(command, **options):
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS, check=False, **options)
    except subprocess.TimeoutExpired:
        return None
    return done.returncode == 0


PROGRAMS = {"cp": cp, "sftp": sftp}


@contextmanager
def prepared(edge, directory):
    directory.mkdir()
    made = edge.prepare(directory)
    with made if isinstance(made, AbstractContextManager) and not isinstance(made, Path) else nullcontext():
        yield f"{directory}/{edge.target}"


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.name)
def test_put_ends_as_with_cp_and_sftp_or_says_why_it_cannot(edge, client, needs_root, tmp_path):
    """The same content, owner and permissions; where it is refused, it is by one line, and nothing changed."""
    source = tmp_path / "source"
    source.write_bytes(NEW)
    source.chmod(0o666)
    with prepared(edge, tmp_path / "ours") as target:
        target = target[:4096]
        before = contents(tmp_path / "ours")
        if edge.said is None:
            client.put([NEW], target)
        else:
            with pytest.raises(Refused) as caught:
                client.put([NEW], target)
            assert caught.value.code == edge.code
            assert edge.said in str(caught.value)
            assert str(tmp_path / "ours") in str(caught.value)
            assert "\n" not in str(caught.value)
        after = contents(tmp_path / "ours")
    if edge.said is not None:
        assert after == before
    for name, program in PROGRAMS.items():
        if program is sftp and "\n" in edge.target:
            continue  # its batches are read line by line
        with prepared(edge, tmp_path / name) as target:
            done = program(source, target)
            others = contents(tmp_path / name)
        is_same = (done, others) == (edge.said is None, after)
        assert is_same == (name not in edge.others), f"{name} {'succeeded' if done else 'failed'} and left {others}"


@pytest.mark.parametrize("path", ["", "a\0b", "/tmp/" + "x/" * 4096], ids=["empty", "NUL", "too long"])
def test_path_that_cannot_be_one_is_refused_before_it_is_sent(path, client):
    for act in (lambda: client.put([NEW], path), lambda: client.get(path, print), lambda: client.stat(path)):
        with pytest.raises(AgentError, match=r"is no path: it has \d+ bytes") as caught:
            act()
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()
